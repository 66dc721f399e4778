//! Removing the identity from a copied root file system: the copy boots for a moment, alone, with the image's
//! own kernel and initramfs, and guest-init removes what belongs to one instance and powers off
//! (`kiln.scrub=1`). So the file system is changed by the kernel that knows it, its journal is replayed, and
//! deleted blocks are given back.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_init::proto::SCRUBBED;

use crate::images::image::{Image, part_or};
use crate::store::record::Record;
use crate::{Error, Result};
use machine::accel::Chosen;
use machine::block::raw::RawFile;
use machine::devices::VirtioSpec;
use machine::limit::RateLimiter;
use machine::sandbox::{self, Kind};
use machine::timeline::Timeline;
use machine::virtio::block::{DiskSpec, IoEngine, SpaceEvent, SpaceMonitor, Spec as BlockSpec};
use machine::virtio::determinism::Determinism;
use machine::virtio::rng::RngSpec;
use machine::{Device, Machine, Outcome, Serial, Spec};

/// How long the boot may take: ten times what the slowest accelerator needs on a busy host.
const TIMEOUT: Duration = Duration::from_secs(180);
/// The end of the console's output that is kept for an error message, in bytes.
const TAIL: usize = 4096;
/// RAM: enough for the kernel, the initramfs and a journal to be replayed.
const MEMORY: u64 = 256 << 20;

/// Removes the identity from the root file system in a part (start and length) of `file`, which is at `path`:
/// a copy of the one of the instance that `record` describes.
///
/// # Errors
/// When the machine cannot be built, the host has no space for what it writes, or guest-init does not say
/// that it has succeeded; with the console's last lines.
pub fn scrub(
    record: &Record,
    image: &Image,
    accelerator: Arc<Chosen>,
    path: &Path,
    file: File,
    part: (u64, u64),
) -> Result<()> {
    let console = Tail::default();
    let (events, watched) = channel();
    let full = events.clone();
    // Nobody waits for space here: the machine is ended, and the image is not made.
    let monitor = SpaceMonitor::new(Box::new(move |event| {
        if let SpaceEvent::Exhausted(error) = event {
            let _ = full.send(Watched::NoSpace(error.kind()));
        }
    }));
    let disk = DiskSpec {
        backend: Arc::new(RawFile::part(file, part.0, part.1)),
        spec: BlockSpec {
            read_only: false,
            id: "root".into(),
            queues: 1,
        },
        engine: IoEngine::Sync,
        limiter: RateLimiter::default(),
        space: Some(monitor),
    };
    let ours = "panic=-1 console=ttyS0 kiln.scrub=1";
    let cmdline = ami::command_line::join([image.manifest().command_line.as_str(), ours]);
    let spec = Spec {
        architecture: image.manifest().architecture,
        cpus: 1,
        memory: image.manifest().default_memory.max(MEMORY),
        accel: accelerator,
        kernel: part_or(record.config.kernel.as_deref(), || image.kernel())?,
        initrd: Some(part_or(record.config.initrd.as_deref(), || image.initramfs())?),
        cmdline,
        serial: Some(Serial {
            output: Box::new(console.clone()),
            input: None,
        }),
        devices: vec![
            Device {
                name: "vda".into(),
                spec: VirtioSpec::Disk(disk),
            },
            Device {
                name: "rng".into(),
                spec: VirtioSpec::Rng(RngSpec::default()),
            },
        ],
        uuid: None,
        determinism: Determinism::default(),
        statistics: false,
        timeline: Arc::new(Timeline::start()),
    };
    let machine = Machine::build(spec, None)?;
    let outcome = run(machine, events, watched).map_err(|error| match error {
        Stopped::NoSpace(kind) => Error::file("removing the identity from", path)(kind.into()),
        Stopped::Failed(error) => error,
    })?;
    let said = console.text();
    if outcome == Outcome::PowerOff && said.contains(SCRUBBED) {
        return Ok(());
    }
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(6)..];
    Err(Error::Scrub(
        last.iter().map(|line| format!("\n{line}")).collect(),
    ))
}

/// Events for the watchdog.
enum Watched {
    /// The disk's file has no space on the host.
    NoSpace(io::ErrorKind),
    /// The machine has ended.
    Ended,
}

/// Why the machine did not come to an end of its own.
enum Stopped {
    NoSpace(io::ErrorKind),
    Failed(Error),
}

/// Runs the machine to its end, or ends it when that takes too long or no space is left for its disk.
fn run(
    machine: Machine,
    events: Sender<Watched>,
    watched: Receiver<Watched>,
) -> std::result::Result<Outcome, Stopped> {
    let handle = machine.handle();
    let watchdog = sandbox::spawn("watchdog", Kind::Control, move || {
        let seen = watched.recv_timeout(TIMEOUT);
        if !matches!(seen, Ok(Watched::Ended)) {
            handle.kill();
        }
        match seen {
            Ok(Watched::NoSpace(kind)) => Some(kind),
            _ => None,
        }
    })
    .map_err(|error| Stopped::Failed(Error::os("starting a thread")(error)))?;
    let outcome = machine.run(|| {}).map_err(|error| Stopped::Failed(error.into()));
    // The disk's end of the channel lives as long as the watchdog's handle of the machine: this ends the
    // wait.
    let _ = events.send(Watched::Ended);
    match watchdog.join() {
        Ok(Some(kind)) => Err(Stopped::NoSpace(kind)),
        _ => outcome,
    }
}

/// The end of what the console prints.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(TAIL);
        kept.drain(..surplus);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
