//! From a record to a machine: one run of an instance's guest.

use std::path::Path;
use std::sync::Arc;

use crate::images::image::{self, Image, part_or};
use crate::process::confine;
use crate::process::console::Console;
use crate::process::consoles::consoles;
use crate::process::descriptors;
use crate::process::guest::{Beginning, Guest};
use crate::process::guest_run::GuestRun;
use crate::process::janitor::Janitor;
use crate::process::launch::{Fresh, hostname};
use crate::process::measure::Measured;
use crate::process::network;
use crate::process::per_run::{Devices, Direct, PerRun, Timing};
use crate::process::restore::{self, Found};
use crate::process::search;
use crate::process::space_watch::SpaceWatch;
use crate::store::LockedInstance;
use crate::store::home::Home;
use crate::store::limits::Limits;
use crate::store::network::Network;
use crate::store::record::{Record, Volume, VolumeKind};
use crate::store::sockets;
use crate::{Error, Result};
use machine::accel::{self, Chosen};
use machine::arch;
use machine::block::Backend;
use machine::block::raw::RawFile;
use machine::block::volume::Volume as RootVolume;
use machine::devices::VirtioSpec;
use machine::entropy;
use machine::memory::Part;
use machine::sandbox::{self, Mode, Offer};
use machine::snapshot;
use machine::timeline::{Event, MemoryUse, Timeline};
use machine::virtio::balloon::{BalloonSpec, Target};
use machine::virtio::block::{DiskSpec, IoEngine, Spec as BlockSpec};
use machine::virtio::determinism::Determinism;
use machine::virtio::rng::RngSpec;
use machine::virtio::vsock::VsockSpec;
use machine::{Device, Machine, Spec};

/// The guest's vsock address. Each instance has a network of sockets of its own, so all have the same.
const GUEST_CID: u64 = 3;

/// The guest's name of its serial port.
const SERIAL_CONSOLE: &str = "ttyS0";

/// Builds the machines of one run.
pub struct Assembly {
    home: Home,
    per_run: PerRun,
    determinism: Determinism,
    timeline: Arc<Timeline>,
    /// Taken by the first run.
    fresh: Option<Fresh>,
    /// The instance was launched by this process, so that no guest of it was ever saved.
    launched_here: bool,
    measured: Measured,
    /// A command of the launch runs in place of the image's main program.
    without_main: bool,
    /// Whether it was tried to confine the process.
    confined: bool,
    /// Chosen before the process is confined, and the same for every run of the guest.
    accelerator: Option<Arc<Chosen>>,
    /// Removes the instance, which the confined process cannot.
    janitor: Option<Janitor>,
    /// The guest that the first run goes on with, once it was looked for.
    found: Option<Found>,
    /// Asked for rows and columns of the terminal that the guest's console is shown on.
    terminal_size: TerminalSize,
}

/// Starts the processes in which the guest's programs run, where that is wanted. Returns whether there are any.
fn start_helpers(chosen: &Chosen, direct: Direct, cpus: u32) -> bool {
    if direct == Direct::Off {
        return false;
    }
    let interpreted = "the guest's programs are interpreted: this host does not run them directly";
    let started = chosen.run_directly(cpus.try_into().unwrap_or(u8::MAX));
    match &started {
        Err(error) if direct == Direct::On => tracing::warn!("{interpreted}: {error}"),
        Err(error) => tracing::debug!("{interpreted}: {error}"),
        Ok(_) => {}
    }
    started.unwrap_or(false)
}

/// Rows and columns of a terminal, if there is one.
pub type TerminalSize = fn() -> Option<(u16, u16)>;

impl Assembly {
    /// `timeline` has been running since the process began; `determinism` is [`PerRun::determinism`].
    pub fn new(home: Home, per_run: PerRun, determinism: Determinism, timeline: Arc<Timeline>) -> Assembly {
        Assembly {
            home,
            per_run,
            measured: Measured::new(Arc::clone(&timeline)),
            determinism,
            timeline,
            fresh: None,
            launched_here: false,
            without_main: false,
            confined: false,
            accelerator: None,
            janitor: None,
            found: None,
            terminal_size: || None,
        }
    }

    /// Uses what the launch has opened, if it was in this process, for the first run.
    pub fn with(self, fresh: Fresh) -> Assembly {
        Assembly {
            fresh: Some(fresh),
            launched_here: true,
            ..self
        }
    }

    /// Whether the launch was in this process.
    pub fn is_launched_here(&self) -> bool {
        self.launched_here
    }

    /// The console is shown on a terminal of this size.
    pub fn on_terminal(self, terminal_size: TerminalSize) -> Assembly {
        Assembly {
            terminal_size,
            ..self
        }
    }

