//! Decoding a block: from bytes to operations, up to the instruction that ends it.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};

use crate::core::block::{Block, Ending};
use crate::core::page::{PAGE, PAGE_MASK};
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::decode::{self, Choice, Run};
use crate::x86_64::exec;
use crate::x86_64::exec::chain::{carry, chain};
use crate::x86_64::op::Stop;
use crate::x86_64::select::{fused, select};

/// Most instructions of a block: their number must fit [`Op::idx`], and interrupts wait for the end of a
/// block.
pub(crate) const MOST: usize = 64;
/// Longest instruction.
const LONGEST: usize = 15;
/// Most bytes that are read to decode a block: few have more, and reading them would cost as much as
/// decoding.
const WINDOW: usize = 256;
/// The hint space (0F 0D, 0F 18 to 0F 1F) does nothing: what later processors put there (shadow stacks, MPX,
/// CLDEMOTE and other prefetches) is no operation without its CPUID bit, and programs rely on that.
const DECODING: u32 = DecoderOptions::FORCE_RESERVED_NOP;

impl Cpu {
    /// Decodes the single instruction at `rip`, for running it alone.
    pub(crate) fn decode_single(&mut self) -> Result<Block<Op>, Stop> {
        let linear = self.code_address();
        let phys = self.fetch(linear)?;
        self.decode_block(linear, phys, 1)
    }

    pub(crate) fn decode_block(&mut self, linear: u64, phys: u64, most: usize) -> Result<Block<Op>, Stop> {
        self.counters.blocks_decoded += 1;
        let bits = [16, 32, 64][self.code_size as usize];
        let mut buffer = [0; WINDOW];
        let room = (PAGE - phys % PAGE) as usize;
        let bytes = &mut buffer[..room.min(WINDOW)];
        let readable = self.ram.read(phys, bytes);
        if !readable {
            // Nothing runs outside of RAM here; all ones decode to an invalid instruction.
            bytes.fill(0xff);
        }
        let mut ops = Vec::with_capacity(8);
        let mut count = 0;
        let mut decoder = Decoder::with_ip(bits, bytes, 0, DECODING);
        let mut instr = Instruction::default();
        // The instruction before, and where its operation is.
        let mut last: Option<(Instruction, usize)> = None;
        let mut second = None;
        let mut longer = [0; 2 * LONGEST];
        loop {
            if count == most {
                ops.push(fallthrough(decoder.position(), count));
                break;
            }
            let at = decoder.position();
            decoder.decode_out(&mut instr);
            if decoder.last_error() == DecoderError::NoMoreBytes && bytes.len() - at < LONGEST {
                if count > 0 {
                    ops.push(fallthrough(at, count));
                    break;
                }
                let page = self.fetch((linear & PAGE_MASK).wrapping_add(PAGE))?;
                longer[..room].copy_from_slice(bytes);
                let rest = &mut longer[room..room + LONGEST];
                if !self.ram.read(page, rest) {
                    rest.fill(0xff);
                }
                second = Some(page);
                let mut decoder = Decoder::with_ip(bits, &longer[..room + LONGEST], 0, DECODING);
                decoder.decode_out(&mut instr);
                let choice = self.choose(&instr, decoder.position());
                let ends = self.lower(&instr, choice, 0, &mut ops);
                count = 1;
                if !ends {
                    ops.push(fallthrough(instr.len(), 1));
                }
                break;
            }
            let choice = self.choose(&instr, decoder.position() - at);
            if choice.starts && count > 0 {
                ops.push(fallthrough(at, count));
                break;
            }
            let index = ops.len();
            let ends = self.lower(&instr, choice, count, &mut ops);
            count += 1;
            if ends {
                if let Some((first, at)) = last
                    && let Some(run) = fused(&first, &instr, self.code_size)
                {
                    ops[at].run = run;
                }
                break;
            }
            last = Some((instr, index));
        }
        let len = ops.last().map_or(0, |op| op.off as usize + op.len as usize);
        // A guard: should a handler that ends blocks ever go on, it ends here and not beyond.
        ops.push(fallthrough(0, count));
        let all = if second.is_some() { &longer[..] } else { &bytes[..] };
        let ending = match instr.flow_control() {
            FlowControl::Next => Ending::Next,
            FlowControl::Call | FlowControl::IndirectCall => Ending::Call,
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => Ending::RelativeJump,
            _ => Ending::Other,
        };
        Ok(Block::new(
            (ops, count as u32, ending),
            (phys, second, &all[..len]),
            self.ram.page(phys),
        ))
    }

    /// What runs an instruction, for which the decoder has read so many bytes.
    fn choose(&mut self, instr: &Instruction, bytes: usize) -> Choice {
        if instr.is_invalid() {
            // As many as an instruction may have, and it goes on.
            let too_long = bytes == LONGEST;
            return if too_long {
                Choice::end(chain(exec::misc::too_long))
            } else {
                undefined()
            };
        }
        select(instr, self.code_size, self.platform.features).unwrap_or_else(|| {
            let name = format!("{:?}", instr.code());
            self.report(&name);
            undefined()
        })
    }

    /// Makes the operations of an instruction, the `count`-th of its block; returns whether it ends the
    /// block.
    fn lower(&mut self, instr: &Instruction, choice: Choice, count: usize, ops: &mut Vec<Op>) -> bool {
        let mut op = fallthrough(0, count);
        if !decode::operands(instr, self.code_size, &mut op) {
            self.report("a displacement of 2 GiB");
            op.run = chain(exec::misc::undefined);
            ops.push(op);
            return true;
        }
        match choice.run {
            Run::Chained(run) => ops.push(Op { run, ..op }),
            Run::Single(body) => ops.extend(carry(op, body)),
        }
        choice.ends
    }
}

fn undefined() -> Choice {
    Choice::end(chain(exec::misc::undefined))
}

/// An operation that goes on after the block without being an instruction.
fn fallthrough(at: usize, count: usize) -> Op {
    Op {
        run: chain(exec::branch::fallthrough),
        imm: 0,
        disp: 0,
        off: at as u16,
        len: 0,
        idx: count as u8,
        base: crate::x86_64::op::REG_ZERO,
        index: crate::x86_64::op::REG_ZERO,
        scale: 0,
        seg: crate::x86_64::op::SEG_FLAT,
        a: 0,
        b: 0,
        c: 0,
        flags: 0,
    }
}
