//! Registers on their way between the processor and a helper.

use super::helper::Stop;
use super::vectors::Vectors;
use crate::core::page::PAGE_MASK;
use crate::x86_64::cpu::Cpu;
use crate::x86_64::flags::rflag;
use crate::x86_64::simd::mxcsr::Mxcsr;
use crate::x86_64::state::{Segment, cr4, reg, seg, xcr0};
use crate::x86_64::x87::{Fpu, Fxsave};

/// The selectors of Linux's programs, on the host as in the guest.
pub(super) const CODE: u16 = 0x33;
pub(super) const STACK: u16 = 0x2b;

/// RFLAGS bits that a program sets itself and that mean the same to the host.
const FLAGS: u64 = rflag::STATUS | rflag::DF | rflag::ID;

/// `si_code` of exceptions of which the host's kernel says no more.
const SI_KERNEL: i32 = 0x80;

const INT_80: [u8; 2] = [0xcd, 0x80];
const INT_3: [u8; 2] = [0xcd, 3];
const INT_4: [u8; 2] = [0xcd, 4];
const INT1: u8 = 0xf1;
const INT3: u8 = 0xcc;
const INTO: u8 = 0xce;

/// Access rights of a flat data segment of programs.
const FLAT: u16 = 0x80f3;

const fn flat(selector: u16, base: u64, access: u16) -> Segment {
    Segment {
        selector,
        base,
        limit: u32::MAX,
        access,
    }
}

fn wide(words: &[u64], n: usize) -> u128 {
    u128::from(words[2 * n]) | u128::from(words[2 * n + 1]) << 64
}

fn set_wide(words: &mut [u64], n: usize, value: u128) {
    (words[2 * n], words[2 * n + 1]) = (value as u64, (value >> 64) as u64);
}

impl Cpu {
    /// General registers, as a helper is to have them.
    pub(super) fn to_host(&self) -> libc::user_regs_struct {
        let r = &self.gpr;
        libc::user_regs_struct {
            rax: r[reg::RAX],
            rcx: r[reg::RCX],
            rdx: r[reg::RDX],
            rbx: r[reg::RBX],
            rsp: r[reg::RSP],
            rbp: r[reg::RBP],
            rsi: r[reg::RSI],
            rdi: r[reg::RDI],
            r8: r[8],
            r9: r[9],
            r10: r[10],
            r11: r[11],
            r12: r[12],
            r13: r[13],
            r14: r[14],
            r15: r[15],
            rip: self.rip,
            eflags: self.rflags() & FLAGS | rflag::IF | rflag::FIXED,
            orig_rax: u64::MAX,
            cs: CODE.into(),
            ss: STACK.into(),
            ds: self.seg[seg::DS].selector.into(),
            es: self.seg[seg::ES].selector.into(),
            fs: self.seg[seg::FS].selector.into(),
            gs: self.seg[seg::GS].selector.into(),
            fs_base: self.seg_base[seg::FS],
            gs_base: self.seg_base[seg::GS],
        }
    }

    /// Takes what a helper that stopped has. Its instruction pointer is that of the instruction which is to
    /// run, or run again.
    pub(super) fn take_from_host(&mut self, from: &libc::user_regs_struct, stop: Stop) {
        let r = &mut self.gpr;
        r[reg::RAX] = from.rax;
        r[reg::RCX] = from.rcx;
        r[reg::RDX] = from.rdx;
        r[reg::RBX] = from.rbx;
        r[reg::RSP] = from.rsp;
        r[reg::RBP] = from.rbp;
        r[reg::RSI] = from.rsi;
        r[reg::RDI] = from.rdi;
        r[8] = from.r8;
        r[9] = from.r9;
        r[10] = from.r10;
        r[11] = from.r11;
        r[12] = from.r12;
        r[13] = from.r13;
        r[14] = from.r14;
        r[15] = from.r15;
        self.rip = from.rip;
        match stop {
            Stop::SystemCall => {
                self.gpr[reg::RAX] = from.orig_rax;
                // SYSCALL, SYSENTER and INT n have two bytes each.
                self.rip = self.rip.wrapping_sub(2);
            }
            // Before the instruction.
            Stop::Exception {
                signal: libc::SIGTRAP,
                code: libc::TRAP_HWBKPT,
                ..
            } => {}
            // INT3, and INT1, are traps to the host; they are to run again.
            Stop::Exception {
                signal: libc::SIGTRAP,
                code,
                ..
            } if code != libc::TRAP_TRACE => self.rip = self.rip.wrapping_sub(self.trap_length(from.rip)),
            // The host's own answer to a call of the vsyscall page.
            Stop::Exception {
                signal: libc::SIGSYS,
                address,
                ..
            } => self.rip = address,
            // INT 4 and INTO, which are traps as well.
            Stop::Exception {
                signal: libc::SIGSEGV,
                code: SI_KERNEL,
                ..
            } => self.rip = self.rip.wrapping_sub(self.overflow_length(from)),
            _ => {}
        }
        let keep = self.rflags() & !(FLAGS | rflag::TF | rflag::AC | rflag::NT);
        self.set_rflags(keep | from.eflags & (FLAGS | rflag::TF | rflag::AC | rflag::NT));
        for (number, selector, base) in [
            (seg::DS, from.ds, 0),
            (seg::ES, from.es, 0),
            (seg::FS, from.fs, from.fs_base),
            (seg::GS, from.gs, from.gs_base),
        ] {
            self.take_segment(number, selector as u16, base);
        }
        if from.cs as u16 != CODE {
            // Where a 32-bit program goes on after SYSCALL and SYSENTER is the kernel's choice, which the
            // host's has made already: nobody knows where they were.
            let lost = stop == Stop::SystemCall && self.bytes_before(from.rip) != INT_80;
            self.rip = if lost { 0 } else { self.rip & u64::from(u32::MAX) };
            // A far jump to the host's segment for 32-bit programs, which is the guest's.
            let access = FLAT | 0x8 | Segment::D;
            self.take_segment(seg::SS, from.ss as u16, 0);
            self.set_segment(seg::CS, flat(from.cs as u16, 0, access));
        }
    }

