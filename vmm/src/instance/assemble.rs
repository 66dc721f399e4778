//! From a record to a machine: one life of an instance's guest.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::console::Console;
use super::consoles::consoles;
use super::home::{Home, base_link};
use super::image::{self, Image};
use super::janitor::Janitor;
use super::launch::{Fresh, hostname};
use super::limits::Limits;
use super::measure::Measured;
use super::owner::Guest;
use super::pause::{GuestControl, SpaceHook};
use super::per_run::{DiskEngine, PerRun};
use super::record::{Accel, Record, Volume, VolumeKind};
use super::space_watch::{Remote, SpaceWatch};
use super::{Error, Result, confine, network, sockets};
use crate::accel::{self, Choice};
use crate::arch;
use crate::block::raw::RawFile;
use crate::block::volume::{Hydration, Volume as RootVolume};
use crate::machine::{Device, Handle, Machine, Outcome, Spec};
use crate::memory::Part;
use crate::sandbox::{self, Mode, Offer};
use crate::timeline::{Event, MemoryUse, Timeline};
use crate::virtio::VirtioDevice;
use crate::virtio::balloon::{Balloon, Target};
use crate::virtio::block::{Block, Flight, Spec as BlockSpec};
use crate::virtio::lockstep::Turn;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;

/// The guest's vsock address. Each instance has a network of sockets of its own, so all have the same.
const GUEST_CID: u64 = 3;

/// Builds the machines of one run.
pub struct Assembly {
    home: Home,
    per_run: PerRun,
    turn: Turn,
    timeline: Arc<Timeline>,
    /// Taken by the first life.
    fresh: Option<Fresh>,
    measured: Measured,
    /// Whether it was tried to confine the process.
    confined: bool,
    /// Removes the instance, which the confined process cannot.
    janitor: Option<Janitor>,
}

impl Assembly {
    /// `timeline` has been running since the process began; `turn` is [`PerRun::turn`].
    pub fn new(home: Home, per_run: PerRun, turn: Turn, timeline: Arc<Timeline>) -> Assembly {
        Assembly {
            home,
            per_run,
            measured: Measured::new(Arc::clone(&timeline)),
            turn,
            timeline,
            fresh: None,
            confined: false,
            janitor: None,
        }
    }

    /// Uses what the launch has opened, if it was in this process, for the first life.
    pub fn with(self, fresh: Fresh) -> Assembly {
        Assembly {
            fresh: Some(fresh),
            ..self
        }
    }

    /// Confines this process, as its user wishes, to what the instance needs; with `removes` it may be removed in the end. No
    /// other thread may have been started. What the host does not offer is told.
    pub fn confine(&mut self, record: &Record, directory: &Path, removes: bool) -> Result<()> {
        self.confined = true;
        let mode = self.per_run.host.sandbox;
        if mode == Mode::Off {
            return Ok(());
        }
        let Fresh { image, root } = match self.fresh.take() {
            Some(fresh) => fresh,
            None => Fresh {
                image: Arc::new(open_image(record, directory)?),
                root: None,
            },
        };
        // Both leave a note where the confined process may not write.
        image.verify_boot(&self.home)?;
        let _ = accel::choose(choice(record.config.accel), image.manifest().architecture);
        let timing = self.per_run.timing.iter().filter(|path| *path != Path::new("-"));
        let outputs: Vec<_> = timing.chain(&self.per_run.outputs).cloned().collect();
        let plan = confine::plan(record, directory, &self.home, &image, &outputs)?;
        self.fresh = Some(Fresh { image, root });
        if removes && Offer::of_host().files.is_ok() {
            self.janitor = Some(Janitor::start(directory)?);
        }
        let missing = sandbox::confine(mode, &plan).map_err(|error| Error::Refused(error.to_string()))?;
        if let Some(missing) = missing {
            tracing::warn!("this host confines the process in part only: {missing}");
        }
        Ok(())
    }

    /// Who is to remove the instance, if this process cannot.
    pub fn janitor(&mut self) -> Option<Janitor> {
        self.janitor.take()
    }

