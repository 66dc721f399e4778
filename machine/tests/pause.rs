//! A paused machine executes nothing and continues where it was: with the software processor, which every
//! host has.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use machine::accel::{Accel, choose};
use machine::arch::Architecture;
use machine::arch::x86_64::testing::elf;
use machine::devices::VirtioSpec;
use machine::memory::Part;
use machine::timeline::Timeline;
use machine::virtio::determinism::Determinism;
use machine::virtio::rng::RngSpec;
use machine::{Device, Handle, Machine, Outcome, Serial, Spec};

/// `mov dx, 0x3f8; mov al, 'x'; again: out dx, al; jmp again`: a kernel that prints for good.
const KERNEL: &[u8] = b"\x66\xba\xf8\x03\xb0x\xee\xeb\xfd";
/// Where it lies.
const ENTRY: u64 = 0x100_0000;

/// Counts what the guest prints.
struct Printed {
    count: Arc<AtomicU64>,
    /// Gets a message for each byte; the guest goes on when nobody receives.
    printed: Sender<()>,
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.count.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        let _ = self.printed.send(());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The machine, how much its guest has printed, and a message for each byte.
fn machine() -> (Machine, Arc<AtomicU64>, Receiver<()>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf(ENTRY, KERNEL, KERNEL.len() as u64)).unwrap();
    let (printed, hear) = channel();
    let count = Arc::new(AtomicU64::new(0));
    let spec = Spec {
        architecture: Architecture::X86_64,
        cpus: 1,
        memory: 32 << 20,
        accel: Arc::new(choose(Accel::Soft, Architecture::X86_64, None).unwrap()),
        kernel: Part::open(file.path()).unwrap(),
        initrd: None,
        cmdline: String::new(),
        serial: Some(Serial {
            output: Box::new(Printed {
                count: Arc::clone(&count),
                printed,
            }),
            input: None,
        }),
        devices: vec![Device {
            name: "rng".into(),
            spec: VirtioSpec::Rng(RngSpec::default()),
        }],
        uuid: None,
        determinism: Determinism::default(),
        statistics: false,
        timeline: Arc::new(Timeline::start()),
    };
    let machine = Machine::build(spec, None).unwrap();
    (machine, count, hear)
}

/// Waits until the guest has printed more than it has by now.
fn wait_for_more(hear: &Receiver<()>, count: &AtomicU64) {
    let before = count.load(Ordering::SeqCst);
    while count.load(Ordering::SeqCst) == before {
        hear.recv().unwrap();
    }
}

fn stands_still(handle: &Handle, count: &AtomicU64) {
    let now = || {
        (
            handle.instructions(),
            count.load(Ordering::SeqCst),
            handle.exits(),
        )
    };
    let paused = now();
    for _ in 0..10_000 {
        thread::yield_now();
    }
    assert_eq!(now(), paused);
}

#[test]
fn a_paused_guest_runs_no_instruction_until_it_is_resumed() {
    let (machine, count, hear) = machine();
    let handle = machine.handle();
    let runner = thread::spawn(move || machine.run(|| {}));
    for _ in 0..3 {
        wait_for_more(&hear, &count);
        assert!(handle.pause());
        assert!(!handle.pause(), "it is paused already");
        stands_still(&handle, &count);
        // A machine that another reason holds does not go on, either.
        handle.hold_for_space(true);
        handle.resume();
        stands_still(&handle, &count);
        handle.hold_for_space(false);
    }
    wait_for_more(&hear, &count);
    assert!(handle.pause());
    handle.kill();
    assert!(!handle.pause(), "it has ended");
    assert_eq!(runner.join().unwrap().unwrap(), Outcome::Killed);
}
