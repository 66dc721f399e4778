//! From a record to a machine: one life of an instance's guest.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::console::Console;
use super::home::Home;
use super::image::{self, Image};
use super::launch::{BASE, hostname};
use super::owner::Guest;
use super::record::{Accel, Record, Volume, VolumeKind};
use super::{Error, Result, network, sockets};
use crate::accel::Choice;
use crate::arch::layout;
use crate::block::raw::RawFile;
use crate::block::volume::{Hydration, Volume as RootVolume};
use crate::machine::{Device, Handle, Machine, Outcome, Serial, Spec};
use crate::memory::Part;
use crate::terminal;
use crate::timeline::Timeline;
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, Spec as BlockSpec};
use crate::virtio::console::{Console as Hvc, Size as HvcSize};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// The guest's vsock address. Each instance has a network of sockets of its own, so all have the same.
const GUEST_CID: u64 = 3;

/// What is wished for one run of an instance and not kept.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Measuring")]
pub struct PerRun {
    /// Write when each step of the boot was reached, as JSON
    #[arg(long, value_name = "FILE")]
    pub timing: Option<PathBuf>,
}

impl PerRun {
    /// As arguments for a detached owner, which runs in another directory.
    pub fn arguments(&self) -> io::Result<Vec<OsString>> {
        let PerRun { timing } = self;
        Ok(match timing {
            Some(path) => vec!["--timing".into(), std::path::absolute(path)?.into()],
            None => Vec::new(),
        })
    }
}

/// Builds the machines of one run.
pub struct Assembly {
    home: Home,
    per_run: PerRun,
    timeline: Arc<Timeline>,
}

impl Assembly {
    /// `timeline` has been running since the process began.
    pub fn new(home: Home, per_run: PerRun, timeline: Arc<Timeline>) -> Assembly {
        Assembly {
            home,
            per_run,
            timeline,
        }
    }

    /// Builds the machine of one life.
    pub fn build(&self, record: &Record, directory: &Path, console: &Console) -> Result<Box<dyn Guest>> {
        let image = open_image(record, directory)?;
        image::runnable(&image)?;
        image.verify_boot(&self.home)?;
        let mut disks = Disks::default();
        for volume in &record.volumes {
            disks.attach(volume, &image)?;
        }
        let mut devices = disks.devices;
        devices.push(device(
            "rng",
            Rng::new().map_err(Error::os("opening the source of randomness"))?,
        ));
        devices.push(device("vsock", vsock(directory)?));
        let card = network::card(record, directory, &image)?;
        let words = card.as_ref().and_then(|card| card.words.clone());
        devices.extend(card.map(|card| device("net0", card.device)));
        let (hvc, serial) = consoles(&image, console)?;
        devices.extend(hvc.map(|hvc| device("console", hvc)));
        let spec = Spec {
            cpus: record
                .config
                .cpus
                .unwrap_or(image.manifest().default_cpus)
                .try_into()
                .unwrap_or(u8::MAX),
            memory: record.config.memory.unwrap_or(image.manifest().default_memory),
            accel: choice(record.config.accel),
            kernel: part_or(record.config.kernel.as_deref(), || image.kernel())?,
            initrd: Some(part_or(record.config.initrd.as_deref(), || image.initramfs())?),
            cmdline: command_line(&image, record, words.as_deref()),
            serial: Some(serial),
            devices,
            uuid: Some(record.id.platform_uuid().into_bytes()),
            timeline: Arc::clone(&self.timeline),
        };
        let machine = Machine::build(spec).map_err(|e| Error::Machine(e.to_string()))?;
        let hydration = match disks.lazy {
            // What is removed when it stops would be copied for nothing.
            Some(volume) if !record.auto_remove => {
                Some(Hydration::start(volume).map_err(Error::os("starting to fill the root volume"))?)
            }
            _ => None,
        };
        Ok(Box::new(Life { machine, hydration }))
    }

    /// Writes what was measured.
    pub fn finish(&self) -> Result<()> {
        let Some(path) = &self.per_run.timing else {
            return Ok(());
        };
        let text = format!("{:#}\n", self.timeline.to_json());
        std::fs::write(path, text).map_err(Error::file("writing", path))
    }
}

/// A machine and what works for it in the background.
struct Life {
    machine: Machine,
    hydration: Option<Hydration>,
}

impl Guest for Life {
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let handle: Handle = self.machine.handle();
        Arc::new(move || handle.kill())
    }

    fn run(self: Box<Self>) -> Result<Outcome> {
        let Life { machine, hydration } = *self;
        let outcome = machine.run().map_err(|e| Error::Machine(e.to_string()));
        if let Some(hydration) = hydration {
            hydration.stop();
        }
        outcome
    }
}

/// The instance's own link to its image, or the image where it was at the launch.
pub fn open_image(record: &Record, directory: &Path) -> Result<Image> {
    let path = if record.image.linked {
        directory.join(BASE)
    } else {
        record.image.path.clone()
    };
    let image = Image::open(&path)?;
    if image.id() == record.image.id {
        return Ok(image);
    }
    let (now, then) = (image.id(), &record.image.id);
    Err(Error::Refused(format!(
        "{} is another image ({now}) than at the launch ({then})",
        path.display()
    )))
}

