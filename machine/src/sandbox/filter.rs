//! Loads the seccomp programs of threads.
#![allow(unsafe_code)]

use std::io;

use libc::{sock_filter, sock_fprog};

use super::Kind;
use super::program::{self, MAX_INSTRUCTIONS};

/// Whether the kernel filters system calls and reports which one was stopped.
pub(super) fn offered() -> Result<String, String> {
    let trap: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads one number, which lives until it returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const trap,
        )
    };
    let error = io::Error::last_os_error();
    match answer {
        0 => Ok("a list of system calls for each kind of thread".into()),
        _ => Err(format!(
            "no filters of system calls (seccomp: {error}; Linux 4.14 has them)"
        )),
    }
}

/// Confines the calling thread to the calls of `kind`, and what it starts to calls that both allow. It must
/// have `no_new_privs`.
pub(super) fn install(kind: Kind) -> io::Result<()> {
    let program = program::of(kind);
    let len = program.instructions.len();
    // On the stack: the program differs from process to process by its own id only.
    let mut instructions = [sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    }; MAX_INSTRUCTIONS];
    instructions[..len].copy_from_slice(program.instructions);
    if let Some(at) = program.own_process {
        instructions[at].k = std::process::id();
    }
    let list = sock_fprog {
        len: len as u16,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: the kernel copies as many instructions as `list` says, which live until it returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const list,
        )
    };
    match answer {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_program_of_every_kind() {
        for kind in Kind::ALL {
            // In a child, which ends by a call that every kind may make.
            // SAFETY: the child makes system calls only.
            match unsafe { libc::fork() } {
                0 => {
                    // SAFETY: as above.
                    unsafe {
                        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                        libc::_exit(i32::from(install(kind).is_err()));
                    }
                }
                child => {
                    assert!(child > 0, "{}", io::Error::last_os_error());
                    let mut status = -1;
                    // SAFETY: the kernel writes one number, which lives until it returns.
                    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
                    assert_eq!((ended, status), (child, 0), "{kind:?}");
                }
            }
        }
    }
}
