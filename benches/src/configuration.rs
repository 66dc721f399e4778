//! Configurations: the ways of launching that are compared, and the files that they share.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ami::PartName;

use super::outcome::{ConfigurationInfo, End};
use super::peer::{self, Peer};
use super::{Error, Result};
use instance::images::image::Image;
use instance::images::sparse_copy;

/// The word by which guest-init ends a guest where it would start the image's PID 1.
const STOP: &str = "kiln.stop=init";

/// One way of launching.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Its name, unique in the run.
    pub name: String,
    /// The program that is started.
    pub program: PathBuf,
    /// Its version, as it reports it.
    pub version: Option<String>,
    /// The image's file.
    pub image: PathBuf,
    /// The image's id.
    pub id: String,
    /// Words for the kernel command line.
    pub append: String,
    /// Processors.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// Which monitor.
    pub monitor: Monitor,
}

/// What a configuration launches with.
#[derive(Debug, Clone)]
pub enum Monitor {
    /// `vmm run`.
    Vmm {
        /// Its `--accel`.
        accel: String,
        /// With the devices that peers have: no network, no vsock, no virtio console.
        same_devices: bool,
    },
    /// Another one.
    Peer {
        /// Which.
        peer: Peer,
        /// The machine; its root disk is the one to copy from.
        machine: Box<peer::Machine>,
    },
}

/// A command line and the files that a launch reads, which are dropped from the page cache before a cold one.
#[derive(Debug)]
pub struct Launch {
    /// Arguments after the program.
    pub arguments: Vec<OsString>,
    /// What is read.
    pub reads: Vec<PathBuf>,
    /// Where `vmm` writes its timing.
    pub timing: Option<PathBuf>,
    /// What is removed afterwards.
    pub remove: Vec<PathBuf>,
}

impl Configuration {
    /// The configuration as the outcome has it.
    pub fn describe(&self) -> ConfigurationInfo {
        ConfigurationInfo {
            name: self.name.clone(),
            again_of: None,
            program: self.program.display().to_string(),
            version: self.version.clone(),
            image: self.id.clone(),
            accel: match &self.monitor {
                Monitor::Vmm { accel, .. } => accel.clone(),
                Monitor::Peer { machine, .. } => machine.accel.name().to_owned(),
            },
            append: self.append.clone(),
            cpus: self.cpus,
            memory: self.memory,
            exits: Vec::new(),
            statistics: Vec::new(),
        }
    }

    /// Whether the monitor ends by itself after the end of the boot.
    pub fn ends_itself(&self) -> bool {
        match &self.monitor {
            Monitor::Vmm { .. } => true,
            Monitor::Peer { peer, .. } => peer.ends_with_guest(),
        }
    }

    /// Makes what one launch needs. None of it is part of the time that is measured.
    pub fn prepare(&self, scratch: &Scratch, end: End) -> Result<Launch> {
        match &self.monitor {
            Monitor::Vmm { accel, same_devices } => Ok(self.run_vmm(accel, *same_devices, scratch, end)),
            Monitor::Peer { peer, machine } => run_peer(*peer, machine, scratch),
        }
    }

    fn run_vmm(&self, accel: &str, same_devices: bool, scratch: &Scratch, end: End) -> Launch {
        let timing = scratch.path("timing.json");
        let mut arguments: Vec<OsString> = vec!["run".into(), self.image.clone().into(), "--rm".into()];
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        option("--accel", accel.into());
        option("--cpus", self.cpus.to_string().into());
        option("--memory", format!("{}K", self.memory >> 10).into());
        option("--timing", timing.clone().into());
        if same_devices {
            option("--net", "none".into());
            option("--devices", "basic".into());
        }
        let words = match end {
            End::Init => format!("{} {STOP}", self.append),
            End::Ready | End::Entry | End::FirstRun => self.append.clone(),
        };
        if !words.is_empty() {
            option("--append", words.trim().into());
        }
        if matches!(end, End::Ready | End::FirstRun) {
            // A command ends with the guest. That the agent takes it is what T10 says; T4 is in the same file.
            arguments.extend(["--".into(), "true".into()]);
        }
        Launch {
            arguments,
            reads: vec![self.image.clone()],
            timing: Some(timing.clone()),
            remove: vec![timing],
        }
    }
}

fn run_peer(peer: Peer, machine: &peer::Machine, scratch: &Scratch) -> Result<Launch> {
    // The guest writes to its root disk: each launch gets a fresh one, as an instance of vmm does.
    let root = scratch.path("peer.root");
    remove(&root);
    sparse_copy::copy(&machine.root, &root).map_err(failed("copying the root disk to", &root))?;
    let machine = peer::Machine {
        root: root.clone(),
        ..machine.clone()
    };
    let invocation = peer.invocation(&machine, &scratch.directory);
    let mut files = vec![root.clone()];
    if let Some((path, text)) = invocation.file {
        fs::write(&path, text).map_err(failed("writing", &path))?;
        files.push(path);
    }
    Ok(Launch {
        arguments: invocation.arguments,
        reads: vec![machine.kernel.clone(), machine.initramfs.clone(), root],
        timing: None,
        remove: files,
    })
}

