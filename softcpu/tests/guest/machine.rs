//! A machine for guests of a few instructions: four megabytes mapped one to one, tables that send every
//! exception to a handler that stops the processor, and a few ports.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::x86_64::state::{cr0, cr4, efer, reg, seg};
use softcpu::{Bus, BusResult, Clock, Cpu, Exit, Features, Platform, Ram, RegionSpec, Segment, Table};

/// Bytes of RAM.
const SIZE: usize = 4 << 20;
const PAGE: u64 = 4096;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
/// Two page tables, one for each of the two halves.
const PT: u64 = 0x4000;
pub const GDT: u64 = 0x6000;
pub const IDT: u64 = 0x7000;
const TSS: u64 = 0x8000;
const HANDLERS: u64 = 0x9000;
/// Tops of stacks: the kernel's, the one for entering it from user code, and the first of the interrupt stack
/// table.
pub const STACK: u64 = 0x2_0000;
pub const ENTRY_STACK: u64 = 0x2_4000;
pub const IST1: u64 = 0x2_8000;
/// Kernel code, kernel data: pages that user code may not touch.
pub const KERNEL: u64 = 0x3_0000;
pub const DATA: u64 = 0x4_0000;
/// Where a second processor starts, in real mode.
pub const START: u64 = 0x5_0000;
/// What user code may touch: the second half.
pub const USER: u64 = 0x20_0000;
pub const USER_STACK: u64 = 0x21_1000;
pub const USER_DATA: u64 = 0x22_0000;

pub const CODE64: u16 = 0x08;
pub const DATA_SELECTOR: u16 = 0x10;
pub const USER_CODE32: u16 = 0x1b;
pub const USER_SS: u16 = 0x23;
pub const USER_CODE64: u16 = 0x2b;
const TASK: u16 = 0x30;

/// Ports: an exception's handler, the end of a guest, and a device that writes to RAM by itself.
const TRAP_PORT: u16 = 0xf4;
const DONE_PORT: u16 = 0xf5;
const DMA_PORT: u16 = 0xf6;

/// Page table entry bits.
pub mod page {
    pub const PRESENT: u64 = 1;
    pub const WRITE: u64 = 2;
    pub const USER: u64 = 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    pub const NO_EXECUTE: u64 = 1 << 63;
}

/// Exceptions that push an error code.
const WITH_CODE: [u8; 8] = [8, 10, 11, 12, 13, 14, 17, 21];

/// What an exception's handler found on its stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    pub vector: u64,
    pub code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub cr2: u64,
    /// Where the handler's frame ends: the top of the stack it was given.
    pub top: u64,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Done,
    Trap(Trap),
    Shutdown,
    Kicked,
}

/// What guests reach through ports.
#[derive(Default)]
pub struct Devices {
    pub unimplemented: Vec<String>,
    /// Every write to a port that has no meaning.
    pub written: Vec<(u16, u32)>,
    pub polls: u32,
    /// What the device at the DMA port writes to RAM, and where.
    pub dma: Option<(u64, Vec<u8>)>,
    memory: usize,
    last: u16,
}

impl Bus for Devices {
    fn port_write(&mut self, port: u16, data: &[u8]) -> BusResult {
        self.last = port;
        match port {
            TRAP_PORT | DONE_PORT => return BusResult::Stop,
            DMA_PORT => {
                if let Some((at, bytes)) = &self.dma {
                    // As a device does it: past the processor.
                    let to = std::ptr::with_exposed_provenance_mut::<u8>(self.memory + *at as usize);
                    assert!(*at as usize + bytes.len() <= SIZE);
                    // SAFETY: inside the machine's RAM, which lives as long as it and has no references into
                    // it.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
                }
            }
            _ => {
                let mut value = [0; 4];
                value[..data.len()].copy_from_slice(data);
                self.written.push((port, u32::from_le_bytes(value)));
            }
        }
        BusResult::Continue
    }

    fn unimplemented(&mut self, what: &str, _rip: u64) {
        self.unimplemented.push(what.to_owned());
    }

