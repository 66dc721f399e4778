//! String instructions. Repeated moves and fills go a page at a time where both sides are plain RAM.
#![allow(unsafe_code)]

use crate::core::bus::BusResult;
use crate::core::page::{PAGE, PAGE_MASK};
use crate::core::ram_access;
use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exec::arith::{Alu, Cmp};
use crate::x86_64::flags::rflag;
use crate::x86_64::op::{Flow, Stop, op_flag};
use crate::x86_64::state::{reg, seg};

/// The mask of the address size.
#[inline(always)]
fn mask(op: &Op) -> u64 {
    match op.flags & (op_flag::ADDR32 | op_flag::ADDR16) {
        0 => u64::MAX,
        op_flag::ADDR32 => 0xffff_ffff,
        _ => 0xffff,
    }
}

/// Adds to an index or counter register under the mask of the address size.
#[inline(always)]
fn step(cpu: &mut Cpu, register: usize, by: u64, mask: u64) {
    let old = cpu.gpr[register];
    let new = old.wrapping_add(by) & mask;
    cpu.gpr[register] = if mask == 0xffff { old & !mask | new } else { new };
}

/// Distance from one element to the next.
#[inline(always)]
fn stride<W: Gpr>(cpu: &Cpu) -> u64 {
    let size = W::SIZE as u64;
    if cpu.rflags & rflag::DF == 0 {
        size
    } else {
        size.wrapping_neg()
    }
}

#[inline(always)]
fn source(cpu: &Cpu, op: &Op) -> u64 {
    (cpu.gpr[reg::RSI] & mask(op)).wrapping_add(cpu.seg_base[(op.seg & 7) as usize])
}

#[inline(always)]
fn destination(cpu: &Cpu, op: &Op) -> u64 {
    let base = if cpu.is_long() { 0 } else { cpu.seg_base[seg::ES] };
    (cpu.gpr[reg::RDI] & mask(op)).wrapping_add(base)
}

/// Repeats `one` as often as the counter says; `bulk` may do several at once and returns how many it did.
#[inline(always)]
fn repeat(
    cpu: &mut Cpu,
    op: &Op,
    mut bulk: impl FnMut(&mut Cpu, u64) -> u64,
    mut one: impl FnMut(&mut Cpu) -> Result<bool, Stop>,
) -> Flow {
    if op.flags & (op_flag::REP | op_flag::REPNE) == 0 {
        one(cpu)?;
        return Ok(());
    }
    let mask = mask(op);
    let mut since = 0;
    let singly = cpu.iterates_singly();
    loop {
        let count = cpu.gpr[reg::RCX] & mask;
        if count == 0 {
            return Ok(());
        }
        let done = if singly { 0 } else { bulk(cpu, count) };
        if done > 0 {
            step(cpu, reg::RCX, done.wrapping_neg(), mask);
            since += done;
        } else {
            let go_on = one(cpu)?;
            step(cpu, reg::RCX, u64::MAX, mask);
            since += 1;
            if !go_on {
                return Ok(());
            }
        }
        if singly && cpu.traps_between_iterations() && cpu.gpr[reg::RCX] & mask != 0 {
            return Err(Stop::Again);
        }
        // Look for interrupts now and then, as processors do between iterations.
        if since >= PAGE && cpu.mailbox.has_events() && cpu.gpr[reg::RCX] & mask != 0 {
            return Err(Stop::Again);
        }
    }
}

/// Elements up to the end of the page.
#[inline(always)]
fn room<W: Gpr>(addr: u64) -> u64 {
    (PAGE - addr % PAGE) / W::SIZE as u64
}

/// MOVS.
pub(crate) fn movs<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mask = mask(op);
    let bulk = |cpu: &mut Cpu, count: u64| {
        if cpu.rflags & rflag::DF != 0 {
            return 0;
        }
        let (from, to) = (source(cpu, op), destination(cpu, op));
        let n = count.min(room::<W>(from)).min(room::<W>(to));
        let (read, write) = (*cpu.tlb.entry(from), *cpu.tlb.entry(to));
        if n == 0 || read.read != from & PAGE_MASK || write.write != to & PAGE_MASK {
            return 0;
        }
        let bytes = n as usize * W::SIZE;
        let (a, b) = (
            from.wrapping_add(read.addend) as usize,
            to.wrapping_add(write.addend) as usize,
        );
        // SAFETY: both tags were compared, and `bytes` end inside both pages of guest RAM.
        unsafe { ram_access::copy_elements::<W>(a, b, n as usize) };
        step(cpu, reg::RSI, bytes as u64, mask);
        step(cpu, reg::RDI, bytes as u64, mask);
        n
    };
    repeat(cpu, op, bulk, |cpu| {
        let value: W = cpu.load(source(cpu, op))?;
        cpu.store(destination(cpu, op), value)?;
        let by = stride::<W>(cpu);
        step(cpu, reg::RSI, by, mask);
        step(cpu, reg::RDI, by, mask);
        Ok(true)
    })
}

