//! A process whose address space is the guest's user half, and how its tracer drives it.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use super::stub::{self, CALL_BYTES};
use super::vectors::{Layout, Vectors};
use crate::core::interruption;

/// Bytes of a page of the host.
const PAGE: usize = 4096;
/// Bytes of the table of calls.
const TABLE: usize = 4 * PAGE;
/// The most calls that are made at once.
pub(super) const CALLS: usize = TABLE / CALL_BYTES;
/// Where programs' addresses end: the last page below 2^47 is in no process.
const END: u64 = 0x7fff_ffff_f000;
/// The descriptor of guest RAM in the helper.
const RAM: i32 = 0;
/// And of the table, until it is mapped.
const TABLE_FILE: i32 = 1;

const PTRACE_SYSEMU: libc::c_uint = 31;
const PTRACE_GETREGSET: libc::c_uint = 0x4204;
const PTRACE_SETREGSET: libc::c_uint = 0x4205;
const NT_X86_XSTATE: u64 = 0x202;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const RSEQ_FLAG_UNREGISTER: u64 = 1;

/// A system call: its number and arguments.
pub(super) type Call = [u64; 7];

/// Maps a piece of guest RAM, at once: page faults of the host would cost more.
pub(super) fn map(at: u64, len: u64, offset: u64, protection: i32) -> Call {
    let flags = (libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE) as u64;
    let number = libc::SYS_mmap as u64;
    [number, at, len, protection as u64, flags, RAM as u64, offset]
}

/// Lets nothing be mapped there.
pub(super) fn unmap(at: u64, len: u64) -> Call {
    [libc::SYS_munmap as u64, at, len, 0, 0, 0, 0]
}

/// Why a helper stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its tracer was interrupted, or something was sent to it that means nothing.
    Interrupted,
    /// It was about to make a system call: its instruction lies just before RIP.
    SystemCall,
    /// An exception.
    Exception {
        /// The signal that it would raise.
        signal: i32,
        /// `si_code`.
        code: i32,
        /// `si_addr`, for those that have one.
        address: u64,
    },
}

/// The process.
#[derive(Debug)]
pub struct Helper {
    pid: i32,
    /// The same process, for its end.
    process: OwnedFd,
    /// Address of the stub; the table follows it.
    stub: u64,
    /// The table, as this process sees it.
    table: NonNull<u64>,
    attached: bool,
    has_breakpoints: bool,
    /// Where the host has which registers, and room for all that it has.
    layout: Layout,
    area: Vec<u64>,
}

// SAFETY: the table belongs to the helper alone.
unsafe impl Send for Helper {}

thread_local! {
    /// The helper that an interruption of this thread stops. Read by a signal's handler, so it is constant at
    /// first and has no destructor.
    static RUNNING: Cell<i32> = const { Cell::new(0) };
}