    /// Leaves the image's main program, if it has one, out.
    pub fn without_main(self, without_main: bool) -> Assembly {
        Assembly { without_main, ..self }
    }

    /// Confines this process, as its user wishes, to what the instance needs; with `removes` it may be
    /// removed in the end. No other thread may have been started. What the host does not offer is logged.
    pub fn confine(&mut self, record: &Record, directory: &Path, removes: bool) -> Result<()> {
        self.confined = true;
        descriptors::raise_limit();
        // Confined, the process could not look for it, and as root it would make one.
        network::check_device(&record.config.network)?;
        let mode = self.per_run.host.sandbox;
        if mode == Mode::Off && self.per_run.host.direct == Direct::Off {
            return Ok(());
        }
        let Fresh { image, root } = match self.fresh.take() {
            Some(fresh) => fresh,
            None => Fresh {
                image: Arc::new(Image::of_instance_to_run(record, directory, &self.home)?),
                root: None,
            },
        };
        // All of them leave notes or take files away where the confined process may not write.
        image.verify_boot(&self.home)?;
        self.find_guest(record, directory, &image)?;
        let chosen = self.accelerator(record, &image)?;
        let timing = match &self.per_run.timing {
            Some(Timing::File(path)) => Some(path),
            Some(Timing::Table) | None => None,
        };
        let outputs: Vec<_> = self.per_run.outputs.iter().chain(timing).cloned().collect();
        let plan = confine::plan(record, directory, &self.home, &image, &outputs)?;
        let direct = self.direct(mode);
        self.fresh = Some(Fresh {
            image: Arc::clone(&image),
            root,
        });
        if removes && Offer::of_host().files.is_ok() {
            self.janitor = Some(Janitor::start(directory)?);
        }
        let cpus = record.config.cpus.unwrap_or(image.manifest().default_cpus);
        let missing = sandbox::confine(mode, &plan, || start_helpers(&chosen, direct, cpus))?;
        if let Some(missing) = missing {
            tracing::warn!("this host confines the process in part only: {missing}");
        }
        Ok(())
    }

    /// Whether the guest's programs are to run directly.
    fn direct(&self, mode: Mode) -> Direct {
        if self.per_run.host.direct == Direct::Off {
            return Direct::Off;
        }
        // Only Landlock keeps a thread that may trace from tracing others' processes.
        let alone = mode == Mode::Off || Offer::of_host().files.is_ok();
        match (self.per_run.host.direct, &self.found) {
            (Direct::On, _) if !alone => {
                tracing::warn!("the guest's programs are interpreted: this host has no Landlock");
                Direct::Off
            }
            (Direct::Auto, _) if !alone => Direct::Off,
            // Its memory would have to be copied: that takes longer than all else of such a launch.
            (Direct::Auto, Some(Found::Guest(_))) => Direct::Off,
            (asked, _) => asked,
        }
    }

    /// Looks for the guest that the first run is to go on with. Later runs of this process boot.
    fn find_guest(&mut self, record: &Record, directory: &Path, image: &Image) -> Result<()> {
        if self.found.is_none() {
            let begin = self.per_run.begin;
            self.found = Some(begin.find(image, &record.config, directory, &self.home)?);
        }
        Ok(())
    }

    /// The kernel boots though a saved guest was to go on.
    fn boots(&self, record: &Record, why: &str) -> Result<()> {
        if self.per_run.begin.is_strict() {
            return Err(Error::NotRestored {
                id: record.id.to_string(),
                why: why.into(),
            });
        }
        tracing::warn!("{} boots instead of going on: {why}", record.id);
        Ok(())
    }

    /// What is new for each restore, by which the guest's kernel knows of it. A repeatable run does not.
    fn generation(&self) -> Option<[u8; 16]> {
        (!self.determinism.is_enabled()).then(entropy::bytes)
    }

    /// What runs the guest's instructions: decided the first time.
    fn accelerator(&mut self, record: &Record, image: &Image) -> Result<Arc<Chosen>> {
        if let Some(chosen) = &self.accelerator {
            return Ok(Arc::clone(chosen));
        }
        let (asked, guest) = (record.config.accel, image.manifest().architecture);
        let chosen = if self.determinism.is_enabled() {
            accel::choose_repeatable(asked, guest, self.per_run.profile.clone())
        } else {
            accel::choose(asked, guest, self.home.kvm_verdict().as_deref())
        };
        let chosen = Arc::new(chosen?.with_model(record.config.cpu)?);
        self.accelerator = Some(Arc::clone(&chosen));
        Ok(chosen)
    }

