//! Random instructions of a given `Code`, with registers and memory that make them do something.

use super::case::*;
use super::encode::effective_address;
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register};

/// Registers that memory operands of sequences are based on, and that sequences never write.
pub const RESERVED: [usize; 5] = [3, 4, 5, 6, 7];

/// Builds instructions and the state they need.
pub struct Generator {
    /// Source of everything random.
    pub random: Random,
    /// 64 or 32.
    pub bitness: u32,
    /// Registers at the start.
    pub state: State,
    /// Seed of the data page.
    pub memory_seed: u64,
    /// Address of the next instruction.
    pub at: u64,
    /// Several instructions share the state: memory operands go through reserved registers.
    pub sequence: bool,
}

impl Generator {
    /// A generator with a random state.
    pub fn new(seed: u64, bitness: u32, sequence: bool) -> Generator {
        let mut random = Random(seed);
        let memory_seed = random.next();
        let mut g = Generator {
            random,
            bitness,
            state: State::ZERO,
            memory_seed,
            at: START,
            sequence,
        };
        g.randomise();
        g
    }

    /// An instruction of the given code. It may turn out not to have an encoding; the next may have one.
    pub fn instruction(&mut self, code: Code) -> Instruction {
        let info = code.op_code();
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        for (i, kind) in info.op_kinds().iter().enumerate() {
            self.operand(&mut instruction, i as u32, *kind);
        }
        self.prefixes(&mut instruction);
        if !self.sequence {
            self.adjust(&mut instruction);
        }
        instruction
    }