    fn poll(&mut self) {
        self.polls += 1;
    }
}

/// Host memory for guest RAM: a file that is mapped.
struct Memory(*mut u8, OwnedFd);

// SAFETY: plain memory that only processors access, through pointers.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Memory {
        // SAFETY: the name is a string, and the descriptor is nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC)) };
        // SAFETY: a new mapping, of a file that is made as large before.
        let at = unsafe {
            assert_eq!(libc::ftruncate(file.as_raw_fd(), SIZE as i64), 0);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                SIZE,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Memory(at.cast(), file)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, unmapped once; the machine drops its processor and `Ram` first.
        unsafe { libc::munmap(self.0.cast(), SIZE) };
    }
}

/// A processor with its RAM and devices.
pub struct Machine {
    pub cpu: Box<Cpu>,
    pub devices: Devices,
    pub ram: Arc<Ram>,
    pub platform: Arc<Platform>,
    memory: Memory,
}

impl Machine {
    /// One processor whose time is its instructions.
    pub fn new() -> Machine {
        Machine::with(Clock::Instructions, 1)
    }

    /// One processor that has these extensions.
    pub fn of(features: Features) -> Machine {
        Machine::on(Platform::with_features(1, Clock::Instructions, features))
    }

    /// The first of `cpus` processors.
    pub fn with(clock: Clock, cpus: u32) -> Machine {
        Machine::on(Platform::new(cpus, clock))
    }

    fn on(platform: Arc<Platform>) -> Machine {
        let memory = Memory::new();
        let region = RegionSpec {
            start: 0,
            len: SIZE as u64,
            host: memory.0,
            file: Some(0),
        };
        // SAFETY: the memory is page-aligned, has no references into it and outlives the `Ram`: the machine
        // drops it last.
        let ram = Arc::new(unsafe { Ram::new(&[region]) });
        let cpu = processor(&ram, &platform, 0);
        let devices = Devices {
            memory: memory.0.expose_provenance(),
            ..Devices::default()
        };
        let mut machine = Machine {
            cpu,
            devices,
            ram,
            platform,
            memory,
        };
        machine.write_tables();
        machine
    }

