//! Cases run by softcpu: a machine of four regions of RAM, just enough system structures to enter ring 3 and
//! to come back with whatever exception ends the case.

use super::case::*;
use super::compare::WITH_ERROR_CODE;
use iced_x86::{Code, OpCodeOperandKind};
use softcpu::x86_64::exception::vector;
use softcpu::x86_64::simd::mxcsr::Mxcsr;
use softcpu::x86_64::state::{cr0, cr4, efer, seg, xcr0};
use softcpu::x86_64::x87::{Fpu, Fxsave};
use softcpu::{Bus, BusResult, Clock, Cpu, Platform, Ram, RegionSpec, Segment, Table};
use std::sync::Arc;

/// Where the system structures are: guest-physical addresses, all in the first region, which is mapped far
/// from anything that user code is likely to touch.
mod system {
    /// Linear address of physical address zero.
    pub const LINEAR: u64 = 0xffff_f000_0000_0000;
    pub const TABLES: u64 = 0x1_0000;
    pub const GDT: u64 = 0x2_0000;
    pub const IDT: u64 = 0x2_1000;
    pub const TSS: u64 = 0x2_2000;
    pub const HANDLERS: u64 = 0x2_3000;
    /// Where the page fault's handler leaves CR2.
    pub const CR2: u64 = 0x2_6000;
    pub const STACK: u64 = 0x2_8000;
    pub const SIZE: u64 = 0x3_0000;
    /// Bytes between handlers.
    pub const HANDLER_SIZE: u64 = 64;
    /// The ring 0 code segment.
    pub const CODE: u16 = 8;
}

/// Codes with an operand that the generator cannot make.
pub fn generable(code: Code) -> bool {
    use OpCodeOperandKind as K;
    !code.op_code().op_kinds().iter().any(|kind| {
        matches!(
            kind,
            K::mem_mpx
                | K::mem_mib
                | K::r32_or_mem_mpx
                | K::r64_or_mem_mpx
                | K::bnd_reg
                | K::bnd_or_mem_mpx
                | K::tr_reg
                | K::xbegin_2
                | K::xbegin_4
                | K::brdisp_2
                | K::brdisp_4
                | K::imm4_m2z
                | K::k_reg
                | K::k_rm
                | K::k_vvvv
                | K::k_or_mem
                | K::tmm_reg
                | K::tmm_rm
                | K::tmm_vvvv
                | K::sibmem
        )
    })
}

/// A page of guest RAM.
#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Page([u8; PAGE]);

/// What the bus saw.
#[derive(Default)]
struct Watcher {
    /// The vector whose handler ran: it is the port that the handler writes to.
    vector: Option<u16>,
    /// softcpu said that it does not have the instruction.
    unimplemented: bool,
}

impl Bus for Watcher {
    fn port_write(&mut self, port: u16, _data: &[u8]) -> BusResult {
        self.vector = Some(port);
        BusResult::Stop
    }

    fn unimplemented(&mut self, _what: &str, _rip: u64) {
        self.unimplemented = true;
    }
}

/// The processor and its RAM.
pub struct Machine {
    cpu: Box<Cpu>,
    ram: Arc<Ram>,
    watcher: Watcher,
    /// Keeps guest RAM mapped for as long as `ram` is used.
    _memory: Vec<Vec<Page>>,
}

const USER_CODE_64: Segment = segment(CS64, 0xa0fb);
const USER_CODE_32: Segment = segment(CS32, 0xc0fb);
const USER_DATA: Segment = segment(SS, 0xc0f3);

const fn segment(selector: u16, access: u16) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: !0,
        access,
    }
}

impl Machine {
    /// A machine whose page tables map the pages of [`case`](super::case) for ring 3.
    pub fn new() -> Machine {
        let regions = [
            (0, system::SIZE),
            (CODE, PAGE as u64),
            (DATA, PAGE as u64),
            (CONSTANTS, PAGE as u64),
        ];
        let mut memory: Vec<Vec<Page>> = regions
            .iter()
            .map(|(_, size)| vec![Page([0; PAGE]); *size as usize / PAGE])
            .collect();
        let specs: Vec<RegionSpec> = regions
            .iter()
            .zip(&mut memory)
            .map(|((start, len), pages)| RegionSpec {
                start: *start,
                len: *len,
                host: pages.as_mut_ptr().cast(),
                file: None,
            })
            .collect();
        // SAFETY: the pages are aligned and live in `_memory` as long as the `Ram`; nobody touches them
        // otherwise.
        let ram = Arc::new(unsafe { Ram::new(&specs) });
        write_system(&ram);
        let cpu = new_cpu(&ram);
        Machine {
            cpu,
            ram,
            watcher: Watcher::default(),
            _memory: memory,
        }
    }

