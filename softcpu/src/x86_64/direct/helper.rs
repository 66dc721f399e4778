//! How a helper process is driven by its tracer: its registers, its memory, and why it stops.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::process::{Process, check, ram_file, time_of};
use super::stub::{CALLS, Call, PAGE, map, stay, unmap};
use super::vectors::{Layout, Vectors};
use crate::core::interruption;

/// Where programs' addresses end: the last page below 2^47 is in no process.
pub(super) const END: u64 = 0x7fff_ffff_f000;

const PTRACE_SYSEMU: libc::c_uint = 31;
const PTRACE_GETREGSET: libc::c_uint = 0x4204;
const PTRACE_SETREGSET: libc::c_uint = 0x4205;
const NT_X86_XSTATE: u64 = 0x202;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const RSEQ_FLAG_UNREGISTER: u64 = 1;

/// Why a helper stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Its tracer was interrupted, or something was sent to it that means nothing.
    Interrupted,
    /// It was about to make a system call: its instruction lies just before RIP.
    SystemCall,
    /// It had used registers that the guest's processor does not have.
    Beyond,
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

/// A helper.
#[derive(Debug)]
pub struct Helper {
    process: Process,
    attached: bool,
    has_breakpoints: bool,
    /// Where the host has which registers, and room for all that it has.
    layout: Layout,
    area: Vec<u64>,
    /// The area as it is when a program begins.
    initial: Vec<u64>,
}

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
    helper.call(&[map(helper.process.stub + (1 << 30), PAGE as u64, 0, protection)])
}

impl Helper {
    /// Starts one that can map `ram`, a file. It waits until a thread drives it, and ends with that thread.
    ///
    /// # Errors
    /// When the host has no process or no memory to give.
    pub fn start(ram: BorrowedFd) -> io::Result<Helper> {
        interruption::install(interrupt)?;
        Ok(Helper {
            process: Process::start(ram)?,
            attached: false,
            has_breakpoints: false,
            layout: Layout::of_host(),
            area: Vec::new(),
            initial: Vec::new(),
        })
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.pid as u32
    }

    /// Addresses of its own, at which no page of the guest may be.
    pub fn own(&self) -> Range<u64> {
        self.process.own()
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
            self.set_breakpoints(&[self.process.stub]).is_ok() && self.set_breakpoints(&[]).is_ok();
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
        let words = self.area.len();
        self.trace_area(PTRACE_SETREGSET, words)?;
        self.trace_area(PTRACE_GETREGSET, words)?;
        if self.initial.is_empty() {
            self.initial.clone_from(&self.area);
        }
        // Kernels of Linux 5.14 to 6.1 let nobody write PKRU so.
        match self.layout.is_beyond(&self.area, &self.initial) {
            true => Err(io::Error::other(
                "the host keeps registers that programs wrote to",
            )),
            false => Ok(()),
        }
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

    /// Lets nothing of the guest be mapped, and nothing be in registers that the guest does not know of: first
    /// what this process had there, later what another program left.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.clear_extended_state()?;
        let own = self.own();
        self.call(&[unmap(0, own.start), unmap(own.end, END - own.end)])
    }

    /// Lets it make system calls: at most [`CALLS`].
    pub(super) fn call(&mut self, calls: &[Call]) -> io::Result<()> {
        let calls = &calls[..calls.len().min(CALLS)];
        self.process.write_calls(calls);
        let stub = self.process.stub;
        // SAFETY: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        registers.orig_rax = u64::MAX;
        registers.rip = stub;
        registers.r12 = stub + PAGE as u64;
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
        self.process.clear_calls(calls.len());
        if registers.r13 != 0 {
            let error = (registers.rax as i64).wrapping_neg();
            return Err(io::Error::from_raw_os_error(error as i32));
        }
        Ok(())
    }

    /// Lets [`interrupt`] stop it from now on.
    pub(super) fn set_interruptible(&self) {
        RUNNING.set(self.process.pid);
    }

    /// Lets [`interrupt`] do nothing.
    pub(super) fn set_none_interruptible() {
        RUNNING.set(0);
    }

    /// The host's time that it has run for. Time on the wall would be others', too, where the host is busy.
    pub(super) fn time(&self) -> Duration {
        // The clock of a process by its number: CPUCLOCK_SCHED (`include/linux/posix-timers_types.h`).
        time_of(!self.process.pid << 3 | 2)
    }

    /// Runs the guest's code until it stops.
    pub(super) fn run(&mut self) -> io::Result<Stop> {
        self.trace(PTRACE_SYSEMU, 0, 0)?;
        self.wait()
    }

