//! The smallest virtual machine monitor: one processor, 32 KiB of RAM, and devices of one line each. The guest
//! is 28 bytes of real-mode code that prints a text, reads a port, stores to an address that is not RAM, and
//! powers the machine off.
//!
//! ```console
//! $ cargo run -p machine --example smallest            # KVM where it is usable, else the software processor
//! $ cargo run -p machine --example smallest -- soft    # or `kvm`
//! ```
//!
//! Chapter 2 of the book (`docs/book`) reads it line by line. It uses no part of the crate `machine` but
//! `accel::choose`, which finds out whether this host's KVM is usable.
#![allow(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Result, bail};
use machine::accel::{Accel, choose};
use machine::arch::Architecture;

/// The guest, in 16-bit mode, at the guest-physical address [`ENTRY`].
const PROGRAM: [u8; 28] = [
    0xbe, 0x1c, 0x10, //             1000: mov  si, message
    0xba, 0xf8, 0x03, //             1003: mov  dx, 0x3f8
    0xac, //                   next: 1006: lodsb
    0x84, 0xc0, //                   1007: test al, al
    0x74, 0x03, //                   1009: jz   done
    0xee, //                         100b: out  dx, al       ; an exit: port output
    0xeb, 0xf8, //                   100c: jmp  next
    0xe4, 0x10, //             done: 100e: in   al, 0x10     ; an exit: port input
    0xfe, 0xc0, //                   1010: inc  al
    0xa2, 0x00, 0x90, //             1012: mov  [0x9000], al ; an exit: a store to what is not RAM
    0xb0, 0x01, //                   1015: mov  al, 1
    0xe6, 0x11, //                   1017: out  0x11, al     ; an exit: power-off
    0xeb, 0xfe, //                   1019: jmp  $            ; not reached
    0x90, //                         101b: nop
];
const MESSAGE: &[u8] = b"hello from real mode\n\0";
const ENTRY: u64 = 0x1000;
/// Bytes of RAM, from guest-physical address 0 on. A device answers beyond it.
const RAM: usize = 0x8000;

const SERIAL: u16 = 0x3f8;
const QUESTION: u16 = 0x10;
const POWER: u16 = 0x11;
const ANSWER: u64 = 0x9000;

/// The devices, and what became of the guest. The same for both accelerators.
#[derive(Debug, Default, PartialEq, Eq)]
struct Devices {
    text: String,
    answer: Option<u8>,
    off: bool,
}

impl Devices {
    fn output(&mut self, port: u16, data: &[u8]) {
        match port {
            SERIAL => self.text.extend(data.iter().map(|&byte| char::from(byte))),
            POWER => self.off = true,
            _ => {} // where no device answers, a write is lost
        }
    }

    fn input(&mut self, port: u16, data: &mut [u8]) {
        // Where no device answers, a bus reads as ones.
        data.fill(if port == QUESTION { 41 } else { 0xff });
    }

    fn store(&mut self, address: u64, data: &[u8]) {
        if address == ANSWER {
            self.answer = data.first().copied();
        }
    }
}

