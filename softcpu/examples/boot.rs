//! Boots a Linux kernel on a bare processor: RAM, a serial port that discards its output, and the boot
//! timer's byte. Time is counted in instructions, so that two runs do exactly the same, and what differs
//! between two builds is their speed.
//!
//! ```console
//! $ cargo run --release -p softcpu --example boot -- vmlinux initramfs [MARKS] [v2|v3]
//! ```
//!
//! Ends at the MARKS-th write to the boot timer (default 1: guest-init's first) and says how many
//! instructions that took, and how much CPU time.
#![allow(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use softcpu::x86_64::flat;
use softcpu::x86_64::state::reg;
use softcpu::{Bus, BusResult, Clock, Cpu, Exit, Features, Platform, Ram, Table};

const MEMORY: u64 = 256 << 20;
const BOOT_TIMER: u64 = 0xc000_0000;
const GDT: u64 = 0x500;
const ZERO_PAGE: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
const WORDS: &str = "quiet panic=-1 console=ttyS0 kiln.boot_timer=0xc0000000";

struct Devices {
    marks: u32,
}

impl Bus for Devices {
    fn mmio_write(&mut self, addr: u64, _data: &[u8]) -> BusResult {
        if addr == BOOT_TIMER {
            self.marks -= 1;
        }
        if self.marks == 0 {
            BusResult::Stop
        } else {
            BusResult::Continue
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        // LSR: the transmitter is empty.
        data.fill(if port == 0x3fd { 0x60 } else { 0xff });
    }

    fn unimplemented(&mut self, what: &str, rip: u64) {
        eprintln!("boot: {what} at {rip:#x} is not implemented");
    }
}

fn word<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], String> {
    file.get(at..at + N)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| format!("the kernel ends before byte {at}"))
}

/// Copies the segments of an ELF kernel to RAM; returns its entry.
fn load_elf(ram: &Ram, file: &[u8]) -> Result<u64, String> {
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return Err("the kernel is no 64-bit ELF file".into());
    }
    let headers = u64::from_le_bytes(word(file, 32)?) as usize;
    let count = u16::from_le_bytes(word(file, 56)?) as usize;
    for n in 0..count {
        let at = headers + n * 56;
        if u32::from_le_bytes(word(file, at)?) != 1 {
            continue;
        }
        let offset = u64::from_le_bytes(word(file, at + 8)?) as usize;
        let address = u64::from_le_bytes(word(file, at + 24)?);
        let size = u64::from_le_bytes(word(file, at + 32)?) as usize;
        let bytes = file
            .get(offset..offset + size)
            .ok_or("a segment ends beyond the file")?;
        if !ram.write(address, bytes) {
            return Err("a segment lies beyond RAM".into());
        }
    }
    Ok(u64::from_le_bytes(word(file, 24)?))
}

/// Fills the zero page (Linux, Documentation/arch/x86/boot.rst and zero-page.rst).
fn write_zero_page(ram: &Ram, initrd: u64, len: u64) {
    let put = |at: u64, bytes: &[u8]| ram.write(ZERO_PAGE + at, bytes);
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x210, &[0xff, 0x01]);
    put(0x218, &(initrd as u32).to_le_bytes());
    put(0x21c, &(len as u32).to_le_bytes());
    put(0x228, &(COMMAND_LINE as u32).to_le_bytes());
    let map = [(0, 0x9fc00), (0x10_0000, MEMORY - 0x10_0000)];
    put(0x1e8, &[map.len() as u8]);
    for (n, (start, len)) in map.into_iter().enumerate() {
        let at = 0x2d0 + 20 * n as u64;
        put(at, &u64::to_le_bytes(start));
        put(at + 8, &u64::to_le_bytes(len));
        put(at + 16, &1u32.to_le_bytes());
    }
}

fn start(cpu: &mut Cpu, ram: &Ram, entry: u64) -> Result<(), String> {
    let descriptors = flat::DESCRIPTORS.map(u64::to_le_bytes);
    if !flat::map(ram, PAGE_TABLES) || !ram.write(GDT + u64::from(flat::CODE), descriptors.as_flattened()) {
        return Err("RAM has no room for tables".into());
    }
    flat::enter(cpu, PAGE_TABLES);
    cpu.set_tables(
        Table {
            base: GDT,
            limit: 0x1f,
        },
        Table::default(),
    );
    cpu.gpr[reg::RSI] = ZERO_PAGE;
    cpu.gpr[reg::RSP] = 0x8ff0;
    cpu.rip = entry;
    Ok(())
}

/// User and system time of this process, in seconds.
fn cpu_seconds() -> f64 {
    // SAFETY: all-zero is a valid `rusage`, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn run() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let (Some(kernel), Some(initramfs)) = (args.next(), args.next()) else {
        return Err("usage: boot VMLINUX INITRAMFS [MARKS] [v2|v3]".into());
    };
    let marks = args.next().and_then(|n| n.parse().ok()).unwrap_or(1);
    let features = match args.next().as_deref() {
        Some("v2") => Features::V2,
        _ => Features::V3,
    };
    let read = |path: &str| std::fs::read(path).map_err(|error| format!("{path}: {error}"));
    let (kernel, initramfs) = (read(&kernel)?, read(&initramfs)?);

    let ram = Arc::new(Ram::leaked(MEMORY as usize).ok_or("the host has no room for RAM")?);
    let entry = load_elf(&ram, &kernel)?;
    let initrd = (MEMORY - initramfs.len() as u64) & !0xfff;
    ram.write(initrd, &initramfs);
    ram.write(COMMAND_LINE, WORDS.as_bytes());
    write_zero_page(&ram, initrd, initramfs.len() as u64);

    let platform = Platform::with_features(1, Clock::Instructions, features);
    let mut cpu = Cpu::new(Arc::clone(&ram), platform, 0).ok_or("there is no processor 0")?;
    start(&mut cpu, &ram, entry)?;
    let before = cpu_seconds();
    let exit = cpu.run(&mut Devices { marks });
    let spent = cpu_seconds() - before;
    let million = cpu.retired() as f64 / 1e6;
    println!(
        "{} instructions in {spent:.2} s of CPU time: {:.0} million each second",
        cpu.retired(),
        million / spent
    );
    match exit {
        Exit::Stopped => Ok(()),
        other => Err(format!("the guest ended with {other:?} at {:#x}", cpu.rip)),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("boot: {error}");
            ExitCode::FAILURE
        }
    }
}
