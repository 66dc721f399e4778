//! A malicious kernel: an ELF of a page of code that carries out a list of loads and stores.
//!
//! The list is made here; the kernel only executes it.

/// Where the kernel lies in guest RAM, and where in it the page tables and the list are.
const BASE: u64 = 0x40_0000;
const TABLES: u64 = BASE + 0x1000;
const LIST: u64 = BASE + 0x8000;
/// Virtio transports of an x86_64 machine (docs/machine.md).
const TRANSPORTS: u64 = 0xc000_1000;
/// RAM that nothing else uses: rings and buffers.
pub const SCRATCH: u64 = 0x80_0000;
/// Serial port, and the sleep control register with the value for S5.
const SERIAL: u64 = 0x3f8;
const SLEEP: u64 = 0x600;
const SOFT_OFF: u64 = 5 << 2 | 1 << 5;

/// Registers of a transport (VIRTIO 1.3 §4.2.2).
pub mod register {
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

/// `mov rax, TABLES; mov cr3, rax; mov esi, LIST`, then for each entry (operation, address, value) of 24
/// bytes: operation 1 stores 32 bits, 2 stores 64 bits, 3 loads 32 bits, 4 writes a byte to a port, 5 pauses,
/// anything else halts for good.
fn code() -> Vec<u8> {
    use iced_x86::code_asm::*;
    let assemble = || -> Result<Vec<u8>, iced_x86::IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut labels: [CodeLabel; 6] = std::array::from_fn(|_| a.create_label());
        let (mut next, mut end) = (a.create_label(), a.create_label());
        a.mov(rax, TABLES)?;
        a.mov(cr3, rax)?;
        a.mov(rsi, LIST)?;
        a.set_label(&mut next)?;
        a.mov(rax, qword_ptr(rsi))?;
        a.mov(rdi, qword_ptr(rsi + 8))?;
        a.mov(rbx, qword_ptr(rsi + 16))?;
        a.add(rsi, 24)?;
        for (number, label) in labels.iter().enumerate().skip(1) {
            a.cmp(rax, number as i32)?;
            a.je(*label)?;
        }
        a.jmp(end)?;
        a.set_label(&mut labels[1])?;
        a.mov(dword_ptr(rdi), ebx)?;
        a.jmp(next)?;
        a.set_label(&mut labels[2])?;
        a.mov(qword_ptr(rdi), rbx)?;
        a.jmp(next)?;
        a.set_label(&mut labels[3])?;
        a.mov(eax, dword_ptr(rdi))?;
        a.jmp(next)?;
        a.set_label(&mut labels[4])?;
        a.mov(edx, edi)?;
        a.mov(eax, ebx)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut labels[5])?;
        a.pause()?;
        a.dec(rbx)?;
        a.jne(labels[5])?;
        a.jmp(next)?;
        a.set_label(&mut end)?;
        a.cli()?;
        a.hlt()?;
        a.jmp(end)?;
        a.assemble(BASE)
    };
    assemble().expect("the code is always the same")
}

/// What the kernel does, in order.
#[derive(Debug, Default)]
pub struct Program(Vec<[u64; 3]>);

impl Program {
    /// Stores 32 bits.
    pub fn store(&mut self, address: u64, value: u32) {
        self.0.push([1, address, value.into()]);
    }

    /// Stores 64 bits.
    pub fn store_long(&mut self, address: u64, value: u64) {
        self.0.push([2, address, value]);
    }

    /// Loads 32 bits.
    pub fn load(&mut self, address: u64) {
        self.0.push([3, address, 0]);
    }

    /// Lets the devices work for a moment.
    pub fn pause(&mut self, turns: u64) {
        self.0.push([5, 0, turns]);
    }

    /// Says something on the serial port.
    pub fn say(&mut self, text: &str) {
        self.0.extend(text.bytes().map(|byte| [4, SERIAL, byte.into()]));
    }

    /// Stores to a register of transport `slot`.
    pub fn set(&mut self, slot: u64, register: u64, value: u32) {
        self.store(TRANSPORTS + slot * 0x1000 + register, value);
    }

    /// Loads a register of transport `slot`.
    pub fn get(&mut self, slot: u64, register: u64) {
        self.load(TRANSPORTS + slot * 0x1000 + register);
    }

    /// The kernel as an ELF, which switches the machine off in the end.
    pub fn elf(mut self) -> Vec<u8> {
        self.0.push([4, SLEEP, SOFT_OFF]);
        let mut image = code();
        image.resize((TABLES - BASE) as usize, 0);
        image.extend(page_tables());
        image.resize((LIST - BASE) as usize, 0);
        for entry in &self.0 {
            image.extend(entry.iter().flat_map(|word| word.to_le_bytes()));
        }
        image.extend([0; 24]);
        header(image.len() as u64).into_iter().chain(image).collect()
    }
}

/// The first GiB and the one with the transports, one to one in pages of 2 MiB.
fn page_tables() -> Vec<u8> {
    const LINK: u64 = 3;
    const LARGE: u64 = 0x83;
    let table = |number: u64| TABLES + number * 0x1000;
    let mut words = vec![0u64; 4 * 512];
    words[0] = table(1) | LINK;
    (words[512], words[512 + 3]) = (table(2) | LINK, table(3) | LINK);
    for page in 0..512 {
        words[2 * 512 + page] = (page as u64) << 21 | LARGE;
        words[3 * 512 + page] = (3 << 30 | (page as u64) << 21) | LARGE;
    }
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// File and program header of an ELF for x86-64 whose one segment follows.
fn header(len: u64) -> Vec<u8> {
    const FILE: u64 = 64;
    const PROGRAM: u64 = 56;
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    header.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    for word in [BASE, FILE, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend([0; 4]);
    for half in [FILE as u16, PROGRAM as u16, 1, 0, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header.extend([1, 0, 0, 0, 7, 0, 0, 0]); // PT_LOAD, all may be done with it
    for word in [FILE + PROGRAM, BASE, BASE, len, len, 8] {
        header.extend(word.to_le_bytes());
    }
    header
}
