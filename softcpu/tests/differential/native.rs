//! Cases run by the processor itself, in a forked child.
//!
//! The child needs no assembler and no debugger: it raises a signal, and from then on lives in its signal
//! handler. Returning from the handler loads the registers of the next case from the signal frame; the
//! `int3` behind the case's code, or the exception that it raises, leads back into the handler with all
//! registers in the frame. One case costs one signal.

use super::case::*;
use std::cell::UnsafeCell;
use std::mem::{size_of, zeroed};
use std::ptr::null_mut;
use std::sync::Mutex;

/// Cases handed to one child.
pub const BATCH: usize = 512;
/// A child that makes no progress for so long is ended; the case counts as cut short.
const TIME_LIMIT_SECONDS: u32 = 20;
/// What the outcome of a case that never ended says.
const CUT_SHORT: u32 = 255;

/// Shared by parent and child.
#[repr(C)]
struct Shared {
    count: usize,
    /// The case that runs; `count` at the end.
    current: usize,
    started: bool,
    cases: [Case; BATCH],
    outcomes: [Outcome; BATCH],
}

/// The mapping, reachable from the signal handler.
struct Mapping(UnsafeCell<*mut Shared>);

// SAFETY: the pointer is written once under LOCK before any child exists; the handler runs in a child that
// has one thread.
unsafe impl Sync for Mapping {}

static SHARED: Mapping = Mapping(UnsafeCell::new(null_mut()));
/// Tests of one process take turns: they share the mapping.
static LOCK: Mutex<()> = Mutex::new(());

/// Runs the cases and gives their outcomes.
pub fn run(cases: &[Case]) -> Vec<Outcome> {
    let _turn = LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    cases.chunks(BATCH).flat_map(run_batch).collect()
}

fn run_batch(cases: &[Case]) -> Vec<Outcome> {
    // SAFETY: the mapping is ours under LOCK, large enough, and all-zero bytes are valid for its types.
    let shared = unsafe { &mut *shared() };
    shared.count = cases.len();
    shared.current = 0;
    shared.cases[..cases.len()].copy_from_slice(cases);
    while shared.current < cases.len() {
        shared.started = false;
        let first = shared.current;
        run_child();
        if shared.current < cases.len() {
            // The child died or hung in this case; go on behind it.
            shared.outcomes[shared.current] = cut_short(&cases[shared.current]);
            shared.current += 1;
        }
        assert!(shared.current > first, "the child made no progress");
    }
    shared.outcomes[..cases.len()].to_vec()
}

fn cut_short(case: &Case) -> Outcome {
    Outcome {
        vector: CUT_SHORT,
        error: 0,
        address: 0,
        state: case.state,
        memory: [0; PAGE],
    }
}

fn shared() -> *mut Shared {
    // SAFETY: called under LOCK only; see Mapping.
    unsafe {
        if (*SHARED.0.get()).is_null() {
            *SHARED.0.get() = map(0, size_of::<Shared>(), libc::MAP_SHARED, READ_WRITE).cast();
        }
        *SHARED.0.get()
    }
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Maps anonymous memory, at a fixed address unless it is zero.
fn map(address: u64, size: usize, kind: i32, protection: i32) -> *mut u8 {
    let fixed = if address == 0 {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    let flags = kind | libc::MAP_ANONYMOUS | fixed;
    // SAFETY: a new anonymous mapping that replaces nothing.
    let mapped = unsafe { libc::mmap(address as *mut _, size, protection, flags, -1, 0) };
    assert!(
        mapped != libc::MAP_FAILED,
        "mmap: {}",
        std::io::Error::last_os_error()
    );
    mapped.cast()
}

fn run_child() {
    // SAFETY: the child only calls what is safe after fork in a threaded process (system calls and
    // memory copies), and leaves through _exit.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork: {}", std::io::Error::last_os_error());
        if child == 0 {
            child_main();
        }
        let mut status = 0;
        while libc::waitpid(child, &mut status, 0) < 0 {}
    }
}

/// The child: pages, handlers, and the first signal.
///
/// # Safety
/// Called in a forked child with one thread.
unsafe fn child_main() -> ! {
    map(CODE, PAGE, libc::MAP_PRIVATE, READ_WRITE | libc::PROT_EXEC);
    map(DATA, PAGE, libc::MAP_PRIVATE, READ_WRITE);
    map(CONSTANTS, PAGE, libc::MAP_PRIVATE, READ_WRITE);
    // SAFETY: the pages were just mapped; the system calls get valid arguments; the new data segment
    // is the flat one that Linux provides; nothing here uses GS.
    unsafe {
        fill_memory(0, &mut *(CONSTANTS as *mut [u8; PAGE]));
        libc::mprotect(CONSTANTS as *mut _, PAGE, libc::PROT_READ);
        let size = 1 << 18;
        let stack = libc::stack_t {
            ss_sp: map(0, size, libc::MAP_PRIVATE, READ_WRITE).cast(),
            ss_flags: 0,
            ss_size: size,
        };
        libc::sigaltstack(&stack, null_mut());
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGBUS,
            libc::SIGILL,
            libc::SIGFPE,
        ] {
            libc::sigaction(signal, &action, null_mut());
        }
        libc::syscall(libc::SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, GS_BASE);
        std::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", in(reg) SS as u32);
        libc::raise(libc::SIGTRAP);
        libc::_exit(1)
    }
}

