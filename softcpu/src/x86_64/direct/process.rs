//! A helper process from its start to its end: what it keeps of the process that made it, and what it may do.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use super::stub::{self, CALL_BYTES, CALLS, Call, PAGE, RAM, SET, SET_BYTES, TABLE};

/// The descriptor of the table, until it is mapped.
const TABLE_FILE: i32 = 1;

/// The process.
#[derive(Debug)]
pub(super) struct Process {
    pub pid: i32,
    /// The same process, for its end.
    descriptor: OwnedFd,
    /// Address of the stub; the table follows it.
    pub stub: u64,
    /// The table, as this process sees it.
    table: NonNull<u64>,
}

// SAFETY: the table belongs to the helper alone.
unsafe impl Send for Process {}

/// What a system call returned, or why it failed.
pub(super) fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// What a clock of the host says.
pub(super) fn time_of(clock: libc::clockid_t) -> Duration {
    // SAFETY: numbers only, for which zeros are valid.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: `time` lives until the call returns. Where it fails, no time passes.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A new file in memory.
fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: the name is a string, and the descriptor that comes back belongs to nobody.
    unsafe {
        let file = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC);
        Ok(File::from_raw_fd(check(file.into())? as i32))
    }
}

/// An empty file for the guest's RAM, which helpers can map.
///
/// # Errors
/// When the host has no such file to give.
pub fn ram_file() -> io::Result<File> {
    memory_file(c"guest-ram")
}

impl Process {
    /// Starts one that can map `ram`, a file.
    pub fn start(ram: BorrowedFd) -> io::Result<Process> {
        let table_file = memory_file(c"calls")?;
        table_file.set_len(TABLE as u64)?;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let table = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                TABLE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                table_file.as_raw_fd(),
                0,
            )
        };
        let table = (table != libc::MAP_FAILED)
            .then(|| NonNull::new(table.cast::<u64>()))
            .flatten()
            .ok_or_else(io::Error::last_os_error)?;
        let stub = place()?;
        // SAFETY: has no preconditions.
        let parent = unsafe { libc::getpid() };
        // SAFETY: the child makes system calls only, and never comes back.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { become_helper(ram.as_raw_fd(), table_file.as_raw_fd(), stub, parent) };
        }
        check(pid.into())?;
        // SAFETY: takes numbers only, and the descriptor that comes back belongs to nobody. A child keeps its
        // number until it is waited for.
        let descriptor = unsafe {
            let descriptor = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            OwnedFd::from_raw_fd(check(descriptor)? as i32)
        };
        Ok(Process {
            pid,
            descriptor,
            stub,
            table,
        })
    }

    /// Addresses of its own, at which no page of the guest may be: the stub's and the table's.
    pub fn own(&self) -> Range<u64> {
        self.stub..self.stub + (PAGE + TABLE) as u64
    }

    /// Puts calls into the table, at most [`CALLS`].
    pub fn write_calls(&mut self, calls: &[Call]) {
        for (at, word) in calls.iter().take(CALLS).flatten().enumerate() {
            self.write(at, *word);
        }
    }

    /// Takes so many calls out of the table: what is mapped where is not for the guest's programs.
    pub fn clear_calls(&mut self, calls: usize) {
        for at in 0..calls.min(CALLS) * CALL_BYTES / 8 {
            self.write(at, 0);
        }
    }

    /// Makes the table's set of processors the one with this processor in it. `false` where it has no room.
    pub fn write_set(&mut self, processor: usize) -> bool {
        for word in 0..SET_BYTES / 8 {
            let bits = if word == processor / 64 {
                1 << (processor % 64)
            } else {
                0
            };
            self.write(SET / 8 + word, bits);
        }
        processor < 8 * SET_BYTES
    }

    fn write(&mut self, at: usize, word: u64) {
        assert!(at < TABLE / 8);
        // SAFETY: inside the table, which only this process writes to.
        unsafe { self.table.add(at).write_volatile(word) };
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the process is ours, and takes no part in anything any more. Where another thread traces it,
        // that one's end is its end, too.
        unsafe {
            let process = self.descriptor.as_raw_fd();
            libc::syscall(libc::SYS_pidfd_send_signal, process, libc::SIGKILL, 0, 0);
            libc::waitpid(self.pid, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG);
        }
        // SAFETY: `start` mapped it, and nobody uses it any more.
        unsafe { libc::munmap(self.table.as_ptr().cast(), TABLE) };
    }
}

