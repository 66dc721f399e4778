//! Every virtio device, through register accesses of any width and through malicious rings.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Arc;

use machine::block::raw::RawFile;
use machine::block::volume::{Base, Volume};
use machine::bus::BusDevice;
use machine::net::Backend;
use machine::virtio::testing::Driver;
use machine::virtio::{VirtioDevice, balloon, block, console, malicious_driver, net, rng, vsock};

use crate::input::Input;
use crate::scratch;

/// Register accesses of one input at most.
const MAX_ACCESSES: usize = 512;
/// Bytes of a disk.
const DISK: u64 = 1 << 20;

/// The first byte chooses the device, the second one what is done to it.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (device, way) = (input.byte(), input.byte());
    let rest = input.rest();
    match device % 7 {
        0 => drive(raw_disk(), way, rest),
        1 => {
            let folder = scratch::folder();
            drive(volume_disk(folder.path()), way, rest);
        }
        2 => drive(rng::Rng::default(), way, rest),
        3 => {
            let typed = File::open("/dev/zero").expect("every host has it");
            let output = Box::new(std::io::sink());
            drive(
                console::Console::new(Some(typed.into()), output, console::Size::default()),
                way,
                rest,
            );
        }
        4 => drive(
            net::Net::new(
                Box::new(Silent {
                    offloads: way & 2 != 0,
                }),
                [2; 6],
            ),
            way,
            rest,
        ),
        5 => drive(balloon::Balloon::new(balloon::Target::default()), way, rest),
        _ => {
            let folder = scratch::folder();
            let socket = folder.path().join("v");
            drive(
                vsock::Vsock::bind(vsock::MIN_GUEST_CID, &socket).expect("a socket"),
                way,
                rest,
            );
        }
    }
}

fn raw_disk() -> block::Block {
    let file = tempfile::tempfile().expect("the host has room for temporary files");
    file.set_len(DISK).expect("a sparse file");
    let spec = block::Spec {
        read_only: false,
        id: "fuzzed".to_owned(),
        queues: 2,
    };
    block::Block::new(Arc::new(RawFile::new(file).expect("a file has a size")), spec)
}

/// A disk over a volume that copies from a base.
fn volume_disk(folder: &std::path::Path) -> block::Block {
    let base = folder.join("base");
    scratch::write(&base, &[0x5a; DISK as usize / 2]);
    let base = File::open(base).expect("it was just written");
    let base = Base::new(base, 0, DISK / 2, [7; 32]);
    let volume = Volume::create(&folder.join("volume"), base, DISK).expect("a volume");
    let spec = block::Spec {
        read_only: false,
        id: String::new(),
        queues: 1,
    };
    block::Block::new(Arc::new(volume), spec)
}

/// Whatever was done, the device serves a good driver after a reset.
fn drive(device: impl VirtioDevice + 'static, way: u8, rest: &[u8]) {
    let mut driver = Driver::new(device);
    if way & 1 == 0 {
        registers(&mut driver, rest);
    } else {
        driver.start(u64::MAX);
        malicious_driver::drive(&mut driver, rest);
    }
    driver.start(u64::MAX);
    assert!(!driver.needs_reset(), "a good driver was turned away");
}

/// Accesses of any width anywhere in the range, half of them a word at a register.
fn registers(driver: &mut Driver, rest: &[u8]) {
    let mut input = Input::new(rest);
    for _ in 0..MAX_ACCESSES {
        if input.is_empty() {
            return;
        }
        let (kind, place) = (input.byte(), input.half());
        let offset = match kind & 2 {
            0 => u64::from(place) % 0x40 * 4,
            _ => u64::from(place) % 0x1000,
        };
        let width = match kind & 4 {
            0 => 4,
            _ => 1 << (kind >> 3 & 3),
        };
        if kind & 1 == 0 {
            driver.transport().read(offset, &mut [0xff; 8][..width]);
        } else {
            driver.transport().write(offset, &input.array::<8>()[..width]);
        }
        if kind & 0xe0 == 0xe0 {
            driver.transport().pause();
            driver.transport().resume();
        }
    }
}

/// A wire on which a short frame always waits.
struct Silent {
    offloads: bool,
}

impl Backend for Silent {
    fn transmit(&mut self, _frame: &[u8]) {}

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        buffer[..60].fill(1);
        Some(60)
    }

    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        Vec::new()
    }

    fn poll(&mut self) -> Option<u64> {
        None
    }

    fn offloads(&self) -> bool {
        self.offloads
    }
}
