//! How handlers reach their operands: registers by width, memory through the software TLB.
//!
//! The fast path is three instructions of the host: compare the tag of the one entry that can hold the page,
//! add, access. The last byte's page is compared, so that an access across two pages misses; what misses goes
//! to `mmu`. How memory is accessed, and what other processors see of it, is in
//! [`ram_access`](crate::core::ram_access).
#![allow(unsafe_code)]

use crate::core::page::PAGE_MASK;
pub use crate::core::ram_access::Scalar;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::flags::{Flags, Width};
use crate::x86_64::op::{Stop, op_flag};

/// A general register operand of one width.
pub trait Gpr: Width + Scalar {
    /// Reads register `number` (for bytes: byte offset).
    fn get(cpu: &Cpu, number: u8) -> Self;
    /// Writes it; 32-bit writes clear the upper half.
    fn set(cpu: &mut Cpu, number: u8, value: Self);
}

impl Gpr for u8 {
    #[inline(always)]
    fn get(cpu: &Cpu, number: u8) -> u8 {
        cpu.byte(number)
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, number: u8, value: u8) {
        cpu.set_byte(number, value);
    }
}

impl Gpr for u16 {
    #[inline(always)]
    fn get(cpu: &Cpu, number: u8) -> u16 {
        cpu.gpr[(number & 31) as usize] as u16
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, number: u8, value: u16) {
        let register = &mut cpu.gpr[(number & 31) as usize];
        *register = *register & !0xffff | value as u64;
    }
}

impl Gpr for u32 {
    #[inline(always)]
    fn get(cpu: &Cpu, number: u8) -> u32 {
        cpu.gpr[(number & 31) as usize] as u32
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, number: u8, value: u32) {
        cpu.gpr[(number & 31) as usize] = value as u64;
    }
}

impl Gpr for u64 {
    #[inline(always)]
    fn get(cpu: &Cpu, number: u8) -> u64 {
        cpu.gpr[(number & 31) as usize]
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, number: u8, value: u64) {
        cpu.gpr[(number & 31) as usize] = value;
    }
}

/// How a memory operand's address comes about. The two frequent ways have handlers of their own.
pub(crate) trait AddressingMode: 'static {
    /// Linear address of the operand.
    fn address(cpu: &Cpu, op: &Op) -> u64;
    /// Effective address, which is what LEA gives.
    fn offset(cpu: &Cpu, op: &Op) -> u64;
}

/// A base register (or the block's start, or none) and a displacement; 64 bits, no segment base.
pub(crate) struct BaseDisp;
/// The same with an index register.
pub(crate) struct Indexed;
/// Any other way.
pub(crate) struct General;

impl AddressingMode for BaseDisp {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        cpu.gpr[(op.base & 31) as usize].wrapping_add(op.disp as i64 as u64)
    }
    #[inline(always)]
    fn offset(cpu: &Cpu, op: &Op) -> u64 {
        Self::address(cpu, op)
    }
}

impl AddressingMode for Indexed {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        BaseDisp::address(cpu, op).wrapping_add(cpu.gpr[(op.index & 31) as usize] << (op.scale & 3))
    }
    #[inline(always)]
    fn offset(cpu: &Cpu, op: &Op) -> u64 {
        Self::address(cpu, op)
    }
}

impl AddressingMode for General {
    #[inline(always)]
    fn address(cpu: &Cpu, op: &Op) -> u64 {
        cpu.address(op)
    }
    #[inline(always)]
    fn offset(cpu: &Cpu, op: &Op) -> u64 {
        cpu.offset(op)
    }
}

impl Cpu {
    /// Linear address of the operation's memory operand.
    #[inline(always)]
    pub fn address(&self, op: &Op) -> u64 {
        let offset = self.offset(op);
        offset.wrapping_add(self.seg_base[(op.seg & 7) as usize])
    }

    /// Effective address (what LEA gives) of the operation's memory operand.
    #[inline(always)]
    pub fn offset(&self, op: &Op) -> u64 {
        let offset = self.gpr[(op.base & 31) as usize]
            .wrapping_add(self.gpr[(op.index & 31) as usize] << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64);
        if op.flags & (op_flag::ADDR32 | op_flag::ADDR16) == 0 {
            offset
        } else if op.flags & op_flag::ADDR32 != 0 {
            offset as u32 as u64
        } else {
            offset as u16 as u64
        }
    }

    /// Reads memory at a linear address.
    #[inline(always)]
    pub fn load<T: Scalar>(&mut self, addr: u64) -> Result<T, Stop> {
        let entry = self.tlb.entry(addr);
        if entry.read == last_page::<T>(addr) {
            let host = addr.wrapping_add(entry.addend) as usize;
            // SAFETY: the tag says that all bytes lie in a page of guest RAM that `Ram::new` promises to be
            // mapped.
            Ok(unsafe { T::load(host) })
        } else {
            self.load_slow(addr)
        }
    }