/// The handler of the interruption: it stops the helper. Where that is stopped already, it stops once more
/// when it goes on, so that no interruption is lost.
extern "C" fn interrupt(_: libc::c_int) {
    let pid = RUNNING.get();
    if pid != 0 {
        // SAFETY: the thread's own `errno`, which is put back.
        unsafe {
            let errno = *libc::__errno_location();
            libc::syscall(libc::SYS_ptrace, libc::PTRACE_INTERRUPT, pid, 0, 0);
            *libc::__errno_location() = errno;
        }
    }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
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

/// Tries out whether this host lets a process be driven so.
///
/// # Errors
/// With the host's reason where it does not.
pub fn try_out() -> io::Result<()> {
    let ram = ram_file()?;
    ram.set_len(PAGE as u64)?;
    let mut helper = Helper::start(ram.as_fd())?;
    helper.attach()?;
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    helper.call(&[map(helper.stub + (1 << 30), PAGE as u64, 0, protection)])
}

impl Helper {
    /// Starts one that can map `ram`, a file. It waits until a thread drives it, and ends with that thread.
    ///
    /// # Errors
    /// When the host has no process or no memory to give.
    pub fn start(ram: BorrowedFd) -> io::Result<Helper> {
        interruption::install(interrupt)?;
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
        // SAFETY: the child makes system calls only, and never comes back.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { become_helper(ram.as_raw_fd(), table_file.as_raw_fd(), stub) };
        }
        check(pid.into())?;
        // SAFETY: takes numbers only, and the descriptor that comes back belongs to nobody. A child keeps its
        // number until it is waited for.
        let process = unsafe {
            let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
            OwnedFd::from_raw_fd(check(process)? as i32)
        };
        Ok(Helper {
            pid,
            process,
            stub,
            table,
            attached: false,
            has_breakpoints: false,
            layout: Layout::of_host(),
            area: Vec::new(),
        })
    }

    /// Addresses of its own, at which no page of the guest may be: the stub's and the table's.
    pub(super) fn own(&self) -> Range<u64> {
        self.stub..self.stub + (PAGE + TABLE) as u64
    }

    /// Becomes its tracer, and lets nothing be mapped in it.
    pub(super) fn attach(&mut self) -> io::Result<()> {
        if self.attached {
            return Ok(());
        }
        let options = (libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD) as u64;
        self.trace(libc::PTRACE_SEIZE, 0, options)?;
        self.attached = true;
        self.wait_until_it_waits()?;
        // What the C library registered of a thread goes with the memory that it lies in.
        let mut rseq = [0u64; 3];
        self.trace(PTRACE_GET_RSEQ_CONFIGURATION, 24, (&raw mut rseq) as u64)?;
        let [pointer, sizes, _] = rseq;
        if pointer != 0 {
            let (size, signature) = (sizes & 0xffff_ffff, sizes >> 32);
            let number = libc::SYS_rseq as u64;
            let call = [number, pointer, size, RSEQ_FLAG_UNREGISTER, signature, 0, 0];
            self.call(&[call])?;
        }
        // Where the host gives none, a little more is interpreted.
        self.has_breakpoints =
            self.set_breakpoints(&[self.stub]).is_ok() && self.set_breakpoints(&[]).is_ok();
        self.clear()
    }

    /// Whether [`Helper::set_breakpoints`] can be used.
    pub(super) fn has_breakpoints(&self) -> bool {
        self.has_breakpoints
    }

    /// Lets it stop before the instructions at these addresses, at most four.
    pub(super) fn set_breakpoints(&mut self, places: &[u64]) -> io::Result<()> {
        let register = |n: usize| (std::mem::offset_of!(libc::user, u_debugreg) + 8 * n) as u64;
        let mut enable = 0;
        self.trace(libc::PTRACE_POKEUSER, register(7), enable)?;
        for (n, place) in places.iter().take(4).enumerate() {
            self.trace(libc::PTRACE_POKEUSER, register(n), *place)?;
            enable |= 1 << (2 * n);
        }
        self.trace(libc::PTRACE_POKEUSER, register(7), enable)
    }

    /// Gives all registers that XSAVE knows their initial state.
    fn clear_extended_state(&mut self) -> io::Result<()> {
        if self.area.is_empty() {
            // As it is first, for its size: the host takes nothing shorter. None has more.
            self.area = vec![0; 2048];
            let bytes = self.trace_area(PTRACE_GETREGSET, 2048)?;
            if bytes < 8 * self.layout.words() {
                return Err(io::Error::other(
                    "the host's vector registers are not as CPUID says",
                ));
            }
            self.area.truncate(bytes / 8);
        }
        // The header says which parts are not as at first: none.
        self.area.fill(0);
        self.trace_area(PTRACE_SETREGSET, self.area.len()).map(drop)
    }

    /// Reads or writes so many words of the XSAVE area. Returns how many bytes there were.
    fn trace_area(&mut self, request: libc::c_uint, words: usize) -> io::Result<usize> {
        let mut part = libc::iovec {
            iov_base: self.area.as_mut_ptr().cast(),
            iov_len: 8 * words.min(self.area.len()),
        };
        self.trace(request, NT_X86_XSTATE, (&raw mut part) as u64)?;
        Ok(part.iov_len)
    }

    /// Stops it in the call in which it waits: it has given up then what it had.
    fn wait_until_it_waits(&mut self) -> io::Result<()> {
        loop {
            self.trace(libc::PTRACE_INTERRUPT, 0, 0)?;
            self.wait()?;
            let waits = self.registers()?.orig_rax == libc::SYS_pause as u64;
            if waits {
                return Ok(());
            }
            self.trace(libc::PTRACE_CONT, 0, 0)?;
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Lets nothing of the guest be mapped, and nothing be in registers that the guest does not know of: first what this process had there, later what another program left.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.clear_extended_state()?;
        let after = self.stub + (PAGE + TABLE) as u64;
        self.call(&[unmap(0, self.stub), unmap(after, END - after)])
    }

    /// Lets it make system calls: at most [`CALLS`].
    pub(super) fn call(&mut self, calls: &[Call]) -> io::Result<()> {
        let calls = &calls[..calls.len().min(CALLS)];
        let words = calls.len() * CALL_BYTES / 8;
        for (at, word) in calls.iter().flatten().enumerate() {
            // SAFETY: the table has room for `CALLS`, and only this process writes to it.
            unsafe { self.table.add(at).write_volatile(*word) };
        }
        // SAFETY: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        registers.orig_rax = u64::MAX;
        registers.rip = self.stub;
        registers.r12 = self.stub + PAGE as u64;
        registers.r13 = calls.len() as u64;
        registers.eflags = 0x202;
        (registers.cs, registers.ss) = (0x33, 0x2b);
        self.set_registers(&registers)?;
        loop {
            self.trace(libc::PTRACE_CONT, 0, 0)?;
            match self.wait()? {
                Stop::Exception {
                    signal: libc::SIGTRAP,
                    ..
                } => break,
                Stop::Interrupted => {}
                other => return Err(io::Error::other(format!("a helper's calls ended in {other:?}"))),
            }
        }
        let registers = self.registers()?;
        for at in 0..words {
            // What is mapped where is not for the guest's programs.
            // SAFETY: as above.
            unsafe { self.table.add(at).write_volatile(0) };
        }
        if registers.r13 != 0 {
            let error = (registers.rax as i64).wrapping_neg();
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        Ok(())
    }

    /// Lets [`interrupt`] stop it from now on.
    pub(super) fn set_interruptible(&self) {
        RUNNING.set(self.pid);
    }

    /// Lets [`interrupt`] do nothing.
    pub(super) fn set_none_interruptible() {
        RUNNING.set(0);
    }

    /// The host's time that it has run for. Time on the wall would be others', too, where the host is busy.
    pub(super) fn time(&self) -> Duration {
        // The clock of a process by its number: CPUCLOCK_SCHED (`include/linux/posix-timers_types.h`).
        let clock = !self.pid << 3 | 2;
        // SAFETY: numbers only, for which zeros are valid.
        let mut time: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: `time` lives until the call returns. Where it fails, no time passes.
        unsafe { libc::clock_gettime(clock, &raw mut time) };
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// Runs the guest's code until it stops.
    pub(super) fn run(&mut self) -> io::Result<Stop> {
        self.trace(PTRACE_SYSEMU, 0, 0)?;
        self.wait()
    }

    fn wait(&mut self) -> io::Result<Stop> {
        let mut status = 0;
        // SAFETY: the kernel writes one number, which lives until it returns.
        while unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if !libc::WIFSTOPPED(status) {
            self.attached = false;
            return Err(io::Error::other("a helper has ended"));
        }
        if status >> 16 != 0 {
            return Ok(Stop::Interrupted);
        }
        match libc::WSTOPSIG(status) {
            signal if signal == libc::SIGTRAP | 0x80 => Ok(Stop::SystemCall),
            signal @ (libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGILL
            | libc::SIGFPE
            | libc::SIGTRAP
            | libc::SIGSYS) => {
                // SAFETY: plain numbers.
                let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
                self.trace(libc::PTRACE_GETSIGINFO, 0, (&raw mut info) as u64)?;
                // Sent by a program and not by the processor.
                if info.si_code <= 0 {
                    return Ok(Stop::Interrupted);
                }
                Ok(Stop::Exception {
                    signal,
                    code: info.si_code,
                    // SAFETY: these signals have an address there, or nothing of interest.
                    address: unsafe { info.si_addr() } as u64,
                })
            }
            _ => Ok(Stop::Interrupted),
        }
    }

    pub(super) fn registers(&mut self) -> io::Result<libc::user_regs_struct> {
        // SAFETY: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.trace(libc::PTRACE_GETREGS, 0, (&raw mut registers) as u64)?;
        Ok(registers)
    }

    pub(super) fn set_registers(&mut self, registers: &libc::user_regs_struct) -> io::Result<()> {
        self.trace(libc::PTRACE_SETREGS, 0, std::ptr::from_ref(registers) as u64)
    }

    pub(super) fn vectors(&mut self) -> io::Result<Vectors> {
        self.trace_area(PTRACE_GETREGSET, self.layout.words())?;
        Ok(self.layout.read(&self.area))
    }

    /// Gives it these registers; `before` is what it has. Writing the whole area costs the host an allocation,
    /// so that it is only done where there is no other way.
    pub(super) fn set_vectors(&mut self, vectors: &Vectors, before: Option<&Vectors>) -> io::Result<()> {
        match before {
            Some(before) if before == vectors => Ok(()),
            Some(before) if before.upper == vectors.upper => {
                self.trace(libc::PTRACE_SETFPREGS, 0, vectors.legacy.as_ptr() as u64)
            }
            _ => {
                self.layout.write(vectors, &mut self.area);
                self.trace_area(PTRACE_SETREGSET, self.area.len()).map(drop)
            }
        }
    }

    fn trace(&mut self, request: libc::c_uint, address: u64, data: u64) -> io::Result<()> {
        // SAFETY: where `data` is a pointer, the callers give one to something as large as the request needs,
        // which lives until the call returns.
        let result = unsafe { libc::syscall(libc::SYS_ptrace, request, self.pid, address, data) };
        check(result).map(drop)
    }

    /// Keeps it on the processor of the host that the calling thread is on: the two never run at once.
    pub(super) fn stay_on(&self, processor: i32) {
        let mut set = [0u64; 16];
        let Some(word) = set.get_mut(processor as usize / 64) else {
            return;
        };
        *word = 1 << (processor % 64);
        // SAFETY: the set lives until the call returns. Where it fails, things are slower.
        unsafe { libc::sched_setaffinity(self.pid, 128, set.as_ptr().cast()) };
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // SAFETY: the process is ours, and takes no part in anything any more. Where another thread traces it,
        // that one's end is its end, too.
        unsafe {
            let process = self.process.as_raw_fd();
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
/// For the child of a `fork` only, of which nothing is left.
unsafe fn become_helper(ram: i32, table: i32, stub: u64) -> ! {
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
fn filter() -> [libc::sock_filter; 12] {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
    let op = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let call = |number: libc::c_long| number as u32;
    [
        op(LOAD, 4, 0, 0),
        op(EQUAL, AUDIT_ARCH_X86_64, 0, 9),
        op(LOAD, 0, 0, 0),
        op(EQUAL, call(libc::SYS_munmap), 6, 0),
        op(EQUAL, call(libc::SYS_pause), 5, 0),
        op(EQUAL, call(libc::SYS_restart_syscall), 4, 0),
        op(EQUAL, call(libc::SYS_rseq), 3, 0),
        op(EQUAL, call(libc::SYS_mmap), 0, 3),
        // Its file: guest RAM, and nothing else.
        op(LOAD, 48, 0, 0),
        op(EQUAL, RAM as u32, 0, 1),
        op(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        op(RETURN, libc::SECCOMP_RET_TRAP, 0, 0),
    ]
}
