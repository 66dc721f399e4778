//! Accesses on x86-64 hosts: one MOV each, in assembly. Rust has no atomic access that is not aligned, and
//! distinguishing the two would cost as much as the access. The compiler neither splits nor merges them, and
//! keeps their order.

use std::arch::asm;

use super::Scalar;

macro_rules! mov {
    ($name:ident, $t:ty, $class:ident, $operand:literal) => {
        pub(crate) mod $name {
            use std::arch::asm;

            #[inline(always)]
            pub unsafe fn load(host: usize) -> $t {
                let value: $t;
                // SAFETY: the caller promises memory there; the instruction needs no alignment.
                unsafe {
                    asm!(concat!("mov {value", $operand, "}, [{host}]"), host = in(reg) host, value = lateout($class) value,
                        options(readonly, nostack, preserves_flags));
                }
                value
            }

            #[inline(always)]
            pub unsafe fn store(host: usize, value: $t) {
                // SAFETY: as above.
                unsafe {
                    asm!(concat!("mov [{host}], {value", $operand, "}"), host = in(reg) host, value = in($class) value,
                        options(nostack, preserves_flags));
                }
            }
        }
    };
}
mov!(byte, u8, reg_byte, "");
mov!(word, u16, reg, ":x");
mov!(dword, u32, reg, ":e");
mov!(qword, u64, reg, ":r");

pub(crate) mod xmmword {
    use std::arch::asm;
    use std::arch::x86_64::__m128i;

    #[inline(always)]
    pub unsafe fn load(host: usize) -> u128 {
        let value: __m128i;
        // SAFETY: the caller promises memory there; the instruction needs no alignment.
        unsafe {
            asm!("movdqu {value}, [{host}]", host = in(reg) host, value = lateout(xmm_reg) value,
                options(readonly, nostack, preserves_flags));
        }
        // SAFETY: both are 16 bytes, and any are valid.
        unsafe { std::mem::transmute(value) }
    }

    #[inline(always)]
    pub unsafe fn store(host: usize, value: u128) {
        // SAFETY: both are 16 bytes, and any are valid.
        let value: __m128i = unsafe { std::mem::transmute(value) };
        // SAFETY: as in `load`.
        unsafe {
            asm!("movdqu [{host}], {value}", host = in(reg) host, value = in(xmm_reg) value,
                options(nostack, preserves_flags));
        }
    }
}

/// Compares and exchanges an unaligned operand as one, where the host can: `None` where it cannot, and
/// nothing is done.
///
/// # Safety
/// All bytes at `host` are guest RAM.
pub(crate) unsafe fn compare_exchange_unaligned<T: Scalar + PartialEq>(
    host: usize,
    old: T,
    new: T,
) -> Option<Result<T, T>> {
    /// Inside one, a locked instruction needs no alignment and disturbs nobody (Intel SDM vol. 3, §9.1.2).
    const CACHE_LINE: usize = 64;
    if host % CACHE_LINE + T::SIZE > CACHE_LINE {
        return None;
    }
    let bits = |value: T| u64::from_bytes(&value.to_bytes());
    let mut found = bits(old);
    let new = bits(new);
    macro_rules! exchange {
        ($operand:literal) => {
            // SAFETY: the caller promises memory there.
            unsafe {
                asm!(concat!("lock cmpxchg [{host}], {new", $operand, "}"), host = in(reg) host, new = in(reg) new,
                    inout("rax") found, options(nostack));
            }
        };
    }
    match T::SIZE {
        2 => exchange!(":x"),
        4 => exchange!(":e"),
        8 => exchange!(":r"),
        _ => return None,
    }
    let found = T::from_bytes(&found.to_le_bytes());
    Some(if found == old { Ok(found) } else { Err(found) })
}

/// REP MOVS: what the host's promises is what the guest expects of its own.
///
/// # Safety
/// As for [`copy_elements`](super::copy_elements).
#[inline(always)]
pub(crate) unsafe fn movs<T: Scalar>(from: usize, to: usize, count: usize) {
    macro_rules! repeat {
        ($instruction:literal) => {
            // SAFETY: the caller's promise; the direction flag is clear outside of assembly.
            unsafe {
                asm!($instruction, inout("rsi") from => _, inout("rdi") to => _, inout("rcx") count => _,
                    options(nostack, preserves_flags));
            }
        };
    }
    match T::SIZE {
        1 => repeat!("rep movsb"),
        2 => repeat!("rep movsw"),
        4 => repeat!("rep movsd"),
        _ => repeat!("rep movsq"),
    }
}

/// REP STOS.
///
/// # Safety
/// As for [`fill`](super::fill).
#[inline(always)]
pub(crate) unsafe fn stos<T: Scalar>(to: usize, count: usize, value: T) {
    let mut low = [0; 8];
    low[..T::SIZE.min(8)].copy_from_slice(&value.to_bytes()[..T::SIZE.min(8)]);
    macro_rules! repeat {
        ($instruction:literal) => {
            // SAFETY: as in `movs`.
            unsafe {
                asm!($instruction, in("rax") u64::from_le_bytes(low), inout("rdi") to => _, inout("rcx") count => _,
                    options(nostack, preserves_flags));
            }
        };
    }
    match T::SIZE {
        1 => repeat!("rep stosb"),
        2 => repeat!("rep stosw"),
        4 => repeat!("rep stosd"),
        _ => repeat!("rep stosq"),
    }
}
