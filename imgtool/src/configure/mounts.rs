//! What programs in the root find mounted: harmless devices, processes, places for temporary files.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ami::Architecture;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::failure::Failure;
use super::inside;

const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("ptmx", "pts/ptmx"),
    ("stderr", "fd/2"),
    ("stdin", "fd/0"),
    ("stdout", "fd/1"),
];
const NONE: Option<&str> = None;

/// The mounts below a root; they go when this is dropped, so that the root can be removed.
pub struct Mounts {
    /// Where, in the order of mounting.
    places: Vec<PathBuf>,
}

/// Keeps the root in memory if it fits with room to spare: dpkg waits for the disk after each package,
/// thousands of times. `bytes` is the size of its files. Says whether it did.
pub fn root_in_memory(root: &Path, bytes: u64) -> bool {
    // Blocks of small files, caches of maintainer scripts; the other half stays for everybody else.
    let needed = bytes.saturating_mul(2) + (256 << 20);
    if available_memory().is_none_or(|available| available / 2 < needed) {
        return false;
    }
    let options = format!("mode=755,size={needed}");
    mount(
        Some("tmpfs"),
        root,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .is_ok()
}

/// `MemAvailable` in bytes.
fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Makes the mounts of this process its own: nothing that it mounts reaches the host.
pub fn make_private() -> Result<(), Failure> {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    try_mount("mount tree", NONE, Path::new("/"), NONE, flags, NONE)
}

impl Mounts {
    /// Mounts everything. `debs` becomes visible as `/run/packages`.
    pub fn new(root: &Path, debs: Option<&Path>) -> Result<Self, Failure> {
        let mut mounts = Self { places: Vec::new() };
        let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let mut tmpfs = |name, mode| -> Result<PathBuf, Failure> {
            let place = inside::directory(root, name).map_err(|e| Failure::io(&root.join(name), &e))?;
            try_mount(name, Some("tmpfs"), &place, Some("tmpfs"), harmless, Some(mode))?;
            mounts.places.push(place.clone());
            Ok(place)
        };
        let run = tmpfs("run", "mode=755")?;
        tmpfs("tmp", "mode=1777")?;
        let dev = tmpfs("dev", "mode=755")?;
        fill_dev(&dev)?;
        mounts.mount_proc(root)?;
        if let Some(debs) = debs {
            let place = run.join("packages");
            fs::create_dir(&place).map_err(Failure::other)?;
            try_mount("packages", Some(debs), &place, NONE, MsFlags::MS_BIND, NONE)?;
            mounts.places.push(place);
        }
        Ok(mounts)
    }

    /// In a container with parts of /proc hidden the kernel refuses a new one; the container's own then
    /// serves.
    fn mount_proc(&mut self, root: &Path) -> Result<(), Failure> {
        let proc = inside::directory(root, "proc").map_err(|e| Failure::io(&root.join("proc"), &e))?;
        self.places.push(proc.clone());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if mount(Some("proc"), &proc, Some("proc"), flags, NONE).is_ok() {
            return Ok(());
        }
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        try_mount("proc", Some(Path::new("/proc")), &proc, NONE, bind, NONE)
    }
}

fn fill_dev(dev: &Path) -> Result<(), Failure> {
    for name in DEVICES {
        let (host, place) = (Path::new("/dev").join(name), dev.join(name));
        File::create(&place).map_err(Failure::other)?;
        try_mount(name, Some(&*host), &place, NONE, MsFlags::MS_BIND, NONE)?;
    }
    for (name, target) in LINKS {
        symlink(target, dev.join(name)).map_err(Failure::other)?;
    }
    fs::create_dir(dev.join("shm")).map_err(Failure::other)?;
    let pts = dev.join("pts");
    fs::create_dir(&pts).map_err(Failure::other)?;
    let options = Some("newinstance,ptmxmode=0666,mode=620");
    // Few scripts need a terminal; a container that forbids it shall not fail the build.
    let _ = mount(
        Some("devpts"),
        &pts,
        Some("devpts"),
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        options,
    );
    Ok(())
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for place in self.places.iter().rev() {
            // What stays mounted is removed with the mount namespace.
            let _ = umount2(place, MntFlags::MNT_DETACH);
        }
    }
}

fn try_mount<S: nix::NixPath + ?Sized>(
    what: &str,
    source: Option<&S>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), Failure> {
    mount(source, target, kind, flags, data).map_err(|e| {
        let what = format!("mount {what} at {}", target.display());
        Failure::Sandbox {
            what,
            why: e.to_string(),
        }
    })
}

/// Makes programs of a foreign architecture run: registers QEMU as their interpreter in this user namespace's
/// own binfmt_misc (Linux 6.7). On older kernels the host's registration, if there is one, has to do.
pub fn enable_foreign(arch: Architecture, place: &Path) -> Result<(), Failure> {
    let (qemu, magic, mask) = match arch {
        Architecture::Arm64 => ("/usr/bin/qemu-aarch64-static", elf_magic(2, 0xb7), ELF_MASK),
        Architecture::X86_64 => ("/usr/bin/qemu-x86_64-static", elf_magic(2, 0x3e), ELF_MASK),
        Architecture::I386 => ("/usr/bin/qemu-i386-static", elf_magic(1, 0x03), ELF_MASK),
    };
    let foreign = |why: String| Failure::Foreign { arch, why };
    let emulator = Path::new(qemu);
    fs::create_dir_all(place).map_err(Failure::other)?;
    let none = MsFlags::empty();
    if mount(Some("binfmt_misc"), place, Some("binfmt_misc"), none, NONE).is_err() {
        return Ok(());
    }
    if !emulator.exists() {
        return Err(foreign(format!("there is no {qemu}")));
    }
    let escape = |bytes: &[u8]| bytes.iter().map(|b| format!("\\x{b:02x}")).collect::<String>();
    // F opens the interpreter now, so that it is found from inside the root.
    let line = format!(
        ":kiln-{}:M::{}:{}:{qemu}:F",
        arch.debian(),
        escape(&magic),
        escape(&mask)
    );
    fs::write(place.join("register"), line).map_err(|e| foreign(e.to_string()))
}

/// The first bytes of a little-endian ELF program of a class (1 of 32 bits, 2 of 64) for a machine.
fn elf_magic(class: u8, machine: u8) -> [u8; 20] {
    [
        0x7f, b'E', b'L', b'F', class, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, machine, 0,
    ]
}

/// The operating system's name does not matter, and a program may be position-independent (type 3).
const ELF_MASK: [u8; 20] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0xff,
    0xff, 0xff,
];
