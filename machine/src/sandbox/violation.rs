//! The report of a process whose thread has made a forbidden system call.
#![allow(unsafe_code)]

use std::io;

use super::KIND;

/// What `siginfo_t` holds for SIGSYS (sigaction(2)): `libc` has no accessors for it.
#[repr(C)]
struct Information {
    signal: i32,
    error: i32,
    code: i32,
    _padding: i32,
    address: usize,
    call: i32,
    architecture: u32,
}

/// Calls that an attacker is likely to try; others are reported by number.
macro_rules! names {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[(i64, &str)] = &[$((libc::$name, stringify!($name))),*];
    };
}
names![
    SYS_openat,
    SYS_openat2,
    SYS_socket,
    SYS_connect,
    SYS_bind,
    SYS_listen,
    SYS_execve,
    SYS_execveat,
    SYS_ptrace,
    SYS_linkat,
    SYS_clone,
    SYS_clone3,
    SYS_mmap,
    SYS_mprotect,
    SYS_ioctl,
    SYS_unlinkat,
    SYS_renameat,
    SYS_renameat2,
    SYS_mount,
    SYS_setuid,
    SYS_prctl,
    SYS_seccomp,
    SYS_kill,
    SYS_tgkill,
    SYS_tkill,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_lseek,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_fcntl,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sendto,
    SYS_recvfrom,
    SYS_sendmsg,
    SYS_recvmsg,
    SYS_bpf,
    SYS_unshare,
    SYS_setns,
    SYS_rt_sigaction,
    SYS_getdents64,
    SYS_readlinkat,
    SYS_faccessat,
    SYS_prlimit64,
    SYS_sched_getaffinity,
    SYS_sched_setscheduler,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_memfd_create,
    SYS_io_uring_setup,
    SYS_pipe2,
    SYS_dup3,
];

/// Has a stopped call reported on standard error before it ends the process by SIGSYS.
pub(super) fn report() -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is valid: no flags, nothing blocked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as extern "C" fn(libc::c_int, *const Information, *const ()) as usize;
    // Not SA_NODEFER: what the handler itself must not do ends the process, as it should.
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: `action` is initialized, and the handler is async-signal-safe: it formats into its own stack
    // and writes.
    if unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The handler. Every kind of thread may write to what is open.
extern "C" fn handler(_: libc::c_int, information: *const Information, _: *const ()) {
    // SAFETY: for SIGSYS by a filter the kernel fills in these members of a larger structure.
    let call = i64::from(unsafe { (*information).call });
    let mut line = Line {
        bytes: [0; 160],
        len: 0,
    };
    line.text("vmm: a ");
    line.text(KIND.get().map_or("foreign", |kind| kind.name()));
    line.text(" thread made the forbidden system call ");
    match NAMES.iter().find(|(number, _)| *number == call) {
        Some((_, name)) => line.text(name.trim_start_matches("SYS_")),
        None => line.number(call),
    }
    line.text(": its process ends here\n");
    // SAFETY: the bytes are initialized and live until the call returns.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
    // No thread may do this. The signal is blocked while its handler runs, and a blocked one that a filter
    // raises ends the process by its default action. SAFETY: the kernel never looks at the arguments.
    unsafe { libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0) };
    // SAFETY: takes a number only.
    unsafe { libc::_exit(128 + libc::SIGSYS) };
}

/// A line put together without an allocation.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Line {
    /// Adds what there is room for.
    fn text(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = byte;
                self.len += 1;
            }
        }
    }

    /// Adds a number that is not negative.
    fn number(&mut self, number: i64) {
        let (mut digits, mut at, mut rest) = ([b'0'; 20], 20, number.unsigned_abs());
        while at == 20 || rest > 0 {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.text(std::str::from_utf8(&digits[at..]).unwrap_or("?"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_put_together_and_cut() {
        let mut line = Line {
            bytes: [0; 160],
            len: 0,
        };
        line.number(0);
        line.text(" and ");
        line.number(257);
        assert_eq!(&line.bytes[..line.len], b"0 and 257");
        line.text(&"x".repeat(300));
        assert_eq!(line.len, 160);
    }
}