    /// The file behind its RAM.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.memory.1.as_fd()
    }

    /// Another processor, in 64-bit mode at `rip`. Its stack is its own.
    pub fn processor(&self, id: u32, rip: u64) -> Box<Cpu> {
        let mut cpu = processor(&self.ram, &self.platform, id);
        cpu.gpr[reg::RSP] = STACK - PAGE * u64::from(id);
        cpu.rip = rip;
        cpu
    }

    fn write_tables(&mut self) {
        use page::{PRESENT, WRITE};
        self.set_word(PML4, PDPT | PRESENT | WRITE | page::USER);
        self.set_word(PDPT, PD | PRESENT | WRITE | page::USER);
        for half in 0..2 {
            self.set_word(PD + 8 * half, (PT + PAGE * half) | PRESENT | WRITE | page::USER);
        }
        for number in 0..SIZE as u64 / PAGE {
            let user = if number * PAGE >= USER { page::USER } else { 0 };
            self.set_word(PT + 8 * number, (number * PAGE) | PRESENT | WRITE | user);
        }
        for (selector, descriptor) in [
            (CODE64, 0x00af_9b00_0000_ffff),
            (DATA_SELECTOR, 0x00cf_9300_0000_ffff),
            (USER_CODE32 & !3, 0x00cf_fb00_0000_ffff),
            (USER_SS & !3, 0x00cf_f300_0000_ffff),
            (USER_CODE64 & !3, 0x00af_fb00_0000_ffff_u64),
        ] {
            self.set_word(GDT + u64::from(selector), descriptor);
        }
        self.set_word(TSS + 4, ENTRY_STACK);
        self.set_word(TSS + 36, IST1);
        for vector in 0..=255u8 {
            let at = HANDLERS + 16 * u64::from(vector);
            assert!(self.ram.write(at, &handlers()[usize::from(vector)]));
            self.set_gate(vector, at, 0, 0);
        }
    }

    /// Puts code at `at` and returns its length.
    pub fn assemble(
        &mut self,
        at: u64,
        bits: u32,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> u64 {
        let code = assembled(at, bits, write);
        assert!(self.ram.write(at, &code));
        code.len() as u64
    }

    /// Puts the kernel's code, which the processor starts with, and returns its length.
    pub fn kernel(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.assemble(KERNEL, 64, write)
    }

    /// Starts at user code instead, which is put at [`USER`].
    pub fn user(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
        self.kernel(|a| enter(a, USER_CODE64, USER));
        self.assemble(USER, 64, write)
    }

    /// Sends `vector` to `handler`.
    pub fn set_gate(&mut self, vector: u8, handler: u64, ist: u64, dpl: u64) {
        let low = (handler & 0xffff)
            | u64::from(CODE64) << 16
            | ist << 32
            | 0x8e << 40
            | dpl << 45
            | (handler >> 16 & 0xffff) << 48;
        let at = IDT + 16 * u64::from(vector);
        self.set_word(at, low);
        self.set_word(at + 8, handler >> 32);
    }

    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.ram.read(at, &mut bytes));
        u64::from_le_bytes(bytes)
    }

    pub fn set_word(&mut self, at: u64, value: u64) {
        assert!(self.ram.write(at, &value.to_le_bytes()));
    }

    /// The page table entry of the page at `addr`.
    pub fn entry(&self, addr: u64) -> u64 {
        self.word(PT + addr / PAGE * 8)
    }

    /// Maps the page at `addr` to itself with just these bits.
    pub fn map(&mut self, addr: u64, bits: u64) {
        self.set_word(PT + addr / PAGE * 8, (addr / PAGE * PAGE) | bits);
    }

    /// The entries above the page table's for `addr`, outermost first.
    pub fn upper_entries(&self, addr: u64) -> [u64; 3] {
        [PML4, PDPT, PD + 8 * (addr >> 21)].map(|at| self.word(at))
    }

    pub fn run(&mut self) -> End {
        match self.cpu.run(&mut self.devices) {
            Exit::Shutdown => End::Shutdown,
            Exit::Kicked => End::Kicked,
            Exit::Stopped if self.devices.last == TRAP_PORT => {
                let at = self.cpu.gpr[reg::RSP];
                let frame: [u64; 7] = std::array::from_fn(|n| self.word(at + 8 * n as u64));
                End::Trap(Trap {
                    vector: frame[0],
                    code: frame[1],
                    rip: frame[2],
                    cs: frame[3],
                    rflags: frame[4],
                    rsp: frame[5],
                    ss: frame[6],
                    cr2: self.cr2(),
                    top: at + 56,
                })
            }
            Exit::Stopped => End::Done,
        }
    }

    /// Processor 1, which waits for a startup IPI: that leads to `code` in real mode at [`START`].
    pub fn second(&mut self, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Box<Cpu> {
        self.assemble(START, 16, code);
        Box::new(Cpu::new(Arc::clone(&self.ram), Arc::clone(&self.platform), 1).unwrap())
    }

    /// Runs to the end beside a second processor, which is returned.
    pub fn done_beside(&mut self, mut second: Box<Cpu>) -> Box<Cpu> {
        std::thread::scope(|scope| {
            let beside = scope.spawn(move || {
                second.run(&mut Devices::default());
                second
            });
            self.done();
            beside.join().unwrap()
        })
    }

    /// Lets the first processor begin again, with another program at [`USER`].
    pub fn restart(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.assemble(USER, 64, write);
        begin(&mut self.cpu);
    }

    /// Runs to an exception.
    pub fn trap(&mut self) -> Trap {
        match self.run() {
            End::Trap(trap) => trap,
            end => panic!("no exception: {end:?} at {:#x}", self.cpu.rip),
        }
    }

    /// Runs to the end without an exception.
    pub fn done(&mut self) {
        let end = self.run();
        assert_eq!(end, End::Done, "at {:#x}", self.cpu.rip);
    }

    /// CR2, as a guest reads it.
    fn cr2(&mut self) -> u64 {
        const AT: u64 = HANDLERS + 0x1000;
        let saved = (self.cpu.rip, self.cpu.gpr[reg::RAX]);
        self.assemble(AT, 64, |a| {
            a.mov(rax, cr2)?;
            a.out(DONE_PORT as u32, al)
        });
        self.cpu.rip = AT;
        let exit = self.cpu.run(&mut self.devices);
        assert_eq!(exit, Exit::Stopped);
        let value = self.cpu.gpr[reg::RAX];
        (self.cpu.rip, self.cpu.gpr[reg::RAX]) = saved;
        value
    }
}

