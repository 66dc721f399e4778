//! What a launch would be refused for, found without launching anything: `run --dry-run`.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::assemble::{choice, part_or};
use super::image::{Image, runnable};
use super::per_run::PerRun;
use super::record::{Record, Volume, VolumeKind};
use super::store::Store;
use super::{Error, Result, network};
use machine::accel;
use machine::block::raw::RawFile;
use machine::block::volume;

/// Checks the first instance of a launch, whose record would be `record`.
///
/// # Errors
/// The reason for which the launch would be refused.
pub fn check(store: &Store, image: &Image, record: &Record, per_run: &PerRun) -> Result<()> {
    runnable(image)?;
    if let Some(name) = &record.name {
        store.check_name(name)?;
    }
    machine_exists(store, image, record, per_run)?;
    for volume in &record.volumes {
        volume_fits(volume, image)?;
    }
    network::check(record)
}

/// Processors, memory, accelerator and what boots.
fn machine_exists(store: &Store, image: &Image, record: &Record, per_run: &PerRun) -> Result<()> {
    let config = &record.config;
    let architecture = image.manifest().architecture;
    let cpus = config.cpus.unwrap_or(image.manifest().default_cpus);
    let memory = config.memory.unwrap_or(image.manifest().default_memory);
    let failed = |error: machine::Error| Error::Machine(error.to_string());
    let repeatable = per_run.turn().is_kept();
    machine::check_size(
        architecture,
        cpus.try_into().unwrap_or(u8::MAX),
        memory,
        repeatable,
    )
    .map_err(failed)?;
    let chosen = if repeatable {
        accel::choose_repeatable(choice(config.accel), architecture, None)
    } else {
        accel::choose(
            choice(config.accel),
            architecture,
            store.home().kvm_verdict().as_deref(),
        )
    };
    chosen.map_err(|error| failed(error.into()))?;
    part_or(config.kernel.as_deref(), || image.kernel())?;
    part_or(config.initrd.as_deref(), || image.initramfs())?;
    per_run.check(&config.limits)
}

/// Whether the volume can be made with its size, or is there.
fn volume_fits(volume: &Volume, image: &Image) -> Result<()> {
    let path = &volume.path;
    let failed = |source| {
        Error::Volume(volume::Error::Io {
            path: path.clone(),
            action: "created",
            source,
        })
    };
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

/// Tries the size with a file without a name, in the directory or the one that it would be made in. Where there are no such files,
/// the launch will show it.
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
    use super::super::home::Home;
    use super::super::launch::{Launch, RootCopy};
    use super::super::network::Network;
    use super::super::record::{Accel, Config};
    use super::super::test_image;
    use super::*;

    struct World {
        _dir: tempfile::TempDir,
        store: Store,
        image: std::path::PathBuf,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::new(Home::at(dir.path()));
            let image = test_image::write(dir.path(), "hello", 5);
            World {
                _dir: dir,
                store,
                image,
            }
        }

        fn launch(&self) -> Launch {
            let config = Config {
                accel: Accel::Soft,
                ..Config::default()
            };
            Launch::new(&self.store, Image::open(&self.image).unwrap()).config(config)
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
    fn names_that_are_taken_or_none_are_refused() {
        let world = World::new();
        let launch = world.launch().name(Some("web".into()));
        let _held = launch.prepare(0).unwrap();
        assert!(world.refused(&launch).contains("belongs to"));
        let launch = world.launch().name(Some("../x".into()));
        assert!(world.refused(&launch).contains("not a valid name"));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let world = World::new();
        let small = world.launch().root(Some(1 << 20), RootCopy::Lazy);
        assert!(world.refused(&small).contains("smaller than"));
        // The largest size is the file system's business; this one is none's. The directory is not there yet.
        let path = world.store.home().instances().join("i-0/root.vol");
        size_fits(&path, 1 << 30).unwrap();
        size_fits(&path, u64::MAX).unwrap_err();
    }

    #[test]
    fn ports_and_devices_that_are_not_to_be_had_are_refused() {
        let world = World::new();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = taken.local_addr().unwrap().port();
        let with = |network: Network, ports: &[String]| {
            let ports = ports.iter().map(|port| port.parse().unwrap()).collect();
            let config = Config {
                accel: Accel::Soft,
                network,
                ports,
                ..Config::default()
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
    fn machines_that_cannot_be_are_refused() {
        let world = World::new();
        let config = |cpus, memory| Config {
            accel: Accel::Soft,
            cpus,
            memory,
            ..Config::default()
        };
        let refused = |config| world.refused(&world.launch().config(config));
        assert!(refused(config(Some(200), None)).contains("CPUs"));
        assert!(refused(config(None, Some(1 << 50))).contains("memory"));
        let kernel = Config {
            kernel: Some("/no/such/kernel".into()),
            ..config(None, None)
        };
        assert!(refused(kernel).contains("/no/such/kernel"));
    }
}
