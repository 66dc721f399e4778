//! The only code in a helper that is not the guest's: it makes the system calls that a table lists, and stops.
//!
//! It has no stack and no data but the table, which it can only read. Code of the guest that jumps into it
//! reaches system calls that its tracer does not let happen.
#![allow(unsafe_code)]

/// Bytes of one call in the table: its number and six arguments.
pub(super) const CALL_BYTES: usize = 56;

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
