//! Registers at the start of a case: values at which instructions change what they do.

use super::case::*;
use super::generate::{Generator, RESERVED};

impl Generator {
    /// Gives every register a value, most of them legal.
    pub fn randomise(&mut self) {
        let random = &mut self.random;
        let state = &mut self.state;
        let mask = if self.bitness == 64 { !0 } else { 0xffff_ffff };
        let registers = if self.bitness == 64 { 16 } else { 8 };
        for register in &mut state.gpr[..registers] {
            *register = random.integer() & mask;
        }
        state.gpr[4] = DATA + 0x800 + random.below(8) * 8;
        if self.sequence {
            for (i, register) in RESERVED.into_iter().enumerate() {
                state.gpr[register] = DATA + 0x200 * (i as u64 + 1) + random.below(4) * 16;
            }
        }
        state.rflags = 0x202 | random.next() & 0x8d5;
        if random.one_in(8) {
            state.rflags |= 0x400;
        }
        self.randomise_x87();
        self.randomise_sse();
    }

    fn randomise_x87(&mut self) {
        let random = &mut self.random;
        let mut control: u16 = 0x037f;
        if random.one_in(3) {
            control = control & !0xf00 | (random.next() & 0xf00) as u16;
        }
        let unmasked = if self.sequence { 64 } else { 8 };
        if random.one_in(unmasked) {
            control &= !(random.next() & 0x3f) as u16;
        }
        let mut status = (random.next() & 0x7f00) as u16;
        if random.one_in(4) {
            status |= (random.next() & 0x7f) as u16;
        }
        // Pending exceptions would make every instruction fault: rarely.
        if !random.one_in(unmasked) {
            status &= !(!control & 0x3f);
        }
        if status & !control & 0x3f != 0 {
            status |= 0x8080;
        }
        let tags = match random.below(4) {
            0 => random.next() as u8,
            1 => 1 << (status >> 11 & 7) | 1 << (((status >> 11) + 1) & 7),
            _ => 0xff,
        };
        let state = &mut self.state;
        state.fx[0..2].copy_from_slice(&control.to_le_bytes());
        state.fx[2..4].copy_from_slice(&status.to_le_bytes());
        state.fx[4] = tags;
        for i in 0..8 {
            state.set_slot(32 + 16 * i, random.extended());
        }
    }

    fn randomise_sse(&mut self) {
        let random = &mut self.random;
        let mut mxcsr = match random.below(6) {
            0 => 0x1f80 | random.next() as u32 & 0xe07f,
            1 => 0x1f80 | random.next() as u32 & 0x3f,
            2 | 3 => 0x1f80,
            _ => 0x1fa0,
        };
        if random.one_in(if self.sequence { 64 } else { 8 }) {
            mxcsr &= !(random.next() as u32 & 0x1f80);
        }
        // A flag set with its mask clear is legal, and raises nothing by itself.
        self.state.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        let registers = if self.bitness == 64 { 16 } else { 8 };
        for i in 0..registers {
            let value = random.vector();
            self.state.set_slot(160 + 16 * i, value);
        }
        for upper in &mut self.state.upper[..registers] {
            *upper = random.vector();
        }
    }
}
