//! Control and debug registers, descriptor table registers, MSRs, port I/O, TLB.

use crate::core::bus::BusResult;
use crate::x86_64::access::Gpr;
use crate::x86_64::cpu::{Cpu, Op};
use crate::x86_64::exception::canonical;
use crate::x86_64::flags::Width;
use crate::x86_64::op::Flow;
use crate::x86_64::state::{PHYSICAL_BITS, Table, cr0, cr4, efer, reg};

use super::misc::advance;

/// MOV from CR.
pub(crate) fn mov_from_cr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let value = match op.b {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.cr8(),
        _ => return cpu.undefined(),
    };
    W::set(cpu, op.a, <W as Width>::from(value));
    Ok(())
}

/// MOV to CR; ends its block.
pub(crate) fn mov_to_cr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let value = W::get(cpu, op.b).zext();
    match op.a {
        0 => write_cr0(cpu, value)?,
        2 => cpu.cr2 = value,
        3 => {
            if value >> PHYSICAL_BITS != 0 {
                return cpu.general_protection(0);
            }
            cpu.load_pdptes(cpu.cr0, value, cpu.cr4, cpu.efer)?;
            cpu.cr3 = value;
            cpu.tlb.flush_local();
        }
        4 => write_cr4(cpu, value)?,
        8 => {
            if value > 15 {
                return cpu.general_protection(0);
            }
            cpu.apic.set_cr8(value);
            cpu.request_check();
        }
        _ => return cpu.undefined(),
    }
    advance(cpu, op)
}

fn write_cr0(cpu: &mut Cpu, value: u64) -> Flow {
    let value = value | cr0::ET;
    let known = 0xe005_003f;
    let pages_unprotected = value & cr0::PG != 0 && value & cr0::PE == 0;
    let writes_through_uncached = value & cr0::NW != 0 && value & cr0::CD == 0;
    if value >> 32 != 0 || pages_unprotected || writes_through_uncached {
        return cpu.general_protection(0);
    }
    let value = value & known;
    let mut efer = cpu.efer;
    if value & cr0::PG != 0 && cpu.cr0 & cr0::PG == 0 {
        if efer & efer::LME != 0 {
            if cpu.cr4 & cr4::PAE == 0 {
                return cpu.general_protection(0);
            }
            efer |= efer::LMA;
        }
    } else if value & cr0::PG == 0 {
        if cpu.is_long() {
            return cpu.general_protection(0);
        }
        efer &= !efer::LMA;
    }
    let paging = (cpu.cr0 ^ value) & (cr0::PG | cr0::WP | cr0::PE) != 0;
    if (cpu.cr0 ^ value) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
        cpu.load_pdptes(value, cpu.cr3, cpu.cr4, efer)?;
    }
    cpu.cr0 = value;
    cpu.efer = efer;
    if paging {
        cpu.tlb.flush_all();
        cpu.update_mode();
    }
    Ok(())
}

fn write_cr4(cpu: &mut Cpu, value: u64) -> Flow {
    if value & !cr4::known(cpu.platform.features) != 0 || (cpu.efer & efer::LMA != 0 && value & cr4::PAE == 0)
    {
        return cpu.general_protection(0);
    }
    let changed = cpu.cr4 ^ value;
    if changed & (cr4::PGE | cr4::PAE | cr4::PSE | cr4::SMEP) != 0 {
        cpu.load_pdptes(cpu.cr0, cpu.cr3, value, cpu.efer)?;
    }
    cpu.cr4 = value;
    if changed & (cr4::PGE | cr4::PAE | cr4::PSE | cr4::SMEP | cr4::SMAP) != 0 {
        cpu.tlb.flush_all();
    }
    if changed & cr4::DE != 0 {
        cpu.sort_breakpoints();
    }
    Ok(())
}

/// CLTS.
pub(crate) fn clts(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    Ok(())
}

/// SMSW.
pub(crate) fn smsw<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    may_look(cpu)?;
    if op.has_memory() {
        return cpu.store(cpu.address(op), cpu.cr0 as u16);
    }
    W::set(cpu, op.a, <W as Width>::from(cpu.cr0));
    Ok(())
}

/// SGDT, SIDT, SLDT, SMSW and STR show programs where the system's tables are, unless UMIP forbids it.
pub(crate) fn may_look(cpu: &mut Cpu) -> Flow {
    if cpu.cr4 & cr4::UMIP != 0 && cpu.cpl != 0 {
        return cpu.general_protection(0);
    }
    Ok(())
}

/// LMSW: the low four bits of CR0, but PE cannot be cleared.
pub(crate) fn lmsw(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let value: u16 = if op.has_memory() {
        cpu.load(cpu.address(op))?
    } else {
        u16::get(cpu, op.a)
    };
    let pe = cpu.cr0 & cr0::PE;
    write_cr0(cpu, cpu.cr0 & !0xf | value as u64 & 0xf | pe)?;
    advance(cpu, op)
}