    /// Builds the machine of one life; confines the process before, unless that was done.
    pub fn build(&mut self, record: &Record, directory: &Path, console: &Console) -> Result<Box<dyn Guest>> {
        if !self.confined {
            self.confine(record, directory, true)?;
        }
        let (image, root) = match self.fresh.take() {
            Some(Fresh { image, root }) => (image, root),
            None => (Arc::new(open_image(record, directory)?), None),
        };
        image::runnable(&image)?;
        image.verify_boot(&self.home)?;
        let repeatable = self.turn.is_kept().then(|| record.without_identity());
        let record = repeatable.as_ref().unwrap_or(record);
        let limits = record.config.limits;
        if self.turn.is_kept() && !limits.none() {
            return Err(Error::Refused(
                "limits count seconds of this host, and with --icount time is instructions; leave one of them out".into(),
            ));
        }
        let cpus = record.config.cpus.unwrap_or(image.manifest().default_cpus);
        let mut disks = Disks {
            fresh_root: root,
            // A queue for each processor: none waits for another's lock, in the guest or here.
            queues: MAX_QUEUES.min(cpus as usize),
            engine: self.per_run.host.disk_engine,
            limits,
            ..Disks::default()
        };
        for volume in &record.volumes {
            disks.attach(volume, &image)?;
        }
        let mut devices = disks.devices;
        let rng = if self.turn.is_kept() {
            Rng::seeded(image.id().as_bytes())
        } else {
            Rng::default()
        };
        devices.push(device("rng", rng));
        devices.push(device("vsock", vsock(directory)?));
        let card = network::card(record, directory, &image)?;
        let words = card.as_ref().and_then(|card| card.words.clone());
        devices.extend(card.map(|card| device("net0", card.device)));
        let (hvc, serial) = consoles(&image, console, &self.turn)?;
        devices.extend(hvc.map(|hvc| device("console", hvc)));
        if record.config.balloon {
            devices.push(device("balloon", Balloon::new(Target::default())));
        }
        let kernel = part_or(record.config.kernel.as_deref(), || image.kernel())?;
        let initrd = part_or(record.config.initrd.as_deref(), || image.initramfs())?;
        let parts = [kernel.clone(), initrd.clone()];
        let spec = Spec {
            architecture: image.manifest().architecture,
            cpus: cpus.try_into().unwrap_or(u8::MAX),
            memory: record.config.memory.unwrap_or(image.manifest().default_memory),
            accel: choice(record.config.accel),
            kernel,
            initrd: Some(initrd),
            cmdline: command_line(&image, record, words.as_deref()),
            serial: Some(serial),
            devices,
            uuid: Some(record.id.platform_uuid().into_bytes()),
            turn: self.turn.clone(),
            profile: self.per_run.profile.clone(),
            timeline: Arc::clone(&self.timeline),
        };
        let machine = Machine::build(spec).map_err(|e| Error::Machine(e.to_string()))?;
        self.measured.machine(machine.handle());
        if self.per_run.timing.is_some() {
            let placed = parts.iter().map(Part::placed);
            let (mapped, copied) = placed.fold((0, 0), |all, part| (all.0 + part.0, all.1 + part.1));
            self.timeline.memory(MemoryUse::now(mapped, copied));
        }
        // What is removed when it stops would be copied for nothing.
        let lazy = disks.lazy.filter(|_| !record.auto_remove);
        Ok(Box::new(Life {
            machine,
            lazy,
            space: disks.space,
            space_hook: None,
        }))
    }

    /// What was counted, in words; `None` without `--icount`.
    pub fn counted(&self) -> Option<String> {
        let all = self.timeline.all_instructions().filter(|_| self.turn.is_kept())?;
        let until = |event, what| {
            let count = self.timeline.instructions(event)?;
            Some(format!("{count} instructions until {what}, "))
        };
        let kernel = until(Event::KernelReady, "the kernel starts PID 1").unwrap_or_default();
        let init = until(Event::Init, "the image's init").unwrap_or_default();
        Some(format!("{kernel}{init}{all} in all"))
    }

    /// Writes what was measured.
    pub fn finish(&self) -> Result<()> {
        if self.per_run.exits {
            self.measured.print_exits();
        }
        match &self.per_run.timing {
            Some(path) => self.measured.write_timing(path),
            None => Ok(()),
        }
    }
}

/// A machine and what works for it in the background.
struct Life {
    machine: Machine,
    /// The root volume, if it is to be filled in the background.
    lazy: Option<Arc<RootVolume>>,
    space: SpaceWatch,
    space_hook: Option<SpaceHook>,
}

impl Guest for Life {
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (handle, space): (Handle, Remote) = (self.machine.handle(), self.space.remote());
        Arc::new(move || {
            handle.kill();
            space.abandon();
        })
    }

    fn control(&self) -> Arc<dyn GuestControl> {
        Arc::new(Controls {
            handle: self.machine.handle(),
            space: self.space.remote(),
        })
    }

    fn report_space(&mut self, hook: SpaceHook) {
        self.space_hook = Some(hook);
    }

    fn run(self: Box<Self>, started: &mut dyn FnMut()) -> Result<Outcome> {
        let Life {
            machine,
            lazy,
            space,
            space_hook,
        } = *self;
        let (mut hydration, mut watch) = (None, None);
        let handle = machine.handle();
        let outcome = machine.run(|| {
            started();
            let not_filled = space.not_filled();
            let hook = space_hook.unwrap_or_else(|| Box::new(|_| {}));
            watch = space
                .start(handle, hook)
                .inspect_err(|error| tracing::warn!(%error, "nobody looks after space for the volumes"))
                .ok();
            // Whatever stands in its way, the volume works without it.
            hydration = lazy.and_then(|volume| {
                Hydration::start(volume, not_filled)
                    .inspect_err(|error| tracing::warn!(%error, "the root volume is not filled"))
                    .ok()
            });
        });
        if let Some(hydration) = hydration {
            hydration.stop();
        }
        if let Some(watch) = watch {
            watch.stop();
        }
        outcome.map_err(|e| Error::Machine(e.to_string()))
    }
}