    fn wait(&mut self) -> io::Result<Stop> {
        let mut status = 0;
        // SAFETY: the kernel writes one number, which lives until it returns.
        while unsafe { libc::waitpid(self.process.pid, &raw mut status, libc::__WALL) } == -1 {
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

    /// Its vector registers. `None` where the program used others than these.
    pub(super) fn vectors(&mut self) -> io::Result<Option<Vectors>> {
        self.trace_area(PTRACE_GETREGSET, self.layout.words())?;
        if self.layout.may_be_beyond(&self.area) {
            self.trace_area(PTRACE_GETREGSET, self.area.len())?;
            if self.layout.is_beyond(&self.area, &self.initial) {
                self.clear_extended_state()?;
                return Ok(None);
            }
        }
        Ok(Some(self.layout.read(&self.area)))
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
        let result = unsafe { libc::syscall(libc::SYS_ptrace, request, self.process.pid, address, data) };
        check(result).map(drop)
    }

    /// Keeps it on the processor of the host that the calling thread is on: the two never run at once.
    pub(super) fn stay_on(&mut self, processor: usize) -> io::Result<()> {
        if self.process.write_set(processor) {
            self.call(&[stay(self.process.stub)])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    const ROOM: u64 = PAGE as u64;

    /// A helper that this thread drives. `None` where the host forbids it.
    fn helper() -> Option<Helper> {
        try_out().ok()?;
        let ram = ram_file().unwrap();
        ram.set_len(ROOM).unwrap();
        let mut helper = Helper::start(ram.as_fd()).unwrap();
        helper.attach().unwrap();
        Some(helper)
    }

    /// What the program of a helper says, which its tracer has put there, does not count.
    fn is_refused(helper: &mut Helper, call: Call) -> bool {
        let refused = helper
            .call(&[call])
            .unwrap_err()
            .to_string()
            .contains("signal: 31");
        // And it goes on.
        helper.call(&[unmap(helper.own().end, ROOM)]).unwrap();
        refused
    }

    #[test]
    fn a_helper_makes_no_calls_but_those_that_it_needs() {
        let Some(mut helper) = helper() else { return };
        let needed = [
            // Uretprobe and uprobe, of which seccomp is not asked, and which fail where no probe is.
            335,
            336,
            libc::SYS_mmap,
            libc::SYS_munmap,
            libc::SYS_pause,
            libc::SYS_restart_syscall,
            libc::SYS_rseq,
            libc::SYS_sched_setaffinity,
        ];
        for number in (0..600).filter(|number| !needed.contains(number)) {
            assert!(
                is_refused(&mut helper, [number as u64, 0, 0, 0, 0, 0, 0]),
                "{number}"
            );
            // Of x32.
            let number = number as u64 | 1 << 30;
            assert!(is_refused(&mut helper, [number, 0, 0, 0, 0, 0, 0]), "{number:#x}");
        }
        let at = helper.own().end;
        let mapping = map(at, ROOM, 0, libc::PROT_READ);
        helper.call(&[mapping]).unwrap();
        let mut other = mapping;
        for file in [1, 2, 3, u64::from(u32::MAX), u64::MAX] {
            other[5] = file;
            assert!(is_refused(&mut helper, other), "{file}");
        }
        let others = [libc::SYS_sched_setaffinity as u64, 1, 8, at, 0, 0, 0];
        assert!(is_refused(&mut helper, others));
    }

    #[test]
    fn a_helper_ends_with_the_thread_that_drives_it() {
        let id = thread::spawn(|| {
            let helper = helper()?;
            let id = helper.id();
            // As if the thread were killed: nothing is cleaned up.
            std::mem::forget(helper);
            Some(id)
        });
        let Some(id) = id.join().unwrap() else { return };
        let mut status = 0;
        // SAFETY: the kernel writes one number, which lives until it returns.
        let ended = unsafe { libc::waitpid(id as i32, &raw mut status, libc::__WALL) };
        assert_eq!((ended as u32, libc::WTERMSIG(status)), (id, libc::SIGKILL));
    }

    #[test]
    fn a_helper_has_the_file_of_ram_and_nothing_else() {
        let Some(helper) = helper() else { return };
        let process = format!("/proc/{}", helper.id());
        let files: Vec<_> = fs::read_dir(format!("{process}/fd")).unwrap().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
        let own = helper.own();
        for line in maps.lines().filter(|line| !line.ends_with("[vsyscall]")) {
            let begin = line.split_once('-').unwrap().0;
            assert!(own.contains(&u64::from_str_radix(begin, 16).unwrap()), "{line}");
        }
    }
}