/// The machine that peers get: the parts of `image` as files, the initramfs that of `drivers`, and the command
/// line that `vmm` gives its kernel, without what only `vmm` has devices for.
pub fn peer_machine(
    image: &Image,
    drivers: &Image,
    configuration: (u32, u64, &str),
    accel: peer::Accel,
    scratch: &Scratch,
) -> Result<peer::Machine> {
    let (cpus, memory, append) = configuration;
    let command_line = [
        image.manifest().command_line.as_str(),
        "panic=-1 console=ttyS0",
        append,
        STOP,
    ];
    let initramfs = scratch.part(drivers, PartName::Initramfs)?;
    spare_last_page(&initramfs).map_err(failed("lengthening", &initramfs))?;
    Ok(peer::Machine {
        kernel: scratch.part(image, PartName::Kernel)?,
        initramfs,
        root: scratch.part(image, PartName::Root)?,
        memory,
        cpus,
        command_line: ami::command_line::join(command_line),
        accel,
        tsc_khz: tsc_khz(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
    })
}

/// Lengthens an initramfs by zeros, which kernels skip, until it leaves most of its last page free. QEMU 10.0
/// puts it at the end of a microvm's RAM, page-aligned, where its firmware puts the ACPI tables too, without
/// knowing of each other: an initramfs that ends in the last kilobyte of a page takes the place of FACP and
/// DSDT, and the guest finds no device at all.
fn spare_last_page(initramfs: &Path) -> std::io::Result<()> {
    const PAGE: u64 = 4096;
    const TAIL: u64 = 512;
    let file = fs::OpenOptions::new().write(true).open(initramfs)?;
    let len = file.metadata()?.len();
    match len % PAGE {
        1..=TAIL => Ok(()),
        _ => file.set_len(len.next_multiple_of(PAGE) + TAIL),
    }
}

/// The host's frequency, which its time stamp counter has on all processors of this century at least nearly.
fn tsc_khz(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("cpu MHz"))?;
    let megahertz: f64 = line.split_once(':')?.1.trim().parse().ok()?;
    Some((megahertz * 1000.0) as u64).filter(|&khz| khz > 0)
}

/// A directory for the files of a run, removed in the end.
#[derive(Debug)]
pub struct Scratch {
    directory: PathBuf,
}

impl Scratch {
    /// Makes one below `parent`: where instances are kept, so that root disks of all monitors lie on the same
    /// file system.
    pub fn new(parent: &Path) -> Result<Scratch> {
        let directory = parent.join(format!("bench-{}", std::process::id()));
        instance::store::home::create_private(&directory)?;
        Ok(Scratch { directory })
    }