/// An address for the stub that no program finds by chance, away from where Linux puts programs, libraries
/// and stacks.
fn place() -> io::Result<u64> {
    const FIRST: u64 = 0x1000_0000_0000;
    const LAST: u64 = 0x5000_0000_0000;
    let mut random = 0u64;
    // SAFETY: the buffer is eight bytes of a local variable.
    check(unsafe { libc::getrandom((&raw mut random).cast(), 8, 0) } as i64)?;
    Ok((FIRST + random % (LAST - FIRST)) & !(PAGE as u64 - 1))
}

/// In the new process: keeps two descriptors, maps the stub and its table, gives up every system call that
/// it does not need, and waits.
///
/// # Safety
/// For the child of a `fork` by process `parent` only, of which nothing is left.
unsafe fn become_helper(ram: i32, table: i32, stub: u64, parent: i32) -> ! {
    let code = stub::code();
    let at = |offset: usize| std::ptr::with_exposed_provenance_mut::<libc::c_void>(stub as usize + offset);
    let fixed = libc::MAP_FIXED_NOREPLACE;
    // SAFETY: system calls with numbers, or with pointers to what lives; the code fits into its page.
    unsafe {
        let end = |done: bool| {
            if !done {
                libc::_exit(1);
            }
        };
        end(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0);
        // A parent that ended before sends no signal.
        end(libc::getppid() == parent);
        // The terminal's signals are not for it.
        end(libc::setsid() != -1);
        // Out of the way of both numbers.
        let ram = libc::fcntl(ram, libc::F_DUPFD, 2);
        let table = libc::fcntl(table, libc::F_DUPFD, 2);
        end(libc::dup2(ram, RAM) == RAM && libc::dup2(table, TABLE_FILE) == TABLE_FILE);
        end(libc::syscall(libc::SYS_close_range, 2u32, u32::MAX, 0u32) == 0);
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        end(libc::mmap(at(0), PAGE, writable, anonymous, -1, 0) == at(0));
        at(0).cast::<u8>().write_bytes(0xcc, PAGE);
        at(0)
            .cast::<u8>()
            .copy_from_nonoverlapping(code.as_ptr(), code.len());
        end(libc::mprotect(at(0), PAGE, libc::PROT_READ | libc::PROT_EXEC) == 0);
        let shared = libc::MAP_SHARED | fixed;
        end(libc::mmap(at(PAGE), TABLE, libc::PROT_READ, shared, TABLE_FILE, 0) == at(PAGE));
        end(libc::close(TABLE_FILE) == 0);
        // Time is the guest's.
        end(libc::prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV) == 0);
        end(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        let program = filter();
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast_mut(),
        };
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        end(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program) == 0);
        loop {
            libc::syscall(libc::SYS_pause);
        }
    }
}

/// The calls that the stub makes. All others, and the host's own answers to calls of the vsyscall page, raise
/// SIGSYS.
fn filter() -> [libc::sock_filter; 15] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    /// Offsets in `struct seccomp_data`; the lower half of an argument comes first.
    const NUMBER: u32 = 0;
    const ARCHITECTURE: u32 = 4;
    const fn argument(n: u32) -> u32 {
        16 + 8 * n
    }
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let call = |number: libc::c_long| number as u32;
    [
        op(LOAD, ARCHITECTURE, 0, 0),
        op(EQUAL, AUDIT_ARCH_X86_64, 0, 12),
        op(LOAD, NUMBER, 0, 0),
        op(EQUAL, call(libc::SYS_munmap), 9, 0),
        op(EQUAL, call(libc::SYS_pause), 8, 0),
        op(EQUAL, call(libc::SYS_restart_syscall), 7, 0),
        op(EQUAL, call(libc::SYS_rseq), 6, 0),
        op(EQUAL, call(libc::SYS_sched_setaffinity), 3, 0),
        op(EQUAL, call(libc::SYS_mmap), 0, 5),
        // Its file: guest RAM, and nothing else.
        op(LOAD, argument(4), 0, 0),
        op(EQUAL, RAM as u32, 2, 3),
        // Its own processor, and no other process's.
        op(LOAD, argument(0), 0, 0),
        op(EQUAL, 0, 0, 1),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        op(RETURN, libc::SECCOMP_RET_TRAP, 0, 0),
    ]
}
