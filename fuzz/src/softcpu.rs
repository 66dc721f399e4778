//! The software processor: any bytes as code, under any page tables, at any privilege level, for a limited
//! number of instructions.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use softcpu::x86_64::state::{cr0, cr4, efer, reg, seg};
use softcpu::{Bus, Clock, Cpu, Platform, Ram, RegionSpec, Segment, Table};

use crate::input::Input;

const PAGE: u64 = 4096;
/// Bytes of RAM: tables, code and data, all of it mapped at 0.
const SIZE: u64 = 64 * PAGE;
/// Instructions of one input at most.
const MAX_INSTRUCTIONS: u64 = 20_000;
/// How often a processor may wait for input before it is stopped.
const MAX_POLLS: u32 = 4;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const TSS: u64 = 0x7000;
const CODE: u64 = 0x10000;
const STACK: u64 = 0x20000;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;

/// Selectors of the descriptor table below.
const CODE64: u16 = 0x08;
const DATA: u16 = 0x10;
const USER_CODE32: u16 = 0x1b;
const USER_DATA: u16 = 0x23;
const USER_CODE64: u16 = 0x2b;
const TASK: u16 = 0x30;

/// A bus without devices, on which waiting ends soon.
struct Silence {
    platform: Arc<Platform>,
    polls: u32,
}

impl Bus for Silence {
    fn unimplemented(&mut self, _what: &str, _rip: u64) {}

    fn poll(&mut self) {
        self.polls += 1;
        if self.polls > MAX_POLLS {
            self.platform.kick(0);
        }
    }
}

/// Host memory for RAM.
struct Memory(*mut u8);

impl Memory {
    fn layout() -> Layout {
        Layout::from_size_align(SIZE as usize, PAGE as usize).expect("a page is a power of two")
    }

    fn new() -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(Memory::layout()) };
        assert!(!memory.is_null(), "no memory");
        Memory(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, freed once; `run` drops processor and `Ram` first.
        unsafe { dealloc(self.0, Memory::layout()) };
    }
}

/// What runs now, with the number of its run.
type Running = Mutex<(u64, Option<Arc<Platform>>)>;

/// Kicks a processor that has run for longer than instructions take: a fault whose handler faults again on a
/// stack of its own, or a long repetition, retires nothing. A processor that does not even hear a kick hangs,
/// which is a finding.
fn watch(platform: Option<&Arc<Platform>>) {
    const TIMEOUT: Duration = Duration::from_millis(5);
    static RUNNING: OnceLock<&'static Running> = OnceLock::new();
    let running = RUNNING.get_or_init(|| {
        let running: &Running = Box::leak(Box::default());
        thread::spawn(move || {
            let mut seen = 0;
            loop {
                thread::sleep(TIMEOUT);
                let running = running.lock().unwrap_or_else(PoisonError::into_inner);
                let (number, platform) = &*running;
                if let Some(platform) = platform.as_ref().filter(|_| *number == seen) {
                    platform.kick(0);
                }
                seen = *number;
            }
        });
        running
    });
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    *running = (running.0 + 1, platform.cloned());
}

/// How the processor begins: privilege and width of the code.
#[derive(Clone, Copy)]
enum Mode {
    Kernel64,
    User64,
    User32,
}

/// The first bytes choose the mode, control bits, what is changed in the tables, and registers; the rest is
/// code.
pub fn run(data: &[u8]) {
    let memory = Memory::new();
    let region = RegionSpec {
        start: 0,
        len: SIZE,
        host: memory.0,
        file: None,
    };
    // SAFETY: the memory is page-aligned, has no references into it and is dropped after the `Ram`.
    let ram = Arc::new(unsafe { Ram::new(&[region]) });
    let platform = Platform::new(1, Clock::Instructions);
    let cpu = Cpu::new(ram.clone(), platform.clone(), 0);
    let mut cpu = Box::new(cpu.expect("the platform has a processor"));
    let mut input = Input::new(data);
    let mode = input.one_of(&[Mode::Kernel64, Mode::User64, Mode::User32]);
    write_tables(&ram);
    start(&mut cpu, mode, &mut input);
    disturb(&ram, &mut input);
    ram.write(CODE, input.rest());
    cpu.set_limit(MAX_INSTRUCTIONS);
    watch(Some(&platform));
    cpu.run(&mut Silence { platform, polls: 0 });
    watch(None);
    let over = cpu.retired().saturating_sub(MAX_INSTRUCTIONS);
    assert!(over < PAGE, "the limit was passed by {over} instructions");
}