    /// Writes memory at a linear address.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, addr: u64, value: T) -> Result<(), Stop> {
        let entry = self.tlb.entry(addr);
        if entry.write == last_page::<T>(addr) {
            let host = addr.wrapping_add(entry.addend) as usize;
            // SAFETY: as in `load`; the tag also says that the page may be written and holds no code.
            unsafe { T::store(host, value) };
            Ok(())
        } else {
            self.store_slow(addr, value)
        }
    }

    /// Host address of a naturally aligned operand that may be read and written directly.
    #[inline(always)]
    pub(crate) fn direct(&self, addr: u64, size: usize) -> Option<usize> {
        let entry = self.tlb.entry(addr);
        (entry.write == addr & PAGE_MASK && addr.is_multiple_of(size as u64))
            .then(|| addr.wrapping_add(entry.addend) as usize)
    }

    /// The same where the store may have to be reported with [`Cpu::stored_watched`] afterwards.
    pub(crate) fn direct_or_watched(&self, addr: u64, size: usize) -> Option<usize> {
        self.direct(addr, size).or_else(|| {
            let entry = self.tlb.watched(addr, size)?;
            addr.is_multiple_of(size as u64)
                .then(|| addr.wrapping_add(entry.addend) as usize)
        })
    }

    /// The same for an operand of any alignment inside one page.
    pub(crate) fn direct_unaligned(&self, addr: u64, size: usize) -> Option<usize> {
        let entry = self.tlb.entry(addr);
        let direct = entry.write == addr.wrapping_add(size as u64 - 1) & PAGE_MASK;
        (direct || self.tlb.watched(addr, size).is_some()).then(|| addr.wrapping_add(entry.addend) as usize)
    }

    /// Reads, changes and writes memory, not atomically. `f` returns the new value.
    #[inline(always)]
    pub(crate) fn modify<T: Scalar>(&mut self, addr: u64, f: impl FnOnce(T) -> T) -> Result<(), Stop> {
        // A fault must come before anything changes, and as that of a write.
        self.check_write_fast(addr, T::SIZE)?;
        let old = self.load(addr)?;
        self.store(addr, f(old))
    }

    #[inline(always)]
    fn check_write_fast(&mut self, addr: u64, size: usize) -> Result<(), Stop> {
        if self.tlb.entry(addr).write == addr.wrapping_add(size as u64 - 1) & PAGE_MASK {
            return Ok(());
        }
        self.check_write(addr, size)
    }

    /// Reads, changes and writes memory, not atomically. `f` returns the new value and the flags.
    #[inline(always)]
    pub(crate) fn compute<T: Scalar>(
        &mut self,
        addr: u64,
        f: impl Fn(Flags, T) -> (T, Flags),
    ) -> Result<(), Stop> {
        let entry = self.tlb.entry(addr);
        if entry.write != last_page::<T>(addr) {
            return self.compute_slow(addr, f);
        }
        let host = addr.wrapping_add(entry.addend) as usize;
        // SAFETY: as in `load`.
        let (new, flags) = f(self.flags, unsafe { T::load(host) });
        // SAFETY: as in `store`; `f` only computes, it cannot unmap guest RAM.
        unsafe { T::store(host, new) };
        self.flags = flags;
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn compute_slow<T: Scalar>(&mut self, addr: u64, f: impl Fn(Flags, T) -> (T, Flags)) -> Result<(), Stop> {
        self.check_write(addr, T::SIZE)?;
        let old = self.load(addr)?;
        let (new, flags) = f(self.flags, old);
        self.store(addr, new)?;
        self.flags = flags;
        Ok(())
    }

    /// The second operand where it is memory or a general register.
    #[inline(always)]
    pub fn source<W: Gpr>(&mut self, op: &Op) -> Result<W, Stop> {
        if op.has_memory() {
            self.load(self.address(op))
        } else {
            Ok(W::get(self, op.b))
        }
    }

    /// The second operand where it is an XMM register or 128 bits of memory, which need no alignment.
    #[inline(always)]
    pub fn xmm_source(&mut self, op: &Op) -> Result<u128, Stop> {
        if op.has_memory() {
            self.load(self.address(op))
        } else {
            Ok(self.xmm[(op.b & 15) as usize])
        }
    }

    /// The same; an unaligned memory operand raises #GP, as legacy SSE instructions do.
    #[inline(always)]
    pub fn xmm_source_aligned(&mut self, op: &Op) -> Result<u128, Stop> {
        if !op.has_memory() {
            return Ok(self.xmm[(op.b & 15) as usize]);
        }
        let addr = self.address(op);
        if addr & 15 != 0 {
            return self.general_protection(0);
        }
        self.load(addr)
    }

    /// The second operand where it is the low part of an XMM register or as many bytes of memory.
    #[inline(always)]
    pub fn xmm_low_source<T: Scalar>(&mut self, op: &Op) -> Result<T, Stop> {
        if op.has_memory() {
            self.load(self.address(op))
        } else {
            Ok(T::from_bytes(&self.xmm[(op.b & 15) as usize].to_le_bytes()))
        }
    }

    /// Instruction pointer of the instruction that runs.
    #[inline(always)]
    pub fn ip(&self, op: &Op) -> u64 {
        self.gpr[crate::x86_64::op::REG_BLOCK as usize].wrapping_add(op.off as u64)
    }

    /// Instruction pointer of the one after it.
    #[inline(always)]
    pub fn next_ip(&self, op: &Op) -> u64 {
        self.gpr[crate::x86_64::op::REG_BLOCK as usize].wrapping_add(op.off as u64 + op.len as u64)
            & self.rip_mask
    }
}

/// The tag of a translation for all bytes of an access.
#[inline(always)]
fn last_page<T: Scalar>(addr: u64) -> u64 {
    addr.wrapping_add(T::SIZE as u64 - 1) & PAGE_MASK
}
