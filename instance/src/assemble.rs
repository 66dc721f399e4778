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
use super::network::Network;
use super::owner::Guest;
use super::pause::{GuestControl, SpaceHook};
use super::per_run::{DiskEngine, PerRun};
use super::record::{Accel, Record, Volume, VolumeKind};
use super::space_watch::{Remote, SpaceWatch};
use super::{Error, Result, confine, descriptors, network, search, sockets};
use machine::accel::{self, Choice, Chosen};
use machine::arch;
use machine::block::raw::RawFile;
use machine::block::volume::{Hydration, Volume as RootVolume};
use machine::memory::Part;
use machine::sandbox::{self, Mode, Offer};
use machine::timeline::{Event, MemoryUse, Timeline};
use machine::virtio::VirtioDevice;
use machine::virtio::balloon::{Balloon, Target};
use machine::virtio::block::{AsyncIo, Block, Spec as BlockSpec};
use machine::virtio::determinism::Determinism;
use machine::virtio::rng::Rng;
use machine::virtio::vsock::Vsock;
use machine::{Device, Handle, Machine, Outcome, Spec};

/// The guest's vsock address. Each instance has a network of sockets of its own, so all have the same.
const GUEST_CID: u64 = 3;

/// Builds the machines of one run.
pub struct Assembly {
    home: Home,
    per_run: PerRun,
    determinism: Determinism,
    timeline: Arc<Timeline>,
    /// Taken by the first life.
    fresh: Option<Fresh>,
    measured: Measured,
    /// A command of the launch runs in place of the image's main program.
    without_main: bool,
    /// Whether it was tried to confine the process.
    confined: bool,
    /// Chosen before the process is confined, and the same for every run of the guest.
    accelerator: Option<Arc<Chosen>>,
    /// Removes the instance, which the confined process cannot.
    janitor: Option<Janitor>,
}

