//! The state of a machine: bytes that were changed on purpose, their digests made right again. A machine that
//! is built from one may be refused, and may do whatever its guest likes, but nothing to the host.

use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::thread;

use machine::accel::{Accel, choose};
use machine::arch::Architecture;
use machine::arch::x86_64::testing::elf;
use machine::devices::VirtioSpec;
use machine::memory::Part;
use machine::snapshot::{Restore, State};
use machine::state::sealed;
use machine::timeline::Timeline;
use machine::virtio::balloon::BalloonSpec;
use machine::virtio::console::ConsoleSpec;
use machine::virtio::determinism::Determinism;
use machine::virtio::rng::RngSpec;
use machine::{Device, Machine, Serial, Spec};

use crate::input::Input;

const RAM: u64 = 32 << 20;
/// Changes of one state at most.
const MAX_CHANGES: usize = 16;

/// A state that is sound, its memory and the kernel that it was made with.
struct Base {
    state: Vec<u8>,
    memory: tempfile::NamedTempFile,
    kernel: tempfile::NamedTempFile,
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let mut kernel = tempfile::NamedTempFile::new().expect("a file");
        kernel
            .write_all(&elf(0x100_0000, b"\xeb\xfe", 2))
            .expect("room for it");
        let machine = Machine::build(spec(&kernel), None).expect("a machine");
        let handle = machine.handle();
        let runner = thread::spawn(move || machine.run(|| {}));
        assert!(handle.pause(), "it runs for good");
        let memory = tempfile::NamedTempFile::new().expect("a file");
        let state = handle.save(memory.as_file(), 0).expect("it is paused");
        memory.as_file().set_len(RAM).expect("a sparse file");
        handle.kill();
        drop(runner.join());
        Base {
            state,
            memory,
            kernel,
        }
    })
}

fn spec(kernel: &tempfile::NamedTempFile) -> Spec {
    let device = |name: &str, spec| Device {
        name: name.into(),
        spec,
    };
    Spec {
        architecture: Architecture::X86_64,
        cpus: 1,
        memory: RAM,
        accel: Arc::new(choose(Accel::Soft, Architecture::X86_64, None).expect("it is everywhere")),
        kernel: Part::open(kernel.path()).expect("the kernel"),
        initrd: None,
        cmdline: String::new(),
        serial: Some(Serial {
            output: Box::new(std::io::sink()),
            input: None,
        }),
        devices: vec![
            device("rng", VirtioSpec::Rng(RngSpec::default())),
            device(
                "balloon",
                VirtioSpec::Balloon(BalloonSpec {
                    target: Default::default(),
                }),
            ),
            device(
                "console",
                VirtioSpec::Console(ConsoleSpec {
                    input: None,
                    output: Box::new(std::io::sink()),
                    size: Default::default(),
                }),
            ),
        ],
        uuid: None,
        determinism: Determinism::default(),
        statistics: false,
        timeline: Arc::new(Timeline::start()),
    }
}

/// The first byte says whether the rest is a state, or changes of a sound one: two bytes of place and one of
/// value each.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let whole = input.byte() & 1 != 0;
    let base = base();
    let mut bytes = base.state.clone();
    if whole {
        bytes = input.bytes(usize::MAX).to_vec();
    } else {
        for _ in 0..MAX_CHANGES {
            if input.is_empty() {
                break;
            }
            let at = usize::from(input.byte()) << 8 | usize::from(input.byte());
            let len = bytes.len();
            bytes[at % len] ^= input.byte();
        }
    }
    let Ok(state) = State::from_bytes(&sealed(&bytes)) else {
        return;
    };
    let restore = Restore {
        state,
        memory: Part::open(base.memory.path()).expect("the memory"),
        generation: Some([1; 16]),
    };
    let Ok(machine) = Machine::build(spec(&base.kernel), Some(restore)) else {
        return;
    };
    let handle = machine.handle();
    drop(machine.run(move || handle.kill()));
}
