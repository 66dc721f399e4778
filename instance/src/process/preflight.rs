//! Checks whether a launch would be refused, without launching anything.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::images::image::{Image, part_or, runnable};
use crate::process::assemble::command_line;
use crate::process::network;
use crate::process::per_run::PerRun;
use crate::store::Store;
use crate::store::record::{Record, Volume, VolumeKind};
use crate::{Error, Result};
use machine::accel;
use machine::block::raw::RawFile;
use machine::block::volume;
use machine::timeline::Timeline;
use machine::{Machine, Spec};

/// Checks the first instance of a launch, whose record would be `record`.
///
/// # Errors
/// The reason for which the launch would be refused.
pub fn check(store: &Store, image: &Image, record: &Record, per_run: &PerRun) -> Result<()> {
    runnable(image)?;
    if let Some(name) = &record.name {
        store.check_name(name)?;
    }
    machine_can_be_built(store, image, record, per_run)?;
    for volume in &record.volumes {
        volume_fits(volume, image)?;
    }
    network::check(record)
}

/// Builds the machine as it would be, but for its devices, and drops it: processors, memory, accelerator and
/// what boots.
fn machine_can_be_built(store: &Store, image: &Image, record: &Record, per_run: &PerRun) -> Result<()> {
    let config = &record.config;
    per_run.check(&config.limits)?;
    let cpus = config.cpus.unwrap_or(image.manifest().default_cpus);
    let architecture = image.manifest().architecture;
    let determinism = per_run.determinism();
    let chosen = if determinism.is_enabled() {
        accel::choose_repeatable(config.accel, architecture, None)
    } else {
        let remembered = store.home().kvm_verdict();
        accel::choose(config.accel, architecture, remembered.as_deref())
    };
    let spec = Spec {
        architecture,
        cpus: cpus.try_into().unwrap_or(u8::MAX),
        memory: config.memory.unwrap_or(image.manifest().default_memory),
        accel: Arc::new(chosen?.with_model(config.cpu)?),
        kernel: part_or(config.kernel.as_deref(), || image.kernel())?,
        initrd: Some(part_or(config.initrd.as_deref(), || image.initramfs())?),
        cmdline: command_line(image, record, &image.manifest().console, &[]),
        serial: None,
        devices: Vec::new(),
        uuid: None,
        determinism,
        statistics: false,
        timeline: Arc::new(Timeline::start()),
    };
    Machine::build(spec, None)?;
    Ok(())
}

/// Whether the volume can be made with its size, or is there.
fn volume_fits(volume: &Volume, image: &Image) -> Result<()> {
    let path = &volume.path;
    let failed = |source| Error::Volume(volume::Error::io(path, "created")(source));
    match volume.kind {
        VolumeKind::File => RawFile::open(path, false)
            .map(drop)
            .map_err(Error::file("opening", path)),
        VolumeKind::Lazy | VolumeKind::Full => {
            let base = image.root()?.len();
            if volume.size < base {
                let size = volume.size;
                return Err(Error::Volume(volume::Error::TooSmall { size, base }));
            }
            // A lazy one has a block more than its size.
            size_fits(path, volume.size.saturating_add(volume::BLOCK)).map_err(failed)
        }
        VolumeKind::Blank | VolumeKind::Ephemeral => {
            size_fits(path, volume.size).map_err(Error::file("creating", path))
        }
    }
}