    /// Whether the last case met an instruction that softcpu does not have.
    pub fn unimplemented(&self) -> bool {
        self.watcher.unimplemented
    }

    /// Runs a case until an exception.
    pub fn run(&mut self, case: &Case) -> Outcome {
        self.load_memory(case);
        self.load_registers(case);
        self.watcher = Watcher::default();
        self.cpu.run(&mut self.watcher);
        self.outcome(case)
    }

    fn load_memory(&self, case: &Case) {
        let mut page = [0xcc; PAGE];
        let start = (START - CODE) as usize;
        page[start..start + case.length as usize].copy_from_slice(&case.code[..case.length as usize]);
        self.ram.write(CODE, &page);
        fill_memory(case.memory_seed, &mut page);
        self.ram.write(DATA, &page);
    }

    fn load_registers(&mut self, case: &Case) {
        let (cpu, state) = (&mut self.cpu, &case.state);
        let code = if case.bitness == 64 {
            USER_CODE_64
        } else {
            USER_CODE_32
        };
        for number in [seg::ES, seg::DS, seg::SS] {
            cpu.set_segment(number, USER_DATA);
        }
        cpu.set_segment(seg::FS, segment(0, 0xc0f3));
        cpu.set_segment(
            seg::GS,
            Segment {
                base: GS_BASE,
                ..segment(0, 0xc0f3)
            },
        );
        cpu.set_segment(seg::CS, code);
        cpu.gpr[..16].copy_from_slice(&state.gpr);
        cpu.rip = START;
        cpu.set_rflags(state.rflags);
        cpu.xmm = std::array::from_fn(|i| state.xmm(i));
        cpu.ymm_upper = state.upper;
        cpu.mxcsr = Mxcsr::from_bits(state.mxcsr()).expect("the generator sets no reserved bit");
        let mut image = Fxsave {
            header: [0; 24],
            registers: std::array::from_fn(|i| state.slot(32 + 16 * i)),
        };
        image.header.copy_from_slice(&state.fx[..24]);
        cpu.x87 = Fpu::from_fxsave(&image, true);
    }