extern "C" fn on_signal(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid context; the shared mapping was inherited; the pages are ours.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let shared = &mut **SHARED.0.get();
        if shared.started {
            leave(context, &mut shared.outcomes[shared.current]);
            shared.current += 1;
        }
        shared.started = true;
        if shared.current == shared.count {
            libc::_exit(0);
        }
        libc::alarm(TIME_LIMIT_SECONDS);
        enter(context, &shared.cases[shared.current]);
    }
}

/// The indices of the general registers in a signal frame, in encoding order.
const ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Offset in the FXSAVE image of the magic that says that extended state follows, and of the header's
/// bitmap of valid components (Linux, `struct _fpx_sw_bytes`; Intel SDM vol. 1, 13.4.2).
const MAGIC_OFFSET: usize = 464;
const MAGIC: u32 = 0x4650_5853;
const COMPONENTS_OFFSET: usize = 512;
/// What the kernel saves, by component, and the component of the YMM registers' upper halves with its place in
/// the standard format.
const SAVED_OFFSET: usize = 472;
const YMM: u64 = 1 << 2;
const YMM_OFFSET: usize = 576;
/// The end of what the image holds of registers; behind it is the kernel's.
const FX_REGISTERS: usize = 416;

/// # Safety
/// `context` is the live frame of the handler; the code and data pages are mapped.
unsafe fn enter(context: &mut libc::ucontext_t, case: &Case) {
    // SAFETY: see above; the pages are writable and the frame's FP area is at least 512 bytes, 576 with
    // the magic, 832 where the kernel saves the YMM registers.
    unsafe {
        let code = &mut *(CODE as *mut [u8; PAGE]);
        code.fill(0xcc);
        let (start, length) = ((START - CODE) as usize, case.length as usize);
        code[start..start + length].copy_from_slice(&case.code[..length]);
        fill_memory(case.memory_seed, &mut *(DATA as *mut [u8; PAGE]));
        let registers = &mut context.uc_mcontext.gregs;
        for (index, value) in ORDER.iter().zip(case.state.gpr) {
            registers[*index as usize] = value as i64;
        }
        registers[libc::REG_RIP as usize] = START as i64;
        registers[libc::REG_EFL as usize] = case.state.rflags as i64;
        let cs = if case.bitness == 64 { CS64 } else { CS32 };
        registers[libc::REG_CSGSFS as usize] = cs as i64 | (SS as i64) << 48;
        let fp = context.uc_mcontext.fpregs.cast::<u8>();
        std::ptr::copy_nonoverlapping(case.state.fx.as_ptr(), fp, FX_REGISTERS);
        if fp.add(MAGIC_OFFSET).cast::<u32>().read_unaligned() == MAGIC {
            let components = fp.add(COMPONENTS_OFFSET).cast::<u64>();
            let ymm = fp.add(SAVED_OFFSET).cast::<u64>().read_unaligned() & YMM;
            components.write_unaligned(components.read_unaligned() | 3 | ymm);
            if ymm != 0 {
                let upper = case.state.upper;
                std::ptr::copy_nonoverlapping(upper.as_ptr().cast(), fp.add(YMM_OFFSET), size_of_val(&upper));
            }
        }
    }
}

/// # Safety
/// `context` is the live frame of the handler; the data page is mapped.
unsafe fn leave(context: &libc::ucontext_t, outcome: &mut Outcome) {
    let registers = &context.uc_mcontext.gregs;
    outcome.vector = registers[libc::REG_TRAPNO as usize] as u32;
    outcome.error = registers[libc::REG_ERR as usize] as u32;
    outcome.address = registers[libc::REG_CR2 as usize] as u64;
    for (index, slot) in ORDER.iter().zip(&mut outcome.state.gpr) {
        *slot = registers[*index as usize] as u64;
    }
    outcome.state.rip = registers[libc::REG_RIP as usize] as u64;
    if outcome.vector == 3 {
        outcome.state.rip = outcome.state.rip.wrapping_sub(1);
    }
    outcome.state.rflags = registers[libc::REG_EFL as usize] as u64;
    // SAFETY: see above.
    unsafe {
        let fp = context.uc_mcontext.fpregs.cast::<u8>();
        std::ptr::copy_nonoverlapping(fp, outcome.state.fx.as_mut_ptr(), FX_REGISTERS);
        outcome.state.upper = [0; 16];
        let extended = fp.add(MAGIC_OFFSET).cast::<u32>().read_unaligned() == MAGIC;
        if extended && fp.add(COMPONENTS_OFFSET).cast::<u64>().read_unaligned() & YMM != 0 {
            let upper = &mut outcome.state.upper;
            std::ptr::copy_nonoverlapping(fp.add(YMM_OFFSET), upper.as_mut_ptr().cast(), size_of_val(upper));
        }
        outcome.memory = *(DATA as *const [u8; PAGE]);
    }
}