    fn operand(&mut self, instruction: &mut Instruction, i: u32, kind: OpCodeOperandKind) {
        use OpCodeOperandKind as K;
        let memory_instead = self.random.one_in(2);
        let register = match kind {
            K::mem_vsib32x | K::mem_vsib64x => return self.gathered(instruction, i, Register::XMM0),
            K::mem_vsib32y | K::mem_vsib64y => return self.gathered(instruction, i, Register::YMM0),
            K::mem | K::mem_offs => return self.memory(instruction, i, kind == K::mem_offs),
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
                if memory_instead =>
            {
                return self.memory(instruction, i, false);
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => self.byte_register(),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                self.general_register(Register::AX)
            }
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                self.general_register(Register::EAX)
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                self.general_register(Register::RAX)
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + self.random.below(8) as u32,
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => {
                self.vector_register(Register::XMM0)
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => {
                self.vector_register(Register::YMM0)
            }
            K::seg_reg => Register::ES + self.random.below(6) as u32,
            K::cr_reg => Register::CR0,
            K::dr_reg => Register::DR0 + self.random.below(4) as u32,
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + self.random.below(8) as u32,
            _ => return self.other_operand(instruction, i, kind),
        };
        instruction.set_op_kind(i, OpKind::Register);
        instruction.set_op_register(i, register);
    }

    /// Immediates, branch targets and the operands of string instructions.
    fn other_operand(&mut self, instruction: &mut Instruction, i: u32, kind: OpCodeOperandKind) {
        use OpCodeOperandKind as K;
        let value = self.random.integer();
        // Branches go forward, within the page, so that no case loops.
        let target = CODE + 0x400 + self.random.below(0x200);
        let near = self.at + 16 + self.random.below(64);
        let wide = self.bitness == 64;
        let kind = match kind {
            K::imm8 | K::imm8_const_1 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => {
                let immediate = if kind == K::imm8_const_1 { 1 } else { value as i8 };
                return self.byte_immediate(instruction, i, kind, immediate);
            }
            K::imm16 => {
                instruction.set_immediate16(value as u16);
                OpKind::Immediate16
            }
            K::imm32 => {
                instruction.set_immediate32(value as u32);
                OpKind::Immediate32
            }
            K::imm32sex64 => {
                instruction.set_immediate32to64(value as i32 as i64);
                OpKind::Immediate32to64
            }
            K::imm64 => {
                instruction.set_immediate64(value);
                OpKind::Immediate64
            }
            K::seg_rSI if wide => OpKind::MemorySegRSI,
            K::seg_rSI => OpKind::MemorySegESI,
            K::es_rDI if wide => OpKind::MemoryESRDI,
            K::es_rDI => OpKind::MemoryESEDI,
            K::seg_rDI if wide => OpKind::MemorySegRDI,
            K::seg_rDI => OpKind::MemorySegEDI,
            K::seg_rBX_al => {
                instruction.set_memory_base(if wide { Register::RBX } else { Register::EBX });
                instruction.set_memory_index(Register::AL);
                OpKind::Memory
            }
            K::br16_1 | K::br16_2 => {
                instruction.set_near_branch16(near as u16);
                OpKind::NearBranch16
            }
            K::br32_1 => {
                instruction.set_near_branch32(near as u32);
                OpKind::NearBranch32
            }
            K::br32_4 => {
                instruction.set_near_branch32(target as u32);
                OpKind::NearBranch32
            }
            K::br64_1 => {
                instruction.set_near_branch64(near);
                OpKind::NearBranch64
            }
            K::br64_4 => {
                instruction.set_near_branch64(target);
                OpKind::NearBranch64
            }
            other => panic!(
                "operand kind {other:?} of {:?} has no generator",
                instruction.code()
            ),
        };
        instruction.set_op_kind(i, kind);
    }

    fn byte_immediate(&mut self, instruction: &mut Instruction, i: u32, kind: OpCodeOperandKind, value: i8) {
        use OpCodeOperandKind as K;
        let kind = match kind {
            K::imm8sex16 => {
                instruction.set_immediate8to16(value as i16);
                OpKind::Immediate8to16
            }
            K::imm8sex32 => {
                instruction.set_immediate8to32(value as i32);
                OpKind::Immediate8to32
            }
            K::imm8sex64 => {
                instruction.set_immediate8to64(value as i64);
                OpKind::Immediate8to64
            }
            _ if i > 0 && instruction.op_kind(i - 1) == OpKind::Immediate16 => {
                instruction.set_immediate8_2nd(value as u8 & 7);
                OpKind::Immediate8_2nd
            }
            _ if i > 0 && instruction.op_kind(i - 1) == OpKind::Immediate8 => {
                instruction.set_immediate8_2nd(value as u8);
                OpKind::Immediate8_2nd
            }
            _ => {
                instruction.set_immediate8(value as u8);
                OpKind::Immediate8
            }
        };
        instruction.set_op_kind(i, kind);
    }

    fn general_index(&mut self) -> u32 {
        let count = if self.bitness == 64 { 16 } else { 8 };
        loop {
            let index = self.random.below(count);
            if !self.sequence || !RESERVED.contains(&(index as usize)) {
                return index as u32;
            }
        }
    }

    fn general_register(&mut self, first: Register) -> Register {
        first + self.general_index()
    }

    fn vector_register(&mut self, first: Register) -> Register {
        first + self.random.below(if self.bitness == 64 { 16 } else { 8 }) as u32
    }

    /// A memory operand of a gather: indices that reach the data page, most of them.
    fn gathered(&mut self, instruction: &mut Instruction, i: u32, first: Register) {
        instruction.set_op_kind(i, OpKind::Memory);
        let index = self.vector_register(first);
        let scale = 1 << self.random.below(4);
        let base = if self.bitness == 64 {
            Register::RAX
        } else {
            Register::EAX
        };
        let base = base + self.random.below(if self.bitness == 64 { 16 } else { 8 }) as u32;
        instruction.set_memory_base(base);
        instruction.set_memory_index(index);
        instruction.set_memory_index_scale(scale);
        let displacement = self.random.next() as i8 as i64;
        instruction.set_memory_displ_size(1);
        instruction.set_memory_displacement64(displacement as u64 & self.address_mask(self.bitness));
        self.state.gpr[base.number()] = (DATA + 0x800).wrapping_sub(displacement as u64);
        let wide = index_is_wide(instruction.code());
        for half in 0..2 {
            let mut lane = 0u128;
            for at in (0..128).step_by(if wide { 64 } else { 32 }) {
                let near = self.random.below(0x1000 / scale as u64) as i64 - 0x800 / i64::from(scale);
                let value = if self.random.one_in(16) {
                    self.random.next() as i64
                } else {
                    near
                };
                let bits = if wide { value as u64 } else { value as u32 as u64 };
                lane |= u128::from(bits) << at;
            }
            match half {
                0 => self.state.set_slot(160 + 16 * index.number(), lane),
                _ => self.state.upper[index.number()] = lane,
            }
        }
    }

    fn byte_register(&mut self) -> Register {
        // AL to BL, AH to BH, SPL to DIL, R8L to R15L in this order.
        let choices: &[u32] = match (self.bitness, self.sequence) {
            (64, false) => &[
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
            ],
            (64, true) => &[0, 1, 2, 4, 5, 6, 12, 13, 14, 15, 16, 17, 18, 19],
            (_, false) => &[0, 1, 2, 3, 4, 5, 6, 7],
            (_, true) => &[0, 1, 2, 4, 5, 6],
        };
        Register::AL + self.random.pick(choices)
    }

    /// Where a memory operand lies.
    fn address(&mut self, size: u64) -> u64 {
        let size = size.max(1);
        let inside = PAGE as u64 - size;
        match self.random.below(32) {
            0 => DATA + inside + 1 + self.random.below(size),
            1 => DATA.wrapping_sub(self.random.below(size + 8)),
            2 => CONSTANTS + self.random.below(inside),
            3 if self.bitness == 64 => 0x4000_0000_0000_0000 | self.random.next() >> 2,
            4..=10 => DATA + self.random.below(inside),
            _ => (DATA + self.random.below(inside)) & !(size.next_power_of_two().min(64) - 1),
        }
    }

    fn memory(&mut self, instruction: &mut Instruction, i: u32, offset_only: bool) {
        instruction.set_op_kind(i, OpKind::Memory);
        let size = instruction.memory_size().size() as u64;
        let address = self.address(size.min(512));
        if offset_only {
            instruction.set_memory_displ_size(self.bitness / 8);
            instruction.set_memory_displacement64(address & self.address_mask(self.bitness));
        } else if self.sequence {
            self.memory_through_reserved(instruction);
        } else if self.random.one_in(8) {
            self.memory_without_registers(instruction, address);
        } else {
            self.memory_through_registers(instruction, address);
        }
        if self.random.one_in(16) && self.bitness == 64 {
            instruction.set_segment_prefix(Register::GS);
        }
    }

    fn address_mask(&self, bits: u32) -> u64 {
        if bits == 64 { !0 } else { 0xffff_ffff }
    }

    fn memory_through_reserved(&mut self, instruction: &mut Instruction) {
        let first = if self.bitness == 64 {
            Register::RAX
        } else {
            Register::EAX
        };
        let base = self.random.pick(&[3u32, 5, 6, 7]);
        instruction.set_memory_base(first + base);
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displ_size(1);
        instruction.set_memory_displacement64((self.random.below(15) as i64 * 16 - 112) as u64);
    }

    fn memory_without_registers(&mut self, instruction: &mut Instruction, address: u64) {
        let within_reach = address < 0x7000_0000;
        let address = if within_reach { address } else { DATA + 0x100 };
        if self.bitness == 64 && self.random.one_in(2) {
            instruction.set_memory_base(Register::RIP);
        }
        instruction.set_memory_index_scale(1);
        instruction.set_memory_displ_size(if self.bitness == 64 { 8 } else { 4 });
        instruction.set_memory_displacement64(address);
    }

    fn memory_through_registers(&mut self, instruction: &mut Instruction, address: u64) {
        let narrow = self.bitness == 32 || self.random.one_in(10) && address < 1 << 32;
        let first = if narrow { Register::EAX } else { Register::RAX };
        let mask = self.address_mask(if narrow { 32 } else { 64 });
        let count = if self.bitness == 64 { 16 } else { 8 };
        let base = self.random.below(count) as u32;
        instruction.set_memory_base(first + base);
        let displacement = match self.random.below(3) {
            0 => 0,
            1 => self.random.next() as i8 as i64,
            _ => self.random.next() as i32 as i64,
        };
        let mut rest = address.wrapping_sub(displacement as u64);
        instruction.set_memory_index_scale(1);
        let index = self.random.below(count) as u32;
        if index != 4 && self.random.one_in(2) {
            let scale = 1 << self.random.below(4);
            if index == base {
                // The register counts twice: only an exact multiple can be reached; go without an index.
            } else {
                instruction.set_memory_index(first + index);
                instruction.set_memory_index_scale(scale);
                let value = self.state.gpr[index as usize];
                rest = rest.wrapping_sub(value.wrapping_mul(scale as u64));
            }
        }
        let old = self.state.gpr[base as usize];
        self.state.gpr[base as usize] = rest & mask | if self.bitness == 64 { old & !mask } else { 0 };
        instruction.set_memory_displ_size(match displacement {
            0 => 0,
            -128..=127 => 1,
            _ if narrow => 4,
            _ => 8,
        });
        instruction.set_memory_displacement64(displacement as u64 & mask);
    }

    fn prefixes(&mut self, instruction: &mut Instruction) {
        let info = instruction.op_code();
        let to_memory = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && to_memory && self.random.one_in(4) {
            instruction.set_has_lock_prefix(true);
        }
        if info.can_use_rep_prefix() && self.random.one_in(2) {
            instruction.set_has_rep_prefix(true);
        } else if info.can_use_repne_prefix() && instruction.is_string_instruction() && self.random.one_in(2)
        {
            instruction.set_has_repne_prefix(true);
        }
    }

    /// Gives the registers that an instruction uses implicitly values with which it does something.
    fn adjust(&mut self, instruction: &mut Instruction) {
        let mask = self.address_mask(self.bitness);
        if instruction.is_string_instruction() || is_implicit_pointer(instruction.mnemonic()) {
            for register in [6, 7, 3] {
                if masks_bytes(instruction.mnemonic()) {
                    // Which bytes are looked at, selected or not, is the processor's business at an edge.
                    self.state.gpr[register] = DATA + self.random.below(PAGE as u64 - 16);
                } else if !self.random.one_in(16) {
                    let at = self.address(16);
                    self.state.gpr[register] = at & mask;
                }
            }
        }
        let random = &mut self.random;
        let gpr = &mut self.state.gpr;
        match instruction.mnemonic() {
            _ if instruction.has_rep_prefix() || instruction.has_repne_prefix() => gpr[1] = random.below(24),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => gpr[1] = random.below(3),
            Mnemonic::Div | Mnemonic::Idiv if !random.one_in(4) => {
                gpr[2] = if random.one_in(2) { 0 } else { random.next() >> 50 };
                if random.one_in(2) {
                    gpr[0] &= 0xff;
                }
            }
            Mnemonic::Leave | Mnemonic::Enter if !random.one_in(8) => {
                gpr[5] = DATA + 0x400 + random.below(64) * 8;
            }
            Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Vpcmpestri
            | Mnemonic::Vpcmpestrm
            | Mnemonic::Vpcmpestri64
            | Mnemonic::Vpcmpestrm64 => {
                let involved = [instruction.memory_base(), instruction.memory_index()];
                let free = |n: usize| involved.iter().all(|r| *r == Register::None || r.number() != n);
                for register in [0, 2].into_iter().filter(|n| free(*n)) {
                    if !random.one_in(4) {
                        gpr[register] = (random.below(40) as i64 - 20) as u64 & mask;
                    }
                }
            }
            // Beyond the operand's size the result is undefined.
            Mnemonic::Shld | Mnemonic::Shrd if instruction.op1_register().size() == 2 => {
                gpr[1] = gpr[1] & !0x1f | random.below(17);
                if instruction.op2_kind() == OpKind::Immediate8 {
                    instruction.set_immediate8(random.below(17) as u8);
                }
            }
            Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts => self.small_bit_index(instruction),
            Mnemonic::Jmp | Mnemonic::Call => self.reachable_target(instruction),
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => {
                self.matching_value(instruction)
            }
            _ => {}
        }
    }

    /// A bit string's index that stays near its base.
    fn small_bit_index(&mut self, instruction: &Instruction) {
        let involved = [instruction.memory_base(), instruction.memory_index()];
        if instruction.op0_kind() == OpKind::Memory && instruction.op1_kind() == OpKind::Register {
            let index = instruction.op1_register().full_register();
            if involved.iter().all(|r| r.full_register() != index) && !self.random.one_in(4) {
                let mask = self.address_mask(self.bitness);
                let bit = self.random.below(2048) as i64 - 1024;
                self.state.gpr[index.number()] = bit as u64 & mask;
            }
        }
    }

    /// A target of an indirect branch inside the code page.
    fn reachable_target(&mut self, instruction: &Instruction) {
        if instruction.op0_kind() == OpKind::Register && !self.random.one_in(4) {
            self.state.gpr[instruction.op0_register().number()] = CODE + 0x600 + self.random.below(64);
        }
    }

    /// Half the time what the comparison will find.
    fn matching_value(&mut self, instruction: &Instruction) {
        if self.random.one_in(2) {
            return;
        }
        let Some(at) = effective_address(instruction, &self.state) else {
            if instruction.op0_kind() == OpKind::Register && instruction.op0_register().is_gpr64() {
                self.state.gpr[0] = self.state.gpr[instruction.op0_register().number()];
            }
            return;
        };
        if !(DATA..DATA + PAGE as u64 - 16).contains(&at)
            || [instruction.memory_base(), instruction.memory_index()]
                .iter()
                .any(|r| matches!(r.full_register(), Register::RAX | Register::RDX))
        {
            return;
        }
        let mut page = [0; PAGE];
        fill_memory(self.memory_seed, &mut page);
        let offset = (at - DATA) as usize;
        let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| page[at + i]));
        let mask = self.address_mask(self.bitness);
        match instruction.mnemonic() {
            Mnemonic::Cmpxchg8b => {
                self.state.gpr[0] = quad(offset) & 0xffff_ffff;
                self.state.gpr[2] = quad(offset) >> 32;
            }
            Mnemonic::Cmpxchg16b => {
                self.state.gpr[0] = quad(offset);
                self.state.gpr[2] = quad(offset + 8);
            }
            _ => self.state.gpr[0] = quad(offset) & mask,
        }
    }
}

fn is_implicit_pointer(mnemonic: Mnemonic) -> bool {
    mnemonic == Mnemonic::Xlatb || masks_bytes(mnemonic)
}

fn masks_bytes(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
    )
}

/// The indices of a gather have 64 bits.
fn index_is_wide(code: Code) -> bool {
    let kinds = code.op_code();
    kinds.op_kinds().iter().any(|kind| {
        matches!(
            kind,
            OpCodeOperandKind::mem_vsib64x | OpCodeOperandKind::mem_vsib64y
        )
    })
}