    /// Removes the instance, through the janitor where this process may not.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove(&mut self, held: LockedInstance) -> Result<()> {
        match self.janitor.take() {
            Some(janitor) => held.remove_with(|_| janitor.remove()),
            None => held.remove(),
        }
    }

    /// Builds the machine of one run; confines the process before, unless that was done.
    pub fn build(&mut self, record: &Record, directory: &Path, console: &Console) -> Result<Box<dyn Guest>> {
        if !self.confined {
            self.confine(record, directory, true)?;
        }
        let (image, root) = match self.fresh.take() {
            Some(Fresh { image, root }) => (image, root),
            None => (
                Arc::new(Image::of_instance_to_run(record, directory, &self.home)?),
                None,
            ),
        };
        image::runnable(&image)?;
        image.verify_boot(&self.home)?;
        self.find_guest(record, directory, &image)?;
        let repeatable = self.determinism.is_enabled().then(|| record.without_identity());
        let record = repeatable.as_ref().unwrap_or(record);
        let limits = record.config.limits;
        self.per_run.check(&limits)?;
        let cpus = record.config.cpus.unwrap_or(image.manifest().default_cpus);
        let mut disks = Disks {
            fresh_root: root,
            // A queue for each processor: none waits for another's lock, in the guest or here.
            queues: MAX_QUEUES.min(cpus as usize),
            engine: self.per_run.host.disk_engine.into(),
            limits,
            ..Disks::default()
        };
        for volume in &record.volumes {
            disks.attach(volume, &image)?;
        }
        let mut devices = disks.devices;
        let seed = self
            .determinism
            .is_enabled()
            .then(|| image.id().as_bytes().to_vec());
        devices.push(device("rng", VirtioSpec::Rng(RngSpec { seed })));
        if self.per_run.devices == Devices::All {
            devices.push(device("vsock", VirtioSpec::Vsock(vsock(directory)?)));
        }
        // A repeatable run does not depend on the host's resolver.
        let user = matches!(record.config.network, Network::User | Network::UserLoopback);
        let search = match user && !self.determinism.is_enabled() {
            true => search::domains(),
            false => Vec::new(),
        };
        let card = network::card(record, directory, &image, &search)?;
        let words = card.as_ref().and_then(|card| card.words.clone());
        let tags = card.as_ref().map(|card| card.tags.clone());
        devices.extend(card.map(|card| device("net0", VirtioSpec::Net(card.device))));
        // A guest that is to run the same way everywhere does not know this terminal.
        let terminal = (self.terminal_size)().filter(|_| !self.determinism.is_enabled());
        let main_console = match self.per_run.devices {
            Devices::All => image.manifest().console.as_str(),
            Devices::Basic => SERIAL_CONSOLE,
        };
        let (hvc, serial) = consoles(main_console, console, terminal)?;
        devices.extend(hvc.map(|hvc| device("console", VirtioSpec::Console(hvc))));
        if record.config.balloon {
            let target = Target::default();
            devices.push(device("balloon", VirtioSpec::Balloon(BalloonSpec { target })));
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
            cmdline: command_line(&image, record, main_console, &self.launch_words(words, &search)),
            serial: Some(serial),
            devices,
            uuid: Some(record.id.platform_uuid().into_bytes()),
            determinism: self.determinism.clone(),
            statistics: self.per_run.timing.is_some() || self.per_run.exits,
            timeline: Arc::clone(&self.timeline),
        };
        let (saved, instead) = match self.found.replace(Found::Nothing(None)) {
            Some(Found::Guest(saved)) => match saved.fits(&spec) {
                Ok(()) => (Some(saved), None),
                Err(why) => (None, Some(why)),
            },
            Some(Found::Nothing(why)) => (None, why),
            None => (None, None),
        };
        if let Some(why) = &instead {
            self.boots(record, why)?;
        }
        let restored = saved.is_some();
        let restore = saved.map(|saved| saved.restore(self.generation()));
        let memory = restore.as_ref().map(|restore| restore.memory.clone());
        let machine = match Machine::build(spec, restore) {
            // What only the accelerator could know. What the machine was to have is taken: it is made again.
            Err(machine::Error::Snapshot(snapshot::Error::Mismatch(why))) => {
                self.found = Some(Found::Nothing(Some(why.to_string())));
                return self.build(record, directory, console);
            }
            built => built?,
        };
        if !self.launched_here {
            restore::forget_hibernated(directory)?;
        }
        self.measured.machine(machine.handle());
        if self.per_run.timing.is_some() {
            let placed = parts.iter().chain(&memory).map(Part::placed);
            let (mapped, copied) = placed.fold((0, 0), |all, part| (all.0 + part.0, all.1 + part.1));
            self.timeline.memory(MemoryUse::now(mapped, copied));
        }
        // What is removed when it stops would be copied for nothing.
        let lazy = disks.lazy.filter(|_| !record.auto_remove);
        let beginning = match restored {
            true => Beginning::Restored,
            false => Beginning::Booted { instead },
        };
        let run = GuestRun::new(machine, lazy, disks.space)
            .begun(beginning)
            .with_tags(tags);
        Ok(Box::new(run))
    }

    /// Words about the network and this run for the guest's kernel command line.
    fn launch_words(&self, network: Option<String>, search: &[String]) -> Vec<String> {
        let search = search::word(search);
        let main = self.without_main.then(|| "kiln.main=none".to_owned());
        [network, search, main].into_iter().flatten().collect()
    }

    /// What was counted, in words; `None` where they are not counted.
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

    /// Writes what was measured to its files, and returns what is to be shown to a person, as tables.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(&self) -> Result<String> {
        let mut tables = String::new();
        if self.per_run.exits {
            tables += &self.measured.exits();
        }
        match &self.per_run.timing {
            Some(Timing::Table) => tables += &self.measured.timing(),
            Some(Timing::File(path)) => self.measured.write_timing(path)?,
            None => {}
        }
        Ok(tables)
    }
}