fn choice(accel: Accel) -> Choice {
    match accel {
        Accel::Auto => Choice::Auto,
        Accel::Kvm => Choice::Kvm,
        Accel::Soft => Choice::Soft,
    }
}

fn part_or(path: Option<&Path>, otherwise: impl FnOnce() -> Result<Part>) -> Result<Part> {
    match path {
        Some(path) => Part::open(path).map_err(|e| Error::Machine(e.to_string())),
        None => otherwise(),
    }
}

/// The image's command line, then what a launch adds. The last word on a subject counts, so a person's comes last.
fn command_line(image: &Image, record: &Record, network: Option<&str>) -> String {
    let manifest = image.manifest();
    // A panic ends the machine by a reset at once; the console has said why.
    let mut line = format!("{} panic=-1 console=ttyS0", manifest.command_line.trim());
    if manifest.console != "ttyS0" {
        line += &format!(" console={}", manifest.console);
    }
    line += &format!(" kiln.instance={} kiln.hostname={}", record.id, hostname(record));
    line += &format!(" kiln.boot_timer={:#x}", layout::BOOT_TIMER);
    for words in [network, record.config.append.as_deref()].into_iter().flatten() {
        line += " ";
        line += words;
    }
    line.trim().to_owned()
}

/// The console devices. What a person types goes to the one that the image names. The serial port is always there: until
/// the driver of `hvc0` is loaded, it alone can say why a kernel does not come up.
fn consoles(image: &Image, console: &Console) -> Result<(Option<Hvc>, Serial)> {
    let input = keyboard(console)?;
    if !image.manifest().console.starts_with("hvc") {
        return Ok((
            None,
            Serial {
                output: Box::new(console.clone()),
                input: Some(input),
            },
        ));
    }
    let (columns, rows) = terminal::size().map_or((0, 0), |(rows, columns)| (columns, rows));
    let main = Arc::new(AtomicBool::new(false));
    let hvc = Hvc::new(
        Some(input),
        Box::new(Main(console.clone(), Arc::clone(&main))),
        HvcSize::new(columns, rows),
    );
    Ok((
        Some(hvc),
        Serial {
            output: Box::new(Early(console.clone(), main)),
            input: None,
        },
    ))
}

/// The main console's output.
struct Main(Console, Arc<AtomicBool>);

impl Write for Main {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.store(true, Ordering::Relaxed);
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port's output, until the main console has taken over: the kernel prints the same on both.
struct Early(Console, Arc<AtomicBool>);

impl Write for Early {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            Ok(bytes.len())
        } else {
            self.0.write(bytes)
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that brings what a person types.
fn keyboard(console: &Console) -> Result<OwnedFd> {
    let failed = "connecting the console";
    let (keys, device) = UnixStream::pair().map_err(Error::os(failed))?;
    for end in [&keys, &device] {
        end.set_nonblocking(true).map_err(Error::os(failed))?;
    }
    // What does not fit is dropped, as on a line without flow control: a guest that does not read must not stop its host.
    console.connect_input(Some(Box::new(move |bytes| {
        let _ = (&keys).write(bytes);
    })));
    Ok(device.into())
}

/// The device through which host and agent speak.
fn vsock(directory: &Path) -> Result<Vsock> {
    let listener = sockets::bind(directory, sockets::VSOCK)?;
    let failed = Error::file("serving", directory.join(sockets::VSOCK));
    Vsock::new(
        GUEST_CID,
        listener,
        sockets::lasting_path(directory, sockets::VSOCK)?,
    )
    .map_err(failed)
}

fn device(name: &str, device: impl VirtioDevice + 'static) -> Device {
    Device {
        name: name.into(),
        device: Box::new(device),
    }
}

/// The instance's disks.
#[derive(Default)]
struct Disks {
    devices: Vec<Device>,
    /// The root volume while it still reads from the image.
    lazy: Option<Arc<RootVolume>>,
}

impl Disks {
    fn attach(&mut self, volume: &Volume, image: &Image) -> Result<()> {
        let path = &volume.path;
        let spec = BlockSpec {
            read_only: false,
            id: serial_number(volume),
            queues: 1,
        };
        let device = match volume.kind {
            VolumeKind::Lazy | VolumeKind::Full => {
                let base = if RootVolume::needs_base(path)? {
                    Some(image.root()?)
                } else {
                    None
                };
                let root = Arc::new(RootVolume::open(path, base)?);
                if !root.stands_alone() {
                    self.lazy = Some(Arc::clone(&root));
                }
                Block::new(root, spec)
            }
            VolumeKind::Blank | VolumeKind::File => {
                let file = RawFile::open(path, false).map_err(Error::file("opening", path))?;
                Block::new(Arc::new(file), spec)
            }
        };
        self.devices
            .push(self::device(volume.device.trim_start_matches("/dev/"), device));
        Ok(())
    }
}

/// What the guest sees in `/dev/disk/by-id`: the volume's id without its dash, cut to 20 bytes, as on EC2.
fn serial_number(volume: &Volume) -> String {
    volume.id.as_str().replace('-', "")
}
