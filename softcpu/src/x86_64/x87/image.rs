//! Memory images of the state: FNSTENV, FNSAVE, FXSAVE and their inverses (Intel SDM vol. 1, 8.1.10 and
//! vol. 2, FXSAVE).

use super::{Fpu, LastInstruction};
use crate::x86_64::float::{Class, F80, unpack_f80};

/// Which of the two environment layouts the operand size selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 14 bytes.
    Bits16,
    /// 28 bytes; also in 64-bit mode.
    Bits32,
}

impl Width {
    /// Bytes of the environment.
    pub const fn environment_size(self) -> usize {
        match self {
            Width::Bits16 => 14,
            Width::Bits32 => 28,
        }
    }

    /// Bytes of the environment and the eight registers.
    pub const fn save_size(self) -> usize {
        self.environment_size() + 80
    }
}

/// The x87 part of an FXSAVE area: its first 24 bytes and the register slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fxsave {
    /// FCW, FSW, FTW, FOP, FIP, FDP in the 64-bit layout.
    pub header: [u8; 24],
    /// ST(0) to ST(7), 16 bytes each.
    pub registers: [u128; 8],
}

impl Fpu {
    /// The full tag word: two bits for each physical register.
    fn tag_word(&self) -> u16 {
        self.registers.iter().enumerate().fold(0, |word, (i, register)| {
            let tag = match unpack_f80(*register) {
                _ if self.valid >> i & 1 == 0 => 3,
                v if v.class == Class::Zero => 1,
                v if v.class == Class::Finite && !v.denormal => 0,
                _ => 2,
            };
            word | tag << (2 * i)
        })
    }

    fn set_tag_word(&mut self, word: u16) {
        self.valid = (0..8).fold(0, |valid, i| valid | ((word >> (2 * i) & 3 != 3) as u8) << i);
    }

    /// FNSTENV: the image's first `width.environment_size()` bytes count. Afterwards every exception is
    /// masked.
    pub fn store_environment(&mut self, width: Width) -> [u8; 28] {
        let mut image = [0; 28];
        let LastInstruction { opcode, ip, dp } = self.last;
        let words = [self.control, self.status, self.tag_word()];
        match width {
            Width::Bits16 => {
                let all = [words[0], words[1], words[2], ip as u16, 0, dp as u16, 0];
                for (slot, word) in image.chunks_exact_mut(2).zip(all) {
                    slot.copy_from_slice(&word.to_le_bytes());
                }
            }
            Width::Bits32 => {
                let [control, status, tags] = words.map(|w| w as u32 | 0xffff_0000);
                let all = [
                    control,
                    status,
                    tags,
                    ip as u32,
                    (opcode as u32) << 16,
                    dp as u32,
                    0xffff_0000,
                ];
                for (slot, word) in image.chunks_exact_mut(4).zip(all) {
                    slot.copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        self.set_control(self.control | 0x3f);
        image
    }

    /// FLDENV
    pub fn load_environment(&mut self, image: &[u8; 28], width: Width) {
        let step = if width == Width::Bits16 { 2 } else { 4 };
        let word = |i: usize| u16::from_le_bytes([image[i * step], image[i * step + 1]]);
        let pointer = |i: usize| match width {
            Width::Bits16 => word(i) as u64,
            Width::Bits32 => {
                word(i) as u64 | (u16::from_le_bytes([image[i * 4 + 2], image[i * 4 + 3]]) as u64) << 16
            }
        };
        self.last = LastInstruction {
            opcode: 0,
            ip: pointer(3),
            dp: pointer(5),
        };
        if width == Width::Bits32 {
            self.last.opcode = u16::from_le_bytes([image[18], image[19]]) & 0x7ff;
        }
        self.set_tag_word(word(2));
        self.status = word(1);
        self.set_control(word(0));
    }

    /// FNSAVE: environment and registers, then FNINIT. The first `width.save_size()` bytes count.
    pub fn save(&mut self, width: Width) -> [u8; 108] {
        let mut image = [0; 108];
        let size = width.environment_size();
        image[..28].copy_from_slice(&self.store_environment(width));
        for (i, slot) in image[size..].chunks_exact_mut(10).take(8).enumerate() {
            slot.copy_from_slice(&self.register(i).to_bits().to_le_bytes()[..10]);
        }
        self.init();
        image
    }

    /// FRSTOR
    pub fn restore(&mut self, image: &[u8; 108], width: Width) {
        let mut environment = [0; 28];
        environment.copy_from_slice(&image[..28]);
        self.load_environment(&environment, width);
        for (i, slot) in image[width.environment_size()..]
            .chunks_exact(10)
            .take(8)
            .enumerate()
        {
            let mut bytes = [0; 16];
            bytes[..10].copy_from_slice(slot);
            let physical = self.physical(i);
            self.registers[physical] = F80::from_bits(u128::from_le_bytes(bytes));
        }
    }

    /// The x87 part of FXSAVE. FXSAVE (without REX.W) stores 32-bit pointers; the layout is the same.
    pub fn to_fxsave(&self, rex_w: bool) -> Fxsave {
        let LastInstruction { opcode, ip, dp } = self.last;
        let mask = if rex_w { u64::MAX } else { u32::MAX as u64 };
        let mut header = [0; 24];
        header[0..2].copy_from_slice(&self.control.to_le_bytes());
        header[2..4].copy_from_slice(&self.status.to_le_bytes());
        header[4] = self.valid;
        header[6..8].copy_from_slice(&opcode.to_le_bytes());
        header[8..16].copy_from_slice(&(ip & mask).to_le_bytes());
        header[16..24].copy_from_slice(&(dp & mask).to_le_bytes());
        Fxsave {
            header,
            registers: std::array::from_fn(|i| self.register(i).to_bits()),
        }
    }

    /// The x87 part of FXRSTOR.
    pub fn from_fxsave(image: &Fxsave, rex_w: bool) -> Fpu {
        let Fxsave { header, registers } = image;
        let word = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let quad = |at: usize| {
            let value = u64::from_le_bytes(std::array::from_fn(|i| header[at + i]));
            if rex_w { value } else { value & u32::MAX as u64 }
        };
        let mut fpu = Fpu {
            valid: header[4],
            ..Fpu::default()
        };
        fpu.last = LastInstruction {
            opcode: word(6) & 0x7ff,
            ip: quad(8),
            dp: quad(16),
        };
        fpu.status = word(2);
        for (i, bits) in registers.iter().enumerate() {
            let physical = fpu.physical(i);
            fpu.registers[physical] = F80::from_bits(*bits);
        }
        fpu.set_control(word(0));
        fpu
    }
}