/// The image's command line, then what a launch adds. The last value of a parameter counts, so the user's
/// comes last.
pub(crate) fn command_line(image: &Image, record: &Record, console: &str, launch: &[String]) -> String {
    let manifest = image.manifest();
    let layout = arch::layout(manifest.architecture);
    let mut words = vec![
        manifest.command_line.clone(),
        // A panic ends the machine by a reset at once; the console has said why.
        "panic=-1".to_owned(),
        layout.command_line.to_owned(),
        format!("console={SERIAL_CONSOLE}"),
    ];
    if console != SERIAL_CONSOLE {
        words.push(format!("console={console}"));
    }
    words.push(format!("kiln.instance={}", record.id));
    words.push(format!("kiln.hostname={}", hostname(record)));
    words.push(format!("kiln.boot_timer={:#x}", layout.boot_timer));
    words.extend(launch.iter().cloned().chain(record.config.append.clone()));
    // An image or a person may have words for init; ours are the kernel's.
    ami::command_line::join(words.iter().map(String::as_str))
}

/// The device through which host and agent speak.
fn vsock(directory: &Path) -> Result<VsockSpec> {
    Ok(VsockSpec {
        guest_cid: GUEST_CID,
        listener: sockets::bind(directory, sockets::VSOCK)?,
        path: sockets::lasting_path(directory, sockets::VSOCK)?,
    })
}

/// A device under its name.
pub fn device(name: &str, spec: VirtioSpec) -> Device {
    Device {
        name: name.into(),
        spec,
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
    engine: IoEngine,
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
        let backend: Arc<dyn Backend> = match volume.kind {
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
                root
            }
            VolumeKind::Blank | VolumeKind::Ephemeral | VolumeKind::File => {
                Arc::new(RawFile::open(path, false).map_err(Error::file("opening", path))?)
            }
        };
        let disk = DiskSpec {
            backend,
            spec,
            engine: self.engine,
            limiter: self.limits.volume(),
            space: Some(self.space.disk(&volume.device, path)),
        };
        let name = volume.device.trim_start_matches("/dev/");
        self.devices.push(device(name, VirtioSpec::Disk(disk)));
        Ok(())
    }
}

/// What the guest sees in `/dev/disk/by-id`: the volume's id without its dash, cut to 20 bytes, as on EC2.
fn serial_number(volume: &Volume) -> String {
    volume.id.as_str().replace('-', "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::launch::Launch;
    use crate::store::Store;
    use crate::store::record::Config;
    use crate::test_image;

    /// The kernel passes what is behind `--` to init and reads no parameter there.
    #[test]
    fn our_parameters_go_before_the_arguments_of_init() {
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
            "hvc0",
            &["kiln.ip=x".into(), "kiln.main=none".into()],
        );
        assert!(
            line.ends_with(" kiln.ip=x kiln.main=none debug -- single"),
            "{line}"
        );
        assert!(line.contains(" kiln.instance=i-"), "{line}");
        assert!(line.contains(" console=ttyS0 console=hvc0 "), "{line}");
        let line = command_line(&image, held.record(), "ttyS0", &[]);
        assert_eq!(line.matches("console=").count(), 1, "{line}");
    }
}