/// The processor is this host's, entered by ioctls of `/dev/kvm` (Linux, Documentation/virt/kvm/api.rst).
#[cfg(target_arch = "x86_64")]
fn on_kvm(devices: &mut Devices) -> Result<()> {
    use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
    use kvm_ioctls::{Kvm, VcpuExit};

    let kvm = Kvm::new()?; // open("/dev/kvm")
    let vm = kvm.create_vm()?; // KVM_CREATE_VM
    vm.set_tss_address(0xfffb_d000)?; // three pages that Intel's processors may need for real mode

    let ram = vm_memory::MmapRegion::<()>::new(RAM)?; // mmap
    // SAFETY: program and message lie inside the mapping, which is new and nobody else's.
    unsafe {
        let entry = ram.as_ptr().add(ENTRY as usize);
        entry.copy_from_nonoverlapping(PROGRAM.as_ptr(), PROGRAM.len());
        let message = entry.add(PROGRAM.len());
        message.copy_from_nonoverlapping(MESSAGE.as_ptr(), MESSAGE.len());
    }
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: RAM as u64,
        userspace_addr: ram.as_ptr() as u64,
    };
    // SAFETY: the mapping outlives the virtual machine's only processor, and nobody here refers to its bytes
    // any more.
    unsafe { vm.set_user_memory_region(slot)? }; // KVM_SET_USER_MEMORY_REGION

    let mut vcpu = vm.create_vcpu(0)?; // KVM_CREATE_VCPU
    let mut segments = vcpu.get_sregs()?; // KVM_GET_SREGS: real mode, at the reset vector
    (segments.cs.base, segments.cs.selector) = (0, 0);
    vcpu.set_sregs(&segments)?; // KVM_SET_SREGS
    vcpu.set_regs(&kvm_regs {
        rip: ENTRY,
        rflags: 2, // the bit that is always set
        ..Default::default()
    })?; // KVM_SET_REGS

    while !devices.off {
        match vcpu.run()? {
            // KVM_RUN, until the guest does what the kernel cannot do for it
            VcpuExit::IoOut(port, data) => devices.output(port, data),
            VcpuExit::IoIn(port, data) => devices.input(port, data),
            VcpuExit::MmioWrite(address, data) => devices.store(address, data),
            other => bail!("the guest stopped with {other:?}"),
        }
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn on_kvm(_: &mut Devices) -> Result<()> {
    bail!("the guest's instructions are those of x86, and KVM runs this host's own: use `soft`")
}

/// The processor is a program: `softcpu`.
fn on_software(devices: &mut Devices) -> Result<()> {
    use std::sync::Arc;

    use anyhow::Context;
    use softcpu::x86_64::state::seg;
    use softcpu::{Clock, Cpu, Exit, Platform, Ram, Segment};

    let ram = Arc::new(Ram::leaked(RAM).context("there is no room for RAM")?);
    ram.write(ENTRY, &PROGRAM);
    ram.write(ENTRY + PROGRAM.len() as u64, MESSAGE);

    let platform = Platform::new(1, Clock::Instructions);
    let mut cpu = Cpu::new(ram, platform, 0).context("there is no processor 0")?;
    let code = Segment {
        selector: 0,
        base: 0,
        ..cpu.segment(seg::CS)
    };
    cpu.set_segment(seg::CS, code);
    cpu.rip = ENTRY;
    cpu.unpark(); // it does not wait for another processor to start it

    match cpu.run(devices) {
        Exit::Stopped => Ok(()),
        other => bail!("the guest stopped with {other:?}"),
    }
}

impl softcpu::Bus for Devices {
    fn port_write(&mut self, port: u16, data: &[u8]) -> softcpu::BusResult {
        self.output(port, data);
        match self.off {
            true => softcpu::BusResult::Stop,
            false => softcpu::BusResult::Continue,
        }
    }

    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.input(port, data);
    }

    fn mmio_write(&mut self, address: u64, data: &[u8]) -> softcpu::BusResult {
        self.store(address, data);
        softcpu::BusResult::Continue
    }

    fn unimplemented(&mut self, what: &str, rip: u64) {
        eprintln!("the software processor lacks {what}, used at {rip:#x}");
    }
}

fn run() -> Result<()> {
    let wish = match std::env::args().nth(1).as_deref() {
        None => Accel::Auto,
        Some("kvm") => Accel::Kvm,
        Some("soft") => Accel::Soft,
        Some(other) => bail!("{other} is no accelerator: `kvm` or `soft`"),
    };
    let chosen = choose(wish, Architecture::X86_64, None)?;
    println!("accelerator {}: {}", chosen.name(), chosen.why);

    let mut devices = Devices::default();
    match chosen.name() {
        "kvm" => on_kvm(&mut devices)?,
        _ => on_software(&mut devices)?,
    }
    println!("{devices:?}");
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("smallest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Devices {
        Devices {
            text: "hello from real mode\n".to_owned(),
            answer: Some(42),
            off: true,
        }
    }

    #[test]
    fn the_guest_does_the_same_on_each_accelerator() {
        let mut devices = Devices::default();
        on_software(&mut devices).unwrap();
        assert_eq!(devices, expected());

        let chosen = choose(Accel::Auto, Architecture::X86_64, None).unwrap();
        if chosen.name() != "kvm" {
            eprintln!("not on KVM: {}", chosen.why);
            return;
        }
        let mut devices = Devices::default();
        on_kvm(&mut devices).unwrap();
        assert_eq!(devices, expected());
    }

    #[test]
    fn the_listing_is_what_the_processor_decodes() {
        use iced_x86::{Decoder, DecoderOptions, Mnemonic};
        let decoder = Decoder::with_ip(16, &PROGRAM, ENTRY, DecoderOptions::NONE);
        let steps: Vec<_> = decoder.into_iter().collect();
        assert!(steps.iter().all(|step| step.mnemonic() != Mnemonic::INVALID));
        assert_eq!(
            u64::from(steps[0].immediate16()),
            ENTRY + PROGRAM.len() as u64,
            "the message"
        );
        assert_eq!(steps[4].near_branch_target(), 0x100e);
        assert_eq!(steps[6].near_branch_target(), 0x1006);
    }
}