/// MOV from DR.
pub(crate) fn mov_from_dr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    let value = cpu.read_debug(op.b)?;
    W::set(cpu, op.a, <W as Width>::from(value));
    Ok(())
}

/// MOV to DR; ends its block.
pub(crate) fn mov_to_dr<W: Gpr>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.write_debug(op.a, W::get(cpu, op.b).zext())?;
    advance(cpu, op)
}

/// LGDT (`IDT` false) and LIDT.
pub(crate) fn load_table<W: Gpr, const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let addr = cpu.address(op);
    let limit: u16 = cpu.load(addr)?;
    let mut base = if W::BITS == 64 {
        cpu.load::<u64>(addr.wrapping_add(2))?
    } else {
        cpu.load::<u32>(addr.wrapping_add(2))? as u64
    };
    if W::BITS == 16 {
        base &= 0xff_ffff;
    }
    if !canonical(base) {
        return cpu.general_protection(0);
    }
    let table = Table { base, limit };
    if IDT {
        cpu.idt = table;
    } else {
        cpu.gdt = table;
    }
    Ok(())
}

/// SGDT (`IDT` false) and SIDT.
pub(crate) fn store_table<W: Gpr, const IDT: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    may_look(cpu)?;
    let table = if IDT { cpu.idt } else { cpu.gdt };
    let addr = cpu.address(op);
    cpu.check_write(addr, 2 + if W::BITS == 64 { 8 } else { 4 })?;
    cpu.store(addr, table.limit)?;
    if W::BITS == 64 {
        cpu.store(addr.wrapping_add(2), table.base)
    } else {
        cpu.store(addr.wrapping_add(2), table.base as u32)
    }
}

/// INVLPG.
pub(crate) fn invlpg(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let addr = cpu.address(op);
    cpu.tlb.flush_page(addr);
    advance(cpu, op)
}

/// WBINVD, INVD.
pub(crate) fn wbinvd(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.privileged()
}

/// RDMSR.
pub(crate) fn rdmsr(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let number = cpu.gpr[reg::RCX] as u32;
    let value = cpu.read_msr(number, op.idx as u64)?;
    cpu.gpr[reg::RAX] = value as u32 as u64;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(())
}

/// WRMSR; ends its block.
pub(crate) fn wrmsr(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.privileged()?;
    let value = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] as u32 as u64;
    cpu.write_msr(cpu.gpr[reg::RCX] as u32, value, op.idx as u64)?;
    advance(cpu, op)
}

/// RDPMC. There are no counters, so that every number of one is wrong.
pub(crate) fn rdpmc(cpu: &mut Cpu, _: &Op) -> Flow {
    cpu.general_protection(0)
}

/// Whether a program may use a port: the I/O privilege level, or the bitmap of the task state segment.
pub(crate) fn io_allowed(cpu: &mut Cpu, port: u16, size: usize) -> Flow {
    if cpu.cr0 & cr0::PE == 0 || cpu.cpl as u64 <= cpu.rflags >> 12 & 3 {
        return Ok(());
    }
    if cpu.tr.limit >= 0x67 {
        let word = cpu.load_system(cpu.tr.base.wrapping_add(0x60))?;
        let map = (word >> 48) as u32;
        let at = map + port as u32 / 8;
        if at < cpu.tr.limit {
            let bits = cpu.load_system(cpu.tr.base.wrapping_add(at as u64))? as u16;
            if bits >> (port % 8) & ((1 << size) - 1) == 0 {
                return Ok(());
            }
        }
    }
    cpu.general_protection(0)
}

/// IN; the port is immediate where `IMM` is set, and otherwise DX.
pub(crate) fn input<W: Gpr, const IMM: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = if IMM {
        op.imm as u8 as u16
    } else {
        cpu.gpr[reg::RDX] as u16
    };
    io_allowed(cpu, port, W::SIZE)?;
    cpu.watch_port(port, W::SIZE)?;
    let mut data = [0xff; 4];
    cpu.with_bus(|bus| bus.port_read(port, &mut data[..W::SIZE]));
    W::set(cpu, 0, W::from_bytes(&data));
    advance(cpu, op)
}

/// OUT.
pub(crate) fn output<W: Gpr, const IMM: bool>(cpu: &mut Cpu, op: &Op) -> Flow {
    let port = if IMM {
        op.imm as u8 as u16
    } else {
        cpu.gpr[reg::RDX] as u16
    };
    io_allowed(cpu, port, W::SIZE)?;
    cpu.watch_port(port, W::SIZE)?;
    let data = W::get(cpu, 0).to_bytes();
    if cpu.with_bus(|bus| bus.port_write(port, &data[..W::SIZE])) == BusResult::Stop {
        cpu.request_stop();
    }
    advance(cpu, op)
}

/// CLFLUSH and its kin only check their address.
pub(crate) fn touch(cpu: &mut Cpu, op: &Op) -> Flow {
    cpu.load::<u8>(cpu.address(op)).map(|_| ())
}
