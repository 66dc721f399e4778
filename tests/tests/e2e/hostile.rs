//! A malicious kernel that breaks every rule of every device: its own devices stop, and nothing else is
//! affected.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;
use crate::hostile_kernel::{Program, SCRATCH, register};

pub const TESTS: &[(&str, Test)] = &[(
    "a_malicious_kernel_breaks_its_own_devices_only",
    a_hostile_kernel_harms_its_own_devices,
)];

/// Transports of the machine that are driven: disk, entropy, sockets, network, console, and one that is not
/// there.
const SLOTS: u64 = 6;
/// Lines that each device may log of it.
const LINES_PER_DEVICE: usize = 8;
/// Descriptors of each ring.
const SIZE: u64 = 8;
/// Flags of a descriptor: another follows, the device writes, it is a table of others.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn a_hostile_kernel_harms_its_own_devices(host: &TestHost) -> Result<()> {
    write_kernel(host)?;
    ok(host, "vmm run hello.ami -d --name bystander --wait agent")?;
    let output = host.sh("vmm run hello.ami --rm --kernel $HOME/hostile.elf --memory 64M")?;
    ensure!(
        output.status == 0 && output.stdout.contains("it is over"),
        "{output:?}"
    );
    let complaints = output.stderr.matches("needs a reset").count();
    ensure!(
        (1..=LINES_PER_DEVICE * SLOTS as usize).contains(&complaints),
        "{complaints} complaints: {}",
        output.stderr
    );
    ensure!(!output.stderr.contains("panicked"), "{}", output.stderr);
    ok(
        host,
        "vmm exec bystander -- true && vmm terminate --time 0 bystander",
    )
    .map(drop)
}

/// The kernel's file, by way of a command line, which works on every test host.
fn write_kernel(host: &TestHost) -> Result<()> {
    let kernel = program().elf();
    ok(host, ": > $HOME/hostile.elf")?;
    for chunk in kernel.chunks(8 << 10) {
        let mut line = String::from("printf '");
        for byte in chunk {
            // Infallible: a string takes everything.
            let _ = write!(line, "\\{byte:03o}");
        }
        line += "' >> $HOME/hostile.elf";
        ok(host, &line)?;
    }
    Ok(())
}

/// Everything that is tried, device by device.
fn program() -> Program {
    let mut program = Program::default();
    program.say("begun\n");
    for slot in 0..SLOTS {
        for attack in ATTACKS {
            start(&mut program, slot, RING);
            attack(&mut program, slot);
            program.pause(2000);
            program.get(slot, register::STATUS);
        }
        misplaced_rings(&mut program, slot);
        anything_anywhere(&mut program, slot);
    }
    program.say("it is over\n");
    program
}

const ATTACKS: &[fn(&mut Program, u64)] = &[
    a_chain_in_a_circle,
    buffers_outside_of_memory,
    buffers_over_the_rings,
    an_index_that_jumps,
    a_table_in_a_table,
    configuration_writes,
    a_storm_of_notifications,
    resets_under_way,
];

/// Where the rings of each queue lie: descriptors, and the two rings behind them.
const RING: u64 = SCRATCH;

fn descriptors(queue: u64) -> u64 {
    RING + queue * 0x1000
}

fn available(queue: u64) -> u64 {
    descriptors(queue) + 0x400
}

/// Negotiates and places three queues from `ring` on, as a driver should.
fn start(program: &mut Program, slot: u64, ring: u64) {
    for at in (0..0x3000).step_by(8) {
        if at % 0x1000 < 0x500 {
            program.store_long(RING + at, 0);
        }
    }
    for status in [0, 1, 3] {
        program.set(slot, register::STATUS, status);
    }
    for (half, bits) in [(0, 0), (1, 1)] {
        program.set(slot, register::DRIVER_FEATURES_SEL, half);
        program.set(slot, register::DRIVER_FEATURES, bits);
    }
    program.set(slot, register::STATUS, 11);
    for queue in 0..3u32 {
        let base = ring.wrapping_add(u64::from(queue) * 0x1000);
        program.set(slot, register::QUEUE_SEL, queue);
        program.set(slot, register::QUEUE_SIZE, SIZE as u32);
        for (low, place) in [
            (register::QUEUE_DESC_LOW, base),
            (register::QUEUE_DRIVER_LOW, base.wrapping_add(0x400)),
            (register::QUEUE_DEVICE_LOW, base.wrapping_add(0x800)),
        ] {
            program.set(slot, low, place as u32);
            program.set(slot, low + 4, (place >> 32) as u32);
        }
        program.set(slot, register::QUEUE_READY, 1);
    }
    program.set(slot, register::STATUS, 15);
}

fn descriptor(program: &mut Program, queue: u64, index: u64, address: u64, len: u32, flags: u16, next: u16) {
    let at = descriptors(queue) + 16 * index;
    program.store_long(at, address);
    program.store_long(
        at + 8,
        u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48,
    );
}

