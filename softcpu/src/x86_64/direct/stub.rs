//! The only code in a helper that is not the guest's: it makes the system calls that a table lists, and stops.
//!
//! It has no stack and no data but the table, which it can only read. Code of the guest that jumps into it
//! reaches system calls that its tracer does not let happen.
#![allow(unsafe_code)]

/// Bytes of a page of the host.
pub(super) const PAGE: usize = crate::core::page::PAGE as usize;
/// Bytes of the table of calls.
pub(super) const TABLE: usize = 4 * PAGE;
/// Bytes of one call in the table: its number and six arguments.
pub(super) const CALL_BYTES: usize = 56;
/// The most calls that are made at once.
pub(super) const CALLS: usize = 256;
/// Behind them the table has room for a set of processors.
pub(super) const SET: usize = CALLS * CALL_BYTES;
pub(super) const SET_BYTES: usize = 128;
/// The descriptor of guest RAM in the helper.
pub(super) const RAM: i32 = 0;

const _: () = assert!(SET + SET_BYTES <= TABLE);

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

/// Keeps the helper, whose stub lies at `stub`, on the processors of the set in its table.
pub(super) fn stay(stub: u64) -> Call {
    let set = stub + (PAGE + SET) as u64;
    [
        libc::SYS_sched_setaffinity as u64,
        0,
        SET_BYTES as u64,
        set,
        0,
        0,
        0,
    ]
}

// R12 is the next call, R13 how many are left. A call that fails ends the loop; RAX says why.
std::arch::global_asm!(
    ".pushsection .rodata.kiln_direct_stub, \"a\"",
    ".globl kiln_direct_stub",
    ".hidden kiln_direct_stub",
    "kiln_direct_stub:",
    "2:",
    "mov rax, [r12]",
    "mov rdi, [r12 + 8]",
    "mov rsi, [r12 + 16]",
    "mov rdx, [r12 + 24]",
    "mov r10, [r12 + 32]",
    "mov r8, [r12 + 40]",
    "mov r9, [r12 + 48]",
    "syscall",
    "test rax, rax",
    "js 3f",
    "add r12, 56",
    "dec r13",
    "jnz 2b",
    "3:",
    "int3",
    ".globl kiln_direct_stub_end",
    ".hidden kiln_direct_stub_end",
    "kiln_direct_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static kiln_direct_stub: u8;
    static kiln_direct_stub_end: u8;
}

/// The code. It runs at any address.
pub(super) fn code() -> &'static [u8] {
    let begin = &raw const kiln_direct_stub;
    let end = &raw const kiln_direct_stub_end;
    // SAFETY: the two symbols enclose bytes of this program that never change.
    unsafe { std::slice::from_raw_parts(begin, end as usize - begin as usize) }
}