/// What pauses a machine.
struct Controls {
    handle: Handle,
    space: Remote,
}

impl GuestControl for Controls {
    fn pause(&self) -> bool {
        self.handle.pause()
    }

    fn resume(&self) {
        self.handle.resume();
    }

    fn retry(&self) {
        self.space.retry();
    }
}

/// The instance's own link to its image, or the image where it was at the launch.
pub fn open_image(record: &Record, directory: &Path) -> Result<Image> {
    let path = if record.image.linked {
        base_link(directory)
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

/// The accelerator that is meant.
pub fn choice(accel: Accel) -> Choice {
    match accel {
        Accel::Auto => Choice::Auto,
        Accel::Kvm => Choice::Kvm,
        Accel::Soft => Choice::Soft,
    }
}

/// The file at `path`, or the image's own part.
pub fn part_or(path: Option<&Path>, otherwise: impl FnOnce() -> Result<Part>) -> Result<Part> {
    match path {
        Some(path) => Part::open(path).map_err(|e| Error::Machine(e.to_string())),
        None => otherwise(),
    }
}

/// The image's command line, then what a launch adds. The last word on a subject counts, so a person's comes last.
fn command_line(image: &Image, record: &Record, network: Option<&str>) -> String {
    let manifest = image.manifest();
    let layout = arch::layout(manifest.architecture);
    let mut words = vec![
        manifest.command_line.trim().to_owned(),
        // A panic ends the machine by a reset at once; the console has said why.
        "panic=-1".to_owned(),
        layout.command_line.to_owned(),
        "console=ttyS0".to_owned(),
    ];
    if manifest.console != "ttyS0" {
        words.push(format!("console={}", manifest.console));
    }
    words.push(format!("kiln.instance={}", record.id));
    words.push(format!("kiln.hostname={}", hostname(record)));
    words.push(format!("kiln.boot_timer={:#x}", layout.boot_timer));
    let launch = [network, record.config.append.as_deref()].into_iter().flatten();
    words.extend(launch.map(|word| word.trim().to_owned()));
    words.retain(|word| !word.is_empty());
    words.join(" ")
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

/// A device under its name.
pub fn device(name: &str, device: impl VirtioDevice + 'static) -> Device {
    Device {
        name: name.into(),
        device: Box::new(device),
    }
}

/// The instance's disks.
#[derive(Default)]
struct Disks {
    devices: Vec<Device>,
    /// What each of them may do in a second.
    limits: Limits,
    /// The root volume if it is open already.
    fresh_root: Option<RootVolume>,
    /// The root volume while it still reads from the image.
    lazy: Option<Arc<RootVolume>>,
    /// Queues of each disk.
    queues: usize,
    engine: DiskEngine,
    /// Looks after those whose host has no space left.
    space: SpaceWatch,
}

/// Queues of a disk at most. Each is a thread here, and behind them all is one file.
const MAX_QUEUES: usize = 8;

impl Disks {
    fn attach(&mut self, volume: &Volume, image: &Image) -> Result<()> {
        let path = &volume.path;
        let spec = BlockSpec {
            read_only: false,
            id: serial_number(volume),
            queues: self.queues,
        };
        let device = match volume.kind {
            VolumeKind::Lazy | VolumeKind::Full => {
                let root = match self.fresh_root.take() {
                    Some(root) => root,
                    None if RootVolume::needs_base(path)? => RootVolume::open(path, Some(image.root()?))?,
                    None => RootVolume::open(path, None)?,
                };
                let root = Arc::new(root);
                if !root.stands_alone() {
                    self.lazy = Some(Arc::clone(&root));
                }
                Block::paced(root, spec, self.flights(), self.limits.volume())
            }
            VolumeKind::Blank | VolumeKind::Ephemeral | VolumeKind::File => {
                let file = RawFile::open(path, false).map_err(Error::file("opening", path))?;
                Block::paced(Arc::new(file), spec, self.flights(), self.limits.volume())
            }
        };
        let monitor = self.space.disk(&volume.device, path);
        let device = device
            .waiting_for_space(&monitor)
            .map_err(Error::os("preparing a volume"))?;
        self.devices
            .push(self::device(volume.device.trim_start_matches("/dev/"), device));
        Ok(())
    }

    /// One for each queue of a disk, if they are wanted and the kernel has them.
    fn flights(&self) -> Vec<Flight> {
        if self.engine == DiskEngine::Sync {
            return Vec::new();
        }
        let flights: io::Result<_> = (0..self.queues).map(|_| Flight::new()).collect();
        flights.unwrap_or_else(|error| {
            tracing::warn!(
                "this host has no io_uring for us ({error}): disks serve one request after the other"
            );
            Vec::new()
        })
    }
}

/// What the guest sees in `/dev/disk/by-id`: the volume's id without its dash, cut to 20 bytes, as on EC2.
fn serial_number(volume: &Volume) -> String {
    volume.id.as_str().replace('-', "")
}