    fn outcome(&self, case: &Case) -> Outcome {
        let cpu = &self.cpu;
        let vector = self.watcher.vector.map_or(u32::MAX, u32::from);
        let mut at = cpu.gpr[4].wrapping_sub(system::LINEAR);
        let mut error = 0;
        if WITH_ERROR_CODE.contains(&vector) {
            error = self.word(at) as u32;
            at += 8;
        }
        let mut state = case.state;
        state.gpr.copy_from_slice(&cpu.gpr[..16]);
        state.rip = self.word(at);
        if vector == vector::BP as u32 {
            state.rip = state.rip.wrapping_sub(1);
        }
        state.rflags = self.word(at + 16);
        state.gpr[4] = self.word(at + 24);
        let Fxsave { header, registers } = cpu.x87.to_fxsave(true);
        state.fx[..24].copy_from_slice(&header);
        state.fx[24..28].copy_from_slice(&cpu.mxcsr.bits().to_le_bytes());
        for (i, register) in registers.into_iter().enumerate() {
            state.set_slot(32 + 16 * i, register);
        }
        state.upper = cpu.ymm_upper;
        for (i, register) in cpu.xmm.into_iter().enumerate() {
            state.set_slot(160 + 16 * i, register);
        }
        let mut memory = [0; PAGE];
        self.ram.read(DATA, &mut memory);
        Outcome {
            vector,
            error,
            address: self.word(system::CR2),
            state,
            memory,
        }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// A processor in ring 0 of long mode with the tables of [`write_system`].
fn new_cpu(ram: &Arc<Ram>) -> Box<Cpu> {
    let platform = Platform::new(1, Clock::Instructions);
    let mut cpu = Box::new(Cpu::new(ram.clone(), platform, 0).expect("the platform has a processor"));
    let control = cr0::PE | cr0::MP | cr0::NE | cr0::WP | cr0::PG;
    let extensions = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    cpu.set_control(
        control,
        system::TABLES,
        extensions,
        efer::LME | efer::LMA | efer::NXE | efer::SCE,
    );
    cpu.set_tables(
        Table {
            base: system::LINEAR + system::GDT,
            limit: 0x37,
        },
        Table {
            base: system::LINEAR + system::IDT,
            limit: 32 * 16 - 1,
        },
    );
    let task = Segment {
        selector: 0x38,
        base: system::LINEAR + system::TSS,
        limit: 0x67,
        access: 0x8b,
    };
    cpu.set_system_segments(Segment::default(), task);
    cpu.set_xcr0(xcr0::X87 | xcr0::SSE | xcr0::AVX);
    cpu.unpark();
    cpu
}

fn put(ram: &Ram, at: u64, word: u64) {
    assert!(ram.write(at, &word.to_le_bytes()), "{at:#x} is not RAM");
}

/// Page tables, descriptor tables, handlers and the page of constants.
fn write_system(ram: &Ram) {
    write_page_tables(ram);
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    for (i, descriptor) in descriptors.into_iter().enumerate() {
        put(ram, system::GDT + 8 * i as u64, descriptor);
    }
    // RSP0 is at offset 4; at 0x66 is the offset of the I/O permissions: behind the limit, so there are none.
    ram.write(system::TSS + 4, &(system::LINEAR + system::STACK).to_le_bytes());
    ram.write(system::TSS + 0x66, &0x68u16.to_le_bytes());
    for vector in 0..32u64 {
        let physical = system::HANDLERS + vector * system::HANDLER_SIZE;
        let handler = system::LINEAR + physical;
        // INT3, INTO and BOUND come from ring 3.
        let kind = if (3..6).contains(&vector) { 0xee } else { 0x8e };
        let low =
            handler & 0xffff | (system::CODE as u64) << 16 | kind << 40 | (handler >> 16 & 0xffff) << 48;
        put(ram, system::IDT + 16 * vector, low);
        put(ram, system::IDT + 16 * vector + 8, handler >> 32);
        ram.write(physical, &handler_code(vector as u8));
    }
    let mut constants = [0; PAGE];
    fill_memory(0, &mut constants);
    ram.write(CONSTANTS, &constants);
}

/// `out vector, al`, which stops the processor; the page fault's handler saves CR2 before.
fn handler_code(vector: u8) -> Vec<u8> {
    let mut code = Vec::new();
    if vector == vector::PF {
        // push rax; mov rax, cr2; mov [CR2], rax; pop rax
        code.extend([0x50, 0x0f, 0x20, 0xd0, 0x48, 0xa3]);
        code.extend((system::LINEAR + system::CR2).to_le_bytes());
        code.push(0x58);
    }
    code.extend([0xe6, vector]);
    code
}

fn write_page_tables(ram: &Ram) {
    const PRESENT: u64 = 1;
    const WRITE: u64 = 2;
    const USER: u64 = 4;
    const NO_EXECUTE: u64 = 1 << 63;
    let table = |n: u64| system::TABLES + n * PAGE as u64;
    let link = PRESENT | WRITE | USER;
    put(ram, table(0), table(1) | link);
    put(ram, table(1), table(2) | link);
    for page in (0..system::SIZE).step_by(PAGE) {
        put(ram, table(3) + page / PAGE as u64 * 8, page | PRESENT | WRITE);
    }
    // The system's own three levels, from the top of the address space's upper half.
    let index = |level: u32| (system::LINEAR >> (12 + 9 * level) & 511) * 8;
    put(ram, table(0) + index(3), table(7) | link);
    put(ram, table(7) + index(2), table(8) | link);
    put(ram, table(8) + index(1), table(3) | link);
    let user = [
        (CODE, PRESENT | WRITE | USER),
        (DATA, PRESENT | WRITE | USER | NO_EXECUTE),
        (CONSTANTS, PRESENT | USER | NO_EXECUTE),
    ];
    for (i, (page, rights)) in user.into_iter().enumerate() {
        let leaf = table(4 + i as u64);
        put(ram, table(2) + (page >> 21) * 8, leaf | link);
        put(ram, leaf + (page >> 12 & 511) * 8, page | rights);
    }
}
