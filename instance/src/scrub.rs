//! Removing the identity from a copied root file system: the copy boots for a moment, alone, with the image's own kernel and
//! initramfs, and guest-init removes what belongs to one instance and powers off (`kiln.scrub=1`). So the file system is
//! changed by the kernel that knows it, its journal is replayed, and deleted blocks are given back.

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_init::proto::SCRUBBED;

use super::assemble::{device, part_or};
use super::image::Image;
use super::record::Record;
use super::{Error, Result};
use machine::accel::Chosen;
use machine::block::raw::RawFile;
use machine::sandbox::{self, Kind};
use machine::timeline::Timeline;
use machine::virtio::block::{Block, Spec as BlockSpec};
use machine::virtio::lockstep::Turn;
use machine::virtio::rng::Rng;
use machine::{Machine, Outcome, Serial, Spec};

/// How long the boot may take: ten times what the slowest accelerator needs on a busy host.
const PATIENCE: Duration = Duration::from_secs(180);
/// The end of the console's output that is kept for an error message, in bytes.
const TAIL: usize = 4096;
/// RAM: enough for the kernel, the initramfs and a journal to be replayed.
const MEMORY: u64 = 256 << 20;

/// Removes the identity from the root file system in the `size` bytes of `file` from `start` on, a copy of the one of the
/// instance that `record` describes.
///
/// # Errors
/// When the machine cannot be built or guest-init does not say that it has succeeded; with the console's last lines.
pub fn scrub(
    record: &Record,
    image: &Image,
    accelerator: Arc<Chosen>,
    file: File,
    start: u64,
    size: u64,
) -> Result<()> {
    let console = Tail::default();
    let disk = BlockSpec {
        read_only: false,
        id: "root".into(),
        queues: 1,
    };
    let disk = Block::new(Arc::new(RawFile::part(file, start, size)), disk);
    let ours = "panic=-1 console=ttyS0 kiln.scrub=1";
    let cmdline = ami::command_line::join([image.manifest().command_line.as_str(), ours]);
    let machine = Machine::build(Spec {
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
        devices: vec![device("vda", disk), device("rng", Rng::default())],
        uuid: None,
        turn: Turn::default(),
        timeline: Arc::new(Timeline::start()),
    })
    .map_err(|error| Error::Machine(error.to_string()))?;
    let outcome = run(machine)?;
    let said = console.text();
    if outcome == Outcome::PowerOff && said.contains(SCRUBBED) {
        return Ok(());
    }
    let lines: Vec<_> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    Err(Error::Scrub(lines[lines.len().saturating_sub(6)..].join("\n")))
}

/// Runs the machine to its end, or ends it when that takes too long.
fn run(machine: Machine) -> Result<Outcome> {
    let handle = machine.handle();
    let (done, ended) = channel::<()>();
    let watchdog = sandbox::spawn("watchdog", Kind::Control, move || {
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            handle.kill();
        }
    })
    .map_err(Error::os("starting a thread"))?;
    let outcome = machine
        .run(|| {})
        .map_err(|error| Error::Machine(error.to_string()));
    drop(done);
    let _ = watchdog.join();
    outcome
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