fn put(ram: &Ram, at: u64, word: u64) {
    assert!(ram.write(at, &word.to_le_bytes()), "{at:#x} is not RAM");
}

fn write_tables(ram: &Ram) {
    let link = PRESENT | WRITE | USER;
    put(ram, PML4, PDPT | link);
    // The upper half shows the same, so that addresses with bit 63 lead somewhere, too.
    put(ram, PML4 + 511 * 8, PDPT | link);
    put(ram, PDPT, PD | link);
    put(ram, PDPT + 511 * 8, PD | link);
    put(ram, PD, PT | link);
    put(ram, PD + 511 * 8, PT | link);
    for page in 0..SIZE / PAGE {
        put(ram, PT + 8 * page, (page * PAGE) | link);
    }
    let descriptors: [(u16, u64); 5] = [
        (CODE64, 0x00af_9b00_0000_ffff),
        (DATA, 0x00cf_9300_0000_ffff),
        (USER_CODE32 & !3, 0x00cf_fb00_0000_ffff),
        (USER_DATA & !3, 0x00cf_f300_0000_ffff),
        (USER_CODE64 & !3, 0x00af_fb00_0000_ffff),
    ];
    for (selector, descriptor) in descriptors {
        put(ram, GDT + u64::from(selector), descriptor);
    }
    ram.write(TSS + 4, &STACK.to_le_bytes());
    // Handlers are code of the input as well.
    for vector in 0..256 {
        let handler = CODE + vector % 16 * 64;
        let gate = handler & 0xffff | u64::from(CODE64) << 16 | 0xee << 40 | (handler >> 16 & 0xffff) << 48;
        put(ram, IDT + 16 * vector, gate);
    }
}

fn start(cpu: &mut Cpu, mode: Mode, input: &mut Input<'_>) {
    let (code, access, data, data_access) = match mode {
        Mode::Kernel64 => (CODE64, 0xa09b, DATA, 0xc093),
        Mode::User64 => (USER_CODE64, 0xa0fb, USER_DATA, 0xc0f3),
        Mode::User32 => (USER_CODE32, 0xc0fb, USER_DATA, 0xc0f3),
    };
    let flat = |selector, access| Segment {
        selector,
        base: 0,
        limit: !0,
        access,
    };
    let choice = input.byte();
    let bit = |number: u8, value: u64| if choice & 1 << number == 0 { value } else { 0 };
    cpu.set_control(
        cr0::PE | cr0::PG | cr0::NE | bit(0, cr0::WP),
        PML4,
        cr4::PAE | bit(1, cr4::OSFXSR) | bit(2, cr4::OSXMMEXCPT) | bit(3, cr4::SMEP) | bit(3, cr4::SMAP),
        efer::LME | efer::LMA | bit(4, efer::NXE) | bit(5, efer::SCE),
    );
    cpu.set_segment(seg::CS, flat(code, access));
    for number in [seg::SS, seg::DS, seg::ES] {
        cpu.set_segment(number, flat(data, data_access));
    }
    let task = Segment {
        selector: TASK,
        base: TSS,
        limit: 103,
        access: 0x8b,
    };
    cpu.set_system_segments(Segment::default(), task);
    let table = |base, limit| Table { base, limit };
    cpu.set_tables(table(GDT, 0x3f), table(IDT, 0xfff));
    cpu.set_rflags(input.half().into());
    for register in 0..16 {
        // Mostly something that is mapped.
        cpu.gpr[register] = match choice & 0x40 {
            0 => u64::from(input.half()) * 4,
            _ => input.long(),
        };
    }
    cpu.gpr[reg::RSP] = STACK;
    // A repeated instruction counts as one, and nothing but a request ends it early.
    cpu.gpr[reg::RCX] &= 0xffff;
    cpu.rip = CODE;
    cpu.unpark();
}

/// Changes words of page tables, descriptors and gates.
fn disturb(ram: &Ram, input: &mut Input<'_>) {
    let changes = input.byte() % 16;
    for _ in 0..changes {
        let table = input.one_of(&[PML4, PDPT, PD, PT, PT, GDT, IDT, TSS]);
        let entry = match input.byte() {
            255 => 511,
            byte => u64::from(byte % 64),
        };
        let value = match input.byte() % 4 {
            // A table or page of RAM with bits of any kind.
            0 | 1 => (u64::from(input.byte() % 64) * PAGE) | u64::from(input.half() & 0x0fff),
            2 => input.long(),
            _ => 0,
        };
        put(ram, table + 8 * entry, value);
    }
}