/// STOS.
pub(crate) fn stos<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let mask = mask(op);
    let value = W::get(cpu, 0);
    let bulk = |cpu: &mut Cpu, count: u64| {
        let to = destination(cpu, op);
        let n = count.min(room::<W>(to));
        let entry = *cpu.tlb.entry(to);
        if n == 0 || cpu.rflags & rflag::DF != 0 || entry.write != to & PAGE_MASK {
            return 0;
        }
        let host = to.wrapping_add(entry.addend) as usize;
        // SAFETY: the tag was compared, and `n` elements end inside the page of guest RAM.
        unsafe { ram_access::fill(host, n as usize, value) };
        step(cpu, reg::RDI, n * W::SIZE as u64, mask);
        n
    };
    repeat(cpu, op, bulk, |cpu| {
        cpu.store(destination(cpu, op), value)?;
        let by = stride::<W>(cpu);
        step(cpu, reg::RDI, by, mask);
        Ok(true)
    })
}

/// LODS.
pub(crate) fn lods<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(
        cpu,
        op,
        |_, _| 0,
        |cpu| {
            let value: W = cpu.load(source(cpu, op))?;
            W::set(cpu, 0, value);
            let by = stride::<W>(cpu);
            step(cpu, reg::RSI, by, mask(op));
            Ok(true)
        },
    )
}

/// Whether REPE or REPNE goes on.
#[inline(always)]
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    cpu.flags.zf() == (op.flags & op_flag::REPNE == 0)
}

/// SCAS.
pub(crate) fn scas<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(
        cpu,
        op,
        |_, _| 0,
        |cpu| {
            let value: W = cpu.load(destination(cpu, op))?;
            cpu.flags = Cmp::apply::<W>(cpu.flags, W::get(cpu, 0).zext(), value.zext()).1;
            let by = stride::<W>(cpu);
            step(cpu, reg::RDI, by, mask(op));
            Ok(goes_on(cpu, op))
        },
    )
}

/// CMPS.
pub(crate) fn cmps<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    repeat(
        cpu,
        op,
        |_, _| 0,
        |cpu| {
            let a: W = cpu.load(source(cpu, op))?;
            let b: W = cpu.load(destination(cpu, op))?;
            cpu.flags = Cmp::apply::<W>(cpu.flags, a.zext(), b.zext()).1;
            let by = stride::<W>(cpu);
            step(cpu, reg::RSI, by, mask(op));
            step(cpu, reg::RDI, by, mask(op));
            Ok(goes_on(cpu, op))
        },
    )
}

/// OUTS.
pub(crate) fn outs<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = cpu.gpr[reg::RDX] as u16;
    super::system::io_allowed(cpu, port, W::SIZE)?;
    repeat(
        cpu,
        op,
        |_, _| 0,
        |cpu| {
            let value: W = cpu.load(source(cpu, op))?;
            cpu.watch_port(port, W::SIZE)?;
            if cpu.with_bus(|bus| bus.port_write(port, &value.to_bytes()[..W::SIZE])) == BusResult::Stop {
                cpu.request_stop();
            }
            let by = stride::<W>(cpu);
            step(cpu, reg::RSI, by, mask(op));
            Ok(true)
        },
    )
}

/// INS.
pub(crate) fn ins<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = cpu.gpr[reg::RDX] as u16;
    super::system::io_allowed(cpu, port, W::SIZE)?;
    repeat(
        cpu,
        op,
        |_, _| 0,
        |cpu| {
            let to = destination(cpu, op);
            cpu.check_write(to, W::SIZE)?;
            cpu.watch_port(port, W::SIZE)?;
            let mut data = [0; 4];
            cpu.with_bus(|bus| bus.port_read(port, &mut data[..W::SIZE]));
            cpu.store(to, W::from_bytes(&data))?;
            let by = stride::<W>(cpu);
            step(cpu, reg::RDI, by, mask(op));
            Ok(true)
        },
    )
}