/// Tries the size with a file without a name, in the directory or the one that it would be made in. Where
/// there are no such files, the launch will show it.
fn size_fits(path: &Path, size: u64) -> io::Result<()> {
    let Some(directory) = path.ancestors().skip(1).find(|directory| directory.is_dir()) else {
        return Ok(());
    };
    let nameless = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .open(directory);
    match nameless {
        Ok(file) => file.set_len(size),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::launch::{Launch, RootCopy};
    use crate::store::home::Home;
    use crate::store::network::Network;
    use crate::store::record::{Accel, Config};
    use crate::test_image;

    struct World {
        _dir: tempfile::TempDir,
        store: Store,
        image: std::path::PathBuf,
        kernel: std::path::PathBuf,
    }

    /// The least that passes for a kernel: ELF for x86-64 with one segment of a page at 16 MiB, where it is
    /// entered.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0; 0x2000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1]);
        put(24, &0x100_0000_u64.to_le_bytes());
        put(32, &64_u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 1]);
        put(64, &[1, 0, 0, 0, 5]);
        for (at, value) in [
            (72, 0x1000_u64),
            (80, 0x100_0000),
            (88, 0x100_0000),
            (96, 16),
            (104, 16),
        ] {
            put(at, &value.to_le_bytes());
        }
        file
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::new(Home::at(dir.path()));
            let image = test_image::write(dir.path(), "hello", 5);
            let kernel = dir.path().join("kernel");
            std::fs::write(&kernel, self::kernel()).unwrap();
            World {
                _dir: dir,
                store,
                image,
                kernel,
            }
        }

        fn config(&self) -> Config {
            Config {
                accel: Accel::Soft,
                kernel: Some(self.kernel.clone()),
                ..Config::default()
            }
        }

        fn launch(&self) -> Launch {
            Launch::new(&self.store, Image::open(&self.image).unwrap()).config(self.config())
        }

        fn refused(&self, launch: &Launch) -> String {
            let record = launch.plan(0).unwrap();
            let image = Image::open(&self.image).unwrap();
            match check(&self.store, &image, &record, &PerRun::default()) {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            }
        }
    }

    #[test]
    fn what_can_be_launched_passes_and_nothing_is_made() {
        let world = World::new();
        let launch = world.launch().name(Some("web".into()));
        assert_eq!(world.refused(&launch), "");
        assert!(!world.store.home().instances().exists());
    }

    #[test]
    fn taken_and_invalid_names_are_refused() {
        let world = World::new();
        let launch = world.launch().name(Some("web".into()));
        let _held = launch.prepare(0).unwrap();
        assert!(world.refused(&launch).contains("belongs to"));
        let launch = world.launch().name(Some("../x".into()));
        assert!(world.refused(&launch).contains("not a valid name"));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let world = World::new();
        let small = world.launch().root(Some(1 << 20), RootCopy::Lazy);
        assert!(world.refused(&small).contains("smaller than"));
        // The largest size is the file system's business; this one is none's. The directory is not there yet.
        let path = world.store.home().instances().join("i-0/root.vol");
        size_fits(&path, 1 << 30).unwrap();
        size_fits(&path, u64::MAX).unwrap_err();
    }

    #[test]
    fn unavailable_ports_and_devices_are_refused() {
        let world = World::new();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = taken.local_addr().unwrap().port();
        let with = |network: Network, ports: &[String]| {
            let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
            let config = Config {
                network,
                ports,
                ..world.config()
            };
            world.refused(&world.launch().config(config))
        };
        let busy = with(Network::User, &[format!("{number}:80")]);
        assert!(busy.contains(&number.to_string()), "{busy}");
        drop(taken);
        let twice = with(Network::User, &[format!("{number}:80"), format!("{number}:81")]);
        assert!(twice.contains(&number.to_string()), "{twice}");
        let absent = with(Network::Tap("no-such-tap".into()), &[]);
        assert!(absent.contains("no-such-tap"), "{absent}");
    }

    #[test]
    fn impossible_machines_are_refused() {
        let world = World::new();
        let config = |cpus, memory| Config {
            cpus,
            memory,
            ..world.config()
        };
        let refused = |config| world.refused(&world.launch().config(config));
        assert!(refused(config(Some(200), None)).contains("CPUs"));
        assert!(refused(config(None, Some(1 << 50))).contains("memory"));
        let kernel = |path: &Path| Config {
            kernel: Some(path.into()),
            ..config(None, None)
        };
        assert!(refused(kernel("/no/such/kernel".as_ref())).contains("/no/such/kernel"));
        assert!(refused(kernel(&world.image)).contains("neither ELF nor bzImage"));
    }
}
