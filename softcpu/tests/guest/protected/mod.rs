//! Protected mode outside of long mode: its two kinds of page tables, its gates and stacks, and the ways
//! in and out.

mod exceptions;
mod paging;
mod switches;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::{cr0, cr4, efer, reg, seg};
use softcpu::{Segment, Table};

use crate::machine::{
    DATA_SELECTOR, ENTRY_STACK, End, GDT, IDT, KERNEL, Machine, STACK, Trap, USER, USER_CODE32, USER_SS,
    USER_STACK, assembled, handler32, page,
};

/// 32-bit kernel code, and the task state segment.
const CODE32: u16 = 0x38;
const TASK: u16 = 0x30;
const TSS: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
/// What CR3 points to: the page directory, or the four entries of PAE paging.
const TOP: u64 = 0x1_0000;
/// Page directory of PAE paging, and the page tables of both kinds.
const PAE_DIRECTORY: u64 = 0x1_1000;
const TABLES: u64 = 0x1_2000;

/// The kinds of paging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paging {
    TwoLevels,
    Pae,
}

const BOTH: [Paging; 2] = [Paging::TwoLevels, Paging::Pae];

impl Paging {
    fn entry_size(self) -> u64 {
        match self {
            Paging::TwoLevels => 4,
            Paging::Pae => 8,
        }
    }

    /// Where the page table entry of an address below 4 MiB is.
    fn entry_at(self, addr: u64) -> u64 {
        TABLES + addr / 4096 * self.entry_size()
    }

    fn cr4(self) -> u64 {
        cr4::OSFXSR
            | match self {
                Paging::TwoLevels => 0,
                Paging::Pae => cr4::PAE,
            }
    }
}

/// What an exception's 32-bit handler found on its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trap32 {
    vector: u32,
    code: u32,
    eip: u64,
    cs: u16,
    eflags: u64,
    /// Only of another privilege level.
    esp: u64,
    ss: u16,
    cr2: u64,
    /// Where the stack pointer is before what the handler pushed itself.
    sp: u64,
}

/// `trap` was read as a 64-bit handler's frame: each of its words is two.
fn narrow(trap: Trap) -> Trap32 {
    let (low, high) = (|word: u64| word & 0xffff_ffff, |word: u64| word >> 32);
    Trap32 {
        vector: low(trap.vector) as u32,
        code: high(trap.vector) as u32,
        eip: low(trap.code),
        cs: high(trap.code) as u16,
        eflags: low(trap.rip),
        esp: high(trap.rip),
        ss: low(trap.cs) as u16,
        cr2: trap.cr2,
        sp: trap.top - 56 + 8,
    }
}

/// A machine in protected mode at [`KERNEL`], with paging of one kind: RAM is mapped to itself.
struct Protected {
    machine: Machine,
    paging: Paging,
}

impl Protected {
    fn new(paging: Paging) -> Protected {
        let mut this = Protected {
            machine: Machine::new(),
            paging,
        };
        this.write_page_tables();
        let machine = &mut this.machine;
        machine.set_word(GDT + u64::from(CODE32), 0x00cf_9b00_0000_ffff);
        machine.set_word(GDT + u64::from(TASK), 0x0000_8b00_8000_0067);
        machine.set_word(TSS, ENTRY_STACK << 32);
        machine.set_word(TSS + 8, DATA_SELECTOR.into());
        for vector in 0..=255u8 {
            let at = HANDLERS + 16 * u64::from(vector);
            assert!(machine.ram.write(at, &handler32(vector)));
            set_gate(machine, vector, at, 0x8e);
        }
        let cpu = &mut machine.cpu;
        let no_execute = if paging == Paging::Pae { efer::NXE } else { 0 };
        cpu.set_control(
            cr0::PE | cr0::WP | cr0::PG | cr0::NE,
            TOP,
            paging.cr4(),
            no_execute,
        );
        let flat = |selector, access| Segment {
            selector,
            base: 0,
            limit: !0,
            access,
        };
        cpu.set_segment(seg::CS, flat(CODE32, 0xc09b));
        let task = Segment {
            selector: TASK,
            base: TSS,
            limit: 0x67,
            access: 0x8b,
        };
        cpu.set_system_segments(Segment::default(), task);
        let table = |base, limit| Table { base, limit };
        cpu.set_tables(table(GDT, 0x3f), table(IDT, 0x7ff));
        cpu.gpr[reg::RSP] = STACK;
        this
    }

    fn write_page_tables(&mut self) {
        let all = page::PRESENT | page::WRITE | page::USER;
        match self.paging {
            Paging::TwoLevels => self.set_entry(TOP, TABLES | all),
            Paging::Pae => {
                self.set_entry(TOP, PAE_DIRECTORY | page::PRESENT);
                for half in 0..2 {
                    self.set_entry(PAE_DIRECTORY + 8 * half, (TABLES + 4096 * half) | all);
                }
            }
        }
        for number in 0..1024 {
            let user = if number * 4096 >= USER { page::USER } else { 0 };
            self.map(number * 4096, page::PRESENT | page::WRITE | user);
        }
    }

    /// Writes an entry of a table.
    fn set_entry(&mut self, at: u64, entry: u64) {
        let bytes = entry.to_le_bytes();
        let size = self.paging.entry_size() as usize;
        assert!(self.machine.ram.write(at, &bytes[..size]));
    }

    fn entry(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let size = self.paging.entry_size() as usize;
        assert!(self.machine.ram.read(at, &mut bytes[..size]));
        u64::from_le_bytes(bytes)
    }

    /// Maps the page at `addr` to itself with just these bits.
    fn map(&mut self, addr: u64, bits: u64) {
        self.map_to(addr, addr & !0xfff | bits);
    }

    /// Sets the page table entry of the page at `addr`.
    fn map_to(&mut self, addr: u64, entry: u64) {
        self.set_entry(self.paging.entry_at(addr), entry);
    }

    fn kernel(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.machine.assemble(KERNEL, 32, write)
    }

    /// Starts at user code instead.
    fn user(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.kernel(enter_user);
        self.machine.assemble(USER, 32, write)
    }

    fn trap(&mut self) -> Trap32 {
        match self.machine.run() {
            End::Trap(trap) => narrow(trap),
            end => panic!("no exception: {end:?} at {:#x}", self.machine.cpu.rip),
        }
    }

    fn word(&self, at: u64) -> u32 {
        self.machine.word(at) as u32
    }
}

/// Sends `vector` to `handler` by a gate with this access byte.
fn set_gate(machine: &mut Machine, vector: u8, handler: u64, access: u64) {
    let gate = (handler & 0xffff) | u64::from(CODE32) << 16 | access << 40 | (handler & 0xffff_0000) << 32;
    machine.set_word(IDT + 8 * u64::from(vector), gate);
}

/// Goes to user code at [`USER`].
fn enter_user(a: &mut CodeAssembler) -> Result<(), IcedError> {
    enter_user_with(a, 2)
}

/// The same with these flags.
fn enter_user_with(a: &mut CodeAssembler, flags: i32) -> Result<(), IcedError> {
    a.mov(eax, i32::from(USER_SS))?;
    a.mov(ds, eax)?;
    a.push(i32::from(USER_SS))?;
    a.push(USER_STACK as i32)?;
    a.push(flags)?;
    a.push(i32::from(USER_CODE32))?;
    a.push(USER as i32)?;
    a.iretd()
}

/// The length of 32-bit code.
fn length(write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
    assembled(KERNEL, 32, write).len() as u64
}