    /// Bytes of the trap that ended just before `rip`. Below some hypervisors INT1 has not ended then.
    fn trap_length(&self, rip: u64) -> u64 {
        match self.bytes_before(rip) {
            INT_3 => 2,
            [_, INT3 | INT1] => 1,
            _ => 0,
        }
    }

    /// Bytes of the INT 4 or INTO that ended just before the instruction pointer, if one did.
    fn overflow_length(&self, from: &libc::user_regs_struct) -> u64 {
        match self.bytes_before(from.rip) {
            INT_4 => 2,
            [_, INTO] if from.cs as u16 != CODE => 1,
            _ => 0,
        }
    }

    /// The two bytes of code before `rip`; zeros where there is none.
    fn bytes_before(&self, rip: u64) -> [u8; 2] {
        let mut bytes = [0; 2];
        for (back, byte) in (1..=2).zip(bytes.iter_mut().rev()) {
            let at = rip.wrapping_sub(back);
            if let Some(page) = self.peek(at) {
                self.ram
                    .read(page.phys | at & !PAGE_MASK, std::slice::from_mut(byte));
            }
        }
        bytes
    }

    /// A data segment that the program may have loaded, by the guest's table, whose first entries are the host's.
    fn take_segment(&mut self, number: usize, selector: u16, base: u64) {
        if self.seg[number].selector != selector && self.load_segment(number, selector).is_err() {
            self.seg[number] = flat(selector, base, FLAT | Segment::D);
        }
        self.seg[number].base = base;
        self.seg_base[number] = base;
    }

    /// Whether programs have YMM registers.
    fn has_ymm(&self) -> bool {
        self.cr4 & cr4::OSXSAVE != 0 && self.xcr0 & xcr0::AVX != 0
    }

    /// The registers, as a helper is to have them.
    pub(super) fn vectors(&self) -> Vectors {
        let mut vectors = Vectors::ZERO;
        let Vectors { legacy, upper } = &mut vectors;
        let Fxsave { header, registers } = self.x87.to_fxsave(true);
        for (word, eight) in legacy.iter_mut().zip(header.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*eight);
        }
        legacy[3] = self.mxcsr.bits().into();
        for (n, register) in registers.iter().chain(&self.xmm).enumerate() {
            set_wide(legacy, 2 + n, *register);
        }
        if self.has_ymm() {
            for (n, register) in self.ymm_upper.iter().enumerate() {
                set_wide(upper, n, *register);
            }
        }
        vectors
    }

    /// Takes what a helper has. `false` where the program used registers that it does not have.
    #[must_use]
    pub(super) fn take_vectors(&mut self, vectors: &Vectors) -> bool {
        let Vectors { legacy, upper } = vectors;
        let mut header = [0; 24];
        for (eight, word) in header.as_chunks_mut::<8>().0.iter_mut().zip(legacy) {
            *eight = word.to_le_bytes();
        }
        let image = Fxsave {
            header,
            registers: std::array::from_fn(|n| wide(legacy, 2 + n)),
        };
        self.x87 = Fpu::from_fxsave(&image, true);
        self.xmm = std::array::from_fn(|n| wide(legacy, 10 + n));
        self.mxcsr = Mxcsr::from_bits(legacy[3] as u32 & Mxcsr::WRITABLE).unwrap_or_default();
        // A guest that has not enabled them does not save them either.
        if self.has_ymm() {
            self.ymm_upper = std::array::from_fn(|n| wide(upper, n));
        }
        self.has_ymm() || upper.iter().all(|word| *word == 0)
    }
}