    /// A file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A part of an image as a file, with holes where it is zero.
    fn part(&self, image: &Image, name: PartName) -> Result<PathBuf> {
        let to = self.path(&format!("{}-{name:?}", image.id()));
        if to.exists() {
            return Ok(to);
        }
        let (offset, length) = image.range(name)?;
        extract(image.path(), offset, length, &to)
            .map_err(failed("extracting a part of the image to", &to))?;
        Ok(to)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about what stays.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn extract(from: &Path, offset: u64, length: u64, to: &Path) -> io::Result<()> {
    const CHUNK: u64 = 64 * 1024;
    let mut source = File::open(from)?;
    source.seek(SeekFrom::Start(offset))?;
    let mut target = File::create_new(to)?;
    target.set_len(length)?;
    let mut chunk = Vec::new();
    let mut left = length;
    while left > 0 {
        chunk.clear();
        (&mut source).take(left.min(CHUNK)).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if chunk.iter().all(|&byte| byte == 0) {
            target.seek(SeekFrom::Current(chunk.len() as i64))?;
        } else {
            target.write_all(&chunk)?;
        }
        left -= chunk.len() as u64;
    }
    target.sync_all()
}

/// Removes a file that may not be there.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A configuration whose program is a shell that runs `script` and takes no notice of its arguments: of
    /// `vmm`, or of a peer.
    pub(crate) fn monitor_script(
        directory: &Path,
        name: &str,
        script: &str,
        peer: Option<Peer>,
    ) -> Configuration {
        use std::os::unix::fs::PermissionsExt;
        let program = directory.join(format!("monitor-{name}"));
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let image = directory.join("x.ami");
        fs::write(&image, "x").unwrap();
        let vmm = Monitor::Vmm {
            accel: "soft".into(),
            same_devices: false,
        };
        let monitor = peer.map_or(vmm, |peer| Monitor::Peer {
            peer,
            machine: Box::new(machine(&image)),
        });
        Configuration {
            name: name.into(),
            program,
            version: None,
            image,
            id: "ami-1".into(),
            append: String::new(),
            cpus: 1,
            memory: 1 << 28,
            monitor,
        }
    }

    /// A machine all of whose files are `file`.
    fn machine(file: &Path) -> peer::Machine {
        peer::Machine {
            kernel: file.into(),
            initramfs: file.into(),
            root: file.into(),
            memory: 1 << 28,
            cpus: 1,
            command_line: "quiet".into(),
            accel: peer::Accel::Kvm,
            tsc_khz: None,
        }
    }

    fn configuration() -> Configuration {
        Configuration {
            name: "vmm soft".into(),
            program: "/bin/vmm".into(),
            version: None,
            image: "/x.ami".into(),
            id: "ami-1".into(),
            append: "a=1".into(),
            cpus: 2,
            memory: 256 << 20,
            monitor: Monitor::Vmm {
                accel: "soft".into(),
                same_devices: false,
            },
        }
    }

    fn words(launch: &Launch) -> String {
        let words: Vec<_> = launch.arguments.iter().map(|a| a.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn vmm_is_asked_to_stop_at_init_or_to_run_a_command() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(directory.path()).unwrap();
        let timing = scratch.path("timing.json");
        let init = configuration().prepare(&scratch, End::Init).unwrap();
        let common = format!(
            "run /x.ami --rm --accel soft --cpus 2 --memory 262144K --timing {}",
            timing.display()
        );
        assert_eq!(words(&init), format!("{common} --append a=1 kiln.stop=init"));
        let ready = configuration().prepare(&scratch, End::Ready).unwrap();
        assert_eq!(words(&ready), format!("{common} --append a=1 -- true"));
        assert_eq!(init.reads, [Path::new("/x.ami")]);
        let reduced = Configuration {
            monitor: Monitor::Vmm {
                accel: "soft".into(),
                same_devices: true,
            },
            ..configuration()
        };
        let reduced = reduced.prepare(&scratch, End::Init).unwrap();
        assert_eq!(
            words(&reduced),
            format!("{common} --net none --devices basic --append a=1 kiln.stop=init")
        );
    }

    #[test]
    fn each_launch_of_a_peer_has_a_fresh_root() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(directory.path()).unwrap();
        let original = directory.path().join("root");
        fs::write(&original, b"fresh").unwrap();
        let machine = machine(&original);
        for _ in 0..2 {
            let launch = run_peer(Peer::Firecracker, &machine, &scratch).unwrap();
            let root = launch.reads.last().unwrap();
            assert_eq!(fs::read(root).unwrap(), b"fresh");
            fs::write(root, b"used").unwrap();
            assert_eq!(launch.remove.len(), 2, "the root and the configuration");
            assert!(launch.remove.iter().all(|file| file.exists()));
        }
    }

    #[test]
    fn an_initramfs_leaves_room_for_tables_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("initramfs");
        for (len, expected) in [
            (0, 512),
            (1, 1),
            (512, 512),
            (513, 4608),
            (4095, 4608),
            (4096, 4608),
        ] {
            fs::write(&path, vec![7; len]).unwrap();
            for _ in 0..2 {
                spare_last_page(&path).unwrap();
                let whole = fs::read(&path).unwrap();
                assert_eq!(whole.len(), expected, "{len}");
                assert!(
                    whole[..len].iter().all(|&byte| byte == 7) && whole[len..].iter().all(|&byte| byte == 0)
                );
            }
        }
    }

    #[test]
    fn a_part_is_extracted_with_its_holes() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let mut whole = vec![7_u8; 10];
        whole.extend(vec![0; 4 << 20]);
        whole.extend(b"end");
        fs::write(&from, &whole).unwrap();
        extract(&from, 10, (4 << 20) + 3, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), whole[10..]);
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20);
        assert!(extract(&from, 10, 5 << 20, &directory.path().join("short")).is_err());
    }

    #[test]
    fn the_tsc_frequency_is_read_from_cpuinfo() {
        assert_eq!(
            tsc_khz("model name\t: x\ncpu MHz\t\t: 2445.432\n"),
            Some(2_445_432)
        );
        assert_eq!(tsc_khz("cpu MHz\t\t: 0.0\n"), None);
        assert_eq!(tsc_khz(""), None);
    }

    #[test]
    fn the_scratch_directory_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(directory.path()).unwrap();
        let path = scratch.path("x");
        fs::write(&path, "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