/// Processor `id`, in 64-bit mode at [`KERNEL`].
fn processor(ram: &Arc<Ram>, platform: &Arc<Platform>, id: u32) -> Box<Cpu> {
    let mut cpu = Box::new(Cpu::new(Arc::clone(ram), Arc::clone(platform), id).unwrap());
    begin(&mut cpu);
    cpu.unpark();
    cpu
}

/// Lets a processor begin at [`KERNEL`].
fn begin(cpu: &mut Cpu) {
    let flat = |selector, access| Segment {
        selector,
        base: 0,
        limit: !0,
        access,
    };
    cpu.set_control(
        cr0::PE | cr0::WP | cr0::PG | cr0::NE,
        PML4,
        cr4::PAE | cr4::OSFXSR,
        efer::LME | efer::LMA | efer::NXE | efer::SCE,
    );
    cpu.set_segment(seg::CS, flat(CODE64, 0xa09b));
    for number in [seg::SS, seg::DS, seg::ES] {
        cpu.set_segment(number, flat(DATA_SELECTOR, 0xc093));
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
    cpu.gpr[reg::RSP] = STACK;
    cpu.rip = KERNEL;
}

/// Every exception's handler. Tests make many machines: the code is made once.
fn handlers() -> &'static [Vec<u8>] {
    static CODE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    CODE.get_or_init(|| {
        let handler = |vector: u8| {
            assembled(0, 64, |a| {
                if !WITH_CODE.contains(&vector) {
                    a.push(0)?;
                }
                a.push(i32::from(vector))?;
                a.out(TRAP_PORT as u32, al)
            })
        };
        (0..=255).map(handler).collect()
    })
}

/// The handler of an exception in 32-bit code.
pub fn handler32(vector: u8) -> Vec<u8> {
    assembled(0, 32, |a| {
        if !WITH_CODE.contains(&vector) {
            a.push(0)?;
        }
        a.push(i32::from(vector))?;
        a.out(TRAP_PORT as u32, al)
    })
}

/// The bytes of code for `at`.
pub fn assembled(
    at: u64,
    bits: u32,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(at).unwrap()
}

/// Goes to user code at `to`.
pub fn enter(a: &mut CodeAssembler, selector: u16, to: u64) -> Result<(), IcedError> {
    a.push(i32::from(USER_SS))?;
    a.push(USER_STACK as i32)?;
    a.push(2)?;
    a.push(i32::from(selector))?;
    a.push(to as i32)?;
    a.iretq()
}

/// Ends the guest.
pub fn done(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(DONE_PORT as u32, al)
}

/// Lets the device write to RAM.
pub fn dma(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(DMA_PORT as u32, al)
}

/// Sets CR4.OSXSAVE, and XCR0.
pub fn enable_xsave(a: &mut CodeAssembler, components: u32) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    a.bts(rax, 18)?;
    a.mov(cr4, rax)?;
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.mov(eax, components)?;
    a.xsetbv()
}

/// Writes a model-specific register.
pub fn wrmsr(a: &mut CodeAssembler, number: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, number)?;
    a.mov(eax, value as u32)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.wrmsr()
}