impl Assembly {
    /// `timeline` has been running since the process began; `turn` is [`PerRun::turn`].
    pub fn new(home: Home, per_run: PerRun, determinism: Determinism, timeline: Arc<Timeline>) -> Assembly {
        Assembly {
            home,
            per_run,
            measured: Measured::new(Arc::clone(&timeline)),
            determinism,
            timeline,
            fresh: None,
            without_main: false,
            confined: false,
            accelerator: None,
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

    /// Leaves the image's main program, if it has one, out.
    pub fn without_main(self, without_main: bool) -> Assembly {
        Assembly { without_main, ..self }
    }

    /// Confines this process, as its user wishes, to what the instance needs; with `removes` it may be removed in the end. No
    /// other thread may have been started. What the host does not offer is told.
    pub fn confine(&mut self, record: &Record, directory: &Path, removes: bool) -> Result<()> {
        self.confined = true;
        descriptors::raise_limit();
        // Confined, the process could not look for it, and as root it would make one.
        network::check_device(&record.config.network)?;
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
        self.accelerator(record, &image)?;
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

    /// What runs the guest's instructions: decided the first time.
    fn accelerator(&mut self, record: &Record, image: &Image) -> Result<Arc<Chosen>> {
        if let Some(chosen) = &self.accelerator {
            return Ok(Arc::clone(chosen));
        }
        let (asked, guest) = (choice(record.config.accel), image.manifest().architecture);
        let chosen = if self.determinism.is_enabled() {
            accel::choose_repeatable(asked, guest, self.per_run.profile.clone())
        } else {
            accel::choose(asked, guest, self.home.kvm_verdict().as_deref())
        };
        let chosen = Arc::new(chosen.map_err(|error| Error::Machine(error.to_string()))?);
        self.accelerator = Some(Arc::clone(&chosen));
        Ok(chosen)
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
        let repeatable = self.determinism.is_enabled().then(|| record.without_identity());
        let record = repeatable.as_ref().unwrap_or(record);
        let limits = record.config.limits;
        self.per_run.check(&limits)?;
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
        let rng = if self.determinism.is_enabled() {
            Rng::seeded(image.id().as_bytes())
        } else {
            Rng::default()
        };
        devices.push(device("rng", rng));
        devices.push(device("vsock", vsock(directory)?));
        // A repeatable run does not depend on the host's resolver.
        let user = matches!(record.config.network, Network::User | Network::UserLoopback);
        let search = match user && !self.determinism.is_enabled() {
            true => search::domains(),
            false => Vec::new(),
        };
        let card = network::card(record, directory, &image, &search)?;
        let words = card.as_ref().and_then(|card| card.words.clone());
        devices.extend(card.map(|card| device("net0", card.device)));
        let (hvc, serial) = consoles(&image, console, &self.determinism)?;
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
            accel: self.accelerator(record, &image)?,
            kernel,
            initrd: Some(initrd),
            cmdline: command_line(&image, record, &self.launch_words(words, &search)),
            serial: Some(serial),
            devices,
            uuid: Some(record.id.platform_uuid().into_bytes()),
            determinism: self.determinism.clone(),
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
        Ok(Box::new(GuestRun {
            machine,
            lazy,
            space: disks.space,
            space_hook: None,
        }))
    }

    /// What the guest is told of its network and of this run.
    fn launch_words(&self, network: Option<String>, search: &[String]) -> Vec<String> {
        let search = search::word(search);
        let main = self.without_main.then(|| "kiln.main=none".to_owned());
        [network, search, main].into_iter().flatten().collect()
    }

    /// What was counted, in words; `None` without `--icount`.
    pub fn counted(&self) -> Option<String> {
        let all = self
            .timeline
            .all_instructions()
            .filter(|_| self.determinism.is_enabled())?;
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
            self.measured.print_exits()?;
        }
        match &self.per_run.timing {
            Some(path) => self.measured.write_timing(path),
            None => Ok(()),
        }
    }
}

/// A machine and what works for it in the background.
struct GuestRun {
    machine: Machine,
    /// The root volume, if it is to be filled in the background.
    lazy: Option<Arc<RootVolume>>,
    space: SpaceWatch,
    space_hook: Option<SpaceHook>,
}

impl Guest for GuestRun {
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
        let GuestRun {
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
pub(super) fn command_line(image: &Image, record: &Record, launch: &[String]) -> String {
    let manifest = image.manifest();
    let layout = arch::layout(manifest.architecture);
    let mut words = vec![
        manifest.command_line.clone(),
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
    words.extend(launch.iter().cloned().chain(record.config.append.clone()));
    // An image or a person may have words for init; ours are the kernel's.
    ami::command_line::join(words.iter().map(String::as_str))
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
    fn flights(&self) -> Vec<AsyncIo> {
        if self.engine == DiskEngine::Sync {
            return Vec::new();
        }
        let flights: io::Result<_> = (0..self.queues).map(|_| AsyncIo::new()).collect();
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

#[cfg(test)]
mod tests {
    use super::super::launch::Launch;
    use super::super::record::Config;
    use super::super::store::Store;
    use super::super::test_image;
    use super::*;

    /// The kernel passes what is behind `--` to init and reads no parameter there.
    #[test]
    fn our_parameters_are_before_the_arguments_of_init() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let path = test_image::write(dir.path(), "image", 1);
        let config = Config {
            append: Some("debug -- single".into()),
            ..Config::default()
        };
        let held = Launch::new(&store, Image::open(&path).unwrap())
            .config(config)
            .prepare(0)
            .unwrap();
        let image = Image::open(&path).unwrap();
        let line = command_line(
            &image,
            held.record(),
            &["kiln.ip=x".into(), "kiln.main=none".into()],
        );
        assert!(
            line.ends_with(" kiln.ip=x kiln.main=none debug -- single"),
            "{line}"
        );
        assert!(line.contains(" kiln.instance=i-"), "{line}");
    }
}