/// Makes the first `count` descriptors available, in all queues, and rings.
fn offer(program: &mut Program, slot: u64, count: u16) {
    for queue in 0..3 {
        for entry in (0..count).step_by(2) {
            let pair = u32::from(entry % 8) | u32::from((entry + 1) % 8) << 16;
            program.store(available(queue) + 4 + 2 * u64::from(entry % 8), pair);
        }
        program.store(available(queue), u32::from(count) << 16);
        program.set(slot, register::QUEUE_NOTIFY, queue as u32);
    }
}

fn a_chain_in_a_circle(program: &mut Program, slot: u64) {
    for queue in 0..3 {
        descriptor(program, queue, 0, SCRATCH + 0x8000, 16, NEXT, 1);
        descriptor(program, queue, 1, SCRATCH + 0x9000, 16, NEXT | WRITE, 0);
    }
    offer(program, slot, 1);
}

fn buffers_outside_of_memory(program: &mut Program, slot: u64) {
    let places = [
        u64::MAX,
        u64::MAX - 0xfff,
        0xc000_1000,
        64 << 20,
        (64 << 20) - 8,
        1 << 63,
        0xfee0_0000,
        1 << 52,
    ];
    for queue in 0..3 {
        for (index, place) in (0..).zip(places) {
            let len = if index % 2 == 0 { u32::MAX } else { 0x1000 };
            let flags = if index % 3 == 0 { WRITE } else { 0 };
            descriptor(program, queue, index, place, len, flags, 0);
        }
    }
    offer(program, slot, 8);
}

fn buffers_over_the_rings(program: &mut Program, slot: u64) {
    for queue in 0..3 {
        for index in 0..4 {
            descriptor(
                program,
                queue,
                2 * index,
                descriptors(queue),
                0x1000,
                NEXT,
                2 * index as u16 + 1,
            );
            descriptor(
                program,
                queue,
                2 * index + 1,
                descriptors(queue),
                0x1000,
                WRITE,
                0,
            );
        }
    }
    offer(program, slot, 8);
}

fn an_index_that_jumps(program: &mut Program, slot: u64) {
    for queue in 0..3 {
        for index in [0x8000u32, 1, 0xffff, 9] {
            program.store(available(queue), index << 16);
            program.set(slot, register::QUEUE_NOTIFY, queue as u32);
        }
    }
}

fn a_table_in_a_table(program: &mut Program, slot: u64) {
    for queue in 0..3 {
        descriptor(program, queue, 0, descriptors(queue), 16 * 8, INDIRECT, 0);
        descriptor(program, queue, 1, descriptors(queue), 15, INDIRECT | NEXT, 2);
        descriptor(program, queue, 2, u64::MAX, u32::MAX, INDIRECT | WRITE, 0xffff);
    }
    offer(program, slot, 4);
}

fn configuration_writes(program: &mut Program, slot: u64) {
    for offset in (0..0x100).step_by(4) {
        program.set(slot, register::CONFIG + offset, 0xffff_ffff);
        program.get(slot, register::CONFIG + offset);
    }
    program.set(slot, 0xffc, 1);
}

fn a_storm_of_notifications(program: &mut Program, slot: u64) {
    for round in 0..400 {
        program.set(slot, register::QUEUE_NOTIFY, round % 5);
    }
    program.set(slot, register::QUEUE_NOTIFY, u32::MAX);
}

fn resets_under_way(program: &mut Program, slot: u64) {
    for _ in 0..3 {
        buffers_over_the_rings(program, slot);
        program.set(slot, register::STATUS, 0);
        start(program, slot, RING);
    }
    for status in [4, 0x40, 0x80, 0xff, 0x1_0000, 15, 0] {
        program.set(slot, register::STATUS, status);
    }
}

/// Rings where there is no memory, across its end, and at odd places.
fn misplaced_rings(program: &mut Program, slot: u64) {
    for ring in [
        0xc000_0000,
        (64 << 20) - 0x500,
        u64::MAX - 0x7ff,
        SCRATCH + 1,
        1 << 60,
    ] {
        start(program, slot, ring);
        program.set(slot, register::QUEUE_NOTIFY, 0);
    }
}

/// Random values into random registers, the same in each run.
fn anything_anywhere(program: &mut Program, slot: u64) {
    let mut chance = 0x9e37_79b9_7f4a_7c15u64 + slot;
    for _ in 0..600 {
        chance ^= chance >> 12;
        chance ^= chance << 25;
        chance ^= chance >> 27;
        let number = chance.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let register = (number >> 8) % 0x50 * 4;
        let value = match number >> 40 & 3 {
            0 => number as u32,
            1 => 1 << (number >> 48 & 31),
            _ => (number >> 48) as u32 & 0xf,
        };
        program.set(slot, register, value);
    }
    program.set(slot, register::STATUS, 0);
}
