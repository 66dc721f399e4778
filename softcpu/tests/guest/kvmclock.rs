//! The paravirtual clock: what its registers make the processor write, and how a guest computes time from it
//! (Linux, Documentation/virt/kvm/x86/msr.rst).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use softcpu::Clock;
use softcpu::x86_64::state::reg;

use crate::machine::{DATA, Machine, done, wrmsr};

const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const ENABLED: u64 = 1;

/// `struct pvclock_vcpu_time_info` as a guest reads it.
struct Info {
    version: u32,
    tsc: u64,
    system: u64,
    multiplier: u32,
    shift: i8,
    flags: u8,
}

fn info(machine: &Machine) -> Info {
    let scale = machine.word(DATA + 24);
    Info {
        version: machine.word(DATA) as u32,
        tsc: machine.word(DATA + 8),
        system: machine.word(DATA + 16),
        multiplier: scale as u32,
        shift: (scale >> 32) as i8,
        flags: (scale >> 40) as u8,
    }
}

impl Info {
    /// Nanoseconds at a value of the time stamp counter.
    fn nanoseconds(&self, tsc: u64) -> u64 {
        let passed = tsc - self.tsc;
        let scaled = if self.shift < 0 {
            passed >> -self.shift
        } else {
            passed << self.shift
        };
        self.system + ((u128::from(scaled) * u128::from(self.multiplier)) >> 32) as u64
    }
}

/// Leaves the time stamp counter in a register.
fn read_tsc(a: &mut CodeAssembler, to: AsmRegister64) -> Result<(), IcedError> {
    a.rdtsc()?;
    a.shl(rdx, 32)?;
    a.or(rax, rdx)?;
    a.mov(to, rax)
}

#[test]
fn time_follows_from_the_time_stamp_counter() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        wrmsr(a, SYSTEM_TIME, DATA | ENABLED)?;
        read_tsc(a, rbx)?;
        for _ in 0..1000 {
            a.nop()?;
        }
        read_tsc(a, rdi)?;
        a.mov(ecx, SYSTEM_TIME)?;
        a.rdmsr()?;
        done(a)
    });
    machine.done();
    let info = info(&machine);
    assert_eq!(info.version % 2, 0, "odd while it is written");
    assert_eq!(info.flags & 1, 1, "the counters of all processors agree");
    let [begin, end] = [reg::RBX, reg::RDI].map(|register| info.nanoseconds(machine.cpu.gpr[register]));
    // An instruction is a nanosecond: the NOPs, and the four that read the counter.
    assert_eq!(end - begin, 1004);
    assert_eq!(machine.cpu.gpr[reg::RAX], DATA | ENABLED);
}

#[test]
fn a_clock_that_is_not_enabled_writes_nothing() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        wrmsr(a, SYSTEM_TIME, DATA)?;
        done(a)
    });
    machine.done();
    assert_eq!(info(&machine).version, 0);
}

#[test]
fn the_wall_clock_is_the_hosts_when_time_is() {
    let mut machine = Machine::with(Clock::Host, 1);
    machine.kernel(|a| {
        wrmsr(a, WALL_CLOCK, DATA)?;
        done(a)
    });
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    };
    let before = now();
    machine.done();
    let seconds = machine.word(DATA) >> 32;
    // When the machine's clock was zero, which was not long ago.
    assert!(seconds <= now() && seconds + 3600 > before, "{seconds}");
    assert!((machine.word(DATA + 8) as u32) < 1_000_000_000);
}

#[test]
fn a_clock_outside_of_memory_is_ignored() {
    let mut machine = Machine::new();
    machine.kernel(|a| {
        wrmsr(a, SYSTEM_TIME, 0x3fff_ffff_fff0 | ENABLED)?;
        wrmsr(a, WALL_CLOCK, u64::MAX)?;
        done(a)
    });
    machine.done();
}
