//! Other virtual machine monitors, each in its best documented configuration: same kernel, initramfs, root
//! disk, RAM and CPUs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

/// A monitor that takes part when it is on PATH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// `qemu-system-x86_64 -M microvm`
    Qemu,
    /// Firecracker
    Firecracker,
    /// Cloud Hypervisor
    CloudHypervisor,
    /// crosvm
    Crosvm,
}

/// What runs a peer's guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// Hardware.
    Kvm,
    /// QEMU's translator, where Kiln uses its processor in software.
    Tcg,
}

impl Accel {
    /// As a word.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }
}

/// The machine that a peer is to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Raw root disk, writable.
    pub root: PathBuf,
    /// RAM in bytes.
    pub memory: u64,
    /// Number of processors.
    pub cpus: u32,
    /// The kernel command line without what a monitor adds for itself.
    pub command_line: String,
    /// What runs the guest.
    pub accel: Accel,
    /// Frequency of the host's time stamp counter in kHz, if known.
    pub tsc_khz: Option<u64>,
}

/// How a peer is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Arguments after the program's name.
    pub arguments: Vec<OsString>,
    /// A file that has to be there, and its content.
    pub file: Option<(PathBuf, String)>,
}

impl Peer {
    /// All of them.
    pub const ALL: [Peer; 4] = [Peer::Qemu, Peer::Firecracker, Peer::CloudHypervisor, Peer::Crosvm];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Peer> {
        match name {
            "qemu" => Some(Peer::Qemu),
            "firecracker" => Some(Peer::Firecracker),
            "cloud-hypervisor" => Some(Peer::CloudHypervisor),
            "crosvm" => Some(Peer::Crosvm),
            _ => None,
        }
    }

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Peer::Qemu => "qemu-system-x86_64",
            Peer::Firecracker => "firecracker",
            Peer::CloudHypervisor => "cloud-hypervisor",
            Peer::Crosvm => "crosvm",
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Qemu => "qemu-microvm",
            other => other.program(),
        }
    }

    /// Whether it can run a guest with `accel`: only QEMU has a translator.
    pub fn supports(self, accel: Accel) -> bool {
        accel == Accel::Kvm || self == Peer::Qemu
    }

    /// Whether the monitor ends when the guest powers off. Firecracker has no power button: its guests halt.
    pub fn ends_with_guest(self) -> bool {
        self != Peer::Firecracker
    }

    /// Whether its guests find their devices on PCI alone, by the driver `virtio_pci`.
    pub fn has_pci(self) -> bool {
        matches!(self, Peer::CloudHypervisor | Peer::Crosvm)
    }

    /// The program on PATH.
    pub fn find(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|directory| directory.join(self.program()))
            .find(|file| file.is_file())
    }

    /// The first line of the program's version output.
    pub fn version(program: &Path) -> Option<String> {
        let output = Command::new(program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .map(str::trim)
            .find(|line| !line.is_empty())
            .map(str::to_owned)
    }

    /// The command line for `machine`. `scratch` is a directory for files of this launch.
    pub fn invocation(self, machine: &Machine, scratch: &Path) -> Invocation {
        let plain = |arguments| Invocation {
            arguments,
            file: None,
        };
        match self {
            Peer::Qemu => plain(qemu(machine)),
            Peer::Firecracker => firecracker(machine, &scratch.join("firecracker.json")),
            Peer::CloudHypervisor => plain(cloud_hypervisor(machine)),
            Peer::Crosvm => plain(crosvm(machine)),
        }
    }
}

/// Arguments from words and paths.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { vec![$(OsString::from($argument)),*] };
}

fn mebibytes(machine: &Machine) -> u64 {
    machine.memory >> 20
}

/// QEMU's documentation of microvm (docs/system/i386/microvm.rst), "Running a microvm-based VM": neither PIT,
/// PIC nor RTC where KVM's clock stands in for them. The option ROMs stay, because one of them starts an ELF
/// kernel: with `x-option-roms=off` QEMU 10.0 prints nothing. ACPI stays on: Debian's kernel finds
/// virtio-mmio devices by it alone. The guest prints nothing but the marker, so the serial port costs
/// nothing.
fn qemu(machine: &Machine) -> Vec<OsString> {
    let mut words = machine.command_line.clone();
    let (platform, cpu) = match machine.accel {
        Accel::Kvm => ("microvm,accel=kvm,acpi=on,pit=off,pic=off,rtc=off", "host"),
        Accel::Tcg => {
            // Without ACPI's timer and KVM's clock Linux has nothing to calibrate its time stamp counter by
            // and waits without end.
            if let Some(khz) = machine.tsc_khz {
                words = ami::command_line::join([words.as_str(), &format!("tsc_early_khz={khz}")]);
            }
            ("microvm,accel=tcg,acpi=on,rtc=off", "max")
        }
    };
    // A comma in a path is doubled for QEMU's option parser.
    let root = machine.root.display().to_string().replace(',', ",,");
    arguments![
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-M",
        platform,
        "-cpu",
        cpu,
        "-m",
        format!("{}M", mebibytes(machine)),
        "-smp",
        machine.cpus.to_string(),
        "-kernel",
        &machine.kernel,
        "-initrd",
        &machine.initramfs,
        "-append",
        words,
        "-drive",
        format!("id=root,if=none,format=raw,file={root}"),
        "-device",
        "virtio-blk-device,drive=root",
        "-device",
        "virtio-rng-device",
        "-serial",
        "stdio",
    ]
}

/// Firecracker's documentation (docs/getting-started.md, docs/api_requests/block-io-engine.md): configuration
/// from a file, no API socket, io_uring for the disk. `reboot=k` is its own recommendation.
fn firecracker(machine: &Machine, file: &Path) -> Invocation {
    let configuration = json!({
        "boot-source": {
            "kernel_image_path": machine.kernel,
            "initrd_path": machine.initramfs,
            "boot_args": ami::command_line::join([machine.command_line.as_str(), "reboot=k"]),
        },
        "drives": [{
            "drive_id": "root",
            "path_on_host": machine.root,
            "is_root_device": false,
            "is_read_only": false,
            "io_engine": "Async",
        }],
        "machine-config": { "vcpu_count": machine.cpus, "mem_size_mib": mebibytes(machine) },
        "entropy": {},
    });
    Invocation {
        arguments: arguments!["--no-api", "--config-file", file],
        file: Some((file.into(), configuration.to_string())),
    }
}

/// Cloud Hypervisor's README, "Booting Linux: direct kernel boot".
fn cloud_hypervisor(machine: &Machine) -> Vec<OsString> {
    arguments![
        "--kernel",
        &machine.kernel,
        "--initramfs",
        &machine.initramfs,
        "--cmdline",
        &machine.command_line,
        "--disk",
        format!("path={}", machine.root.display()),
        "--cpus",
        format!("boot={}", machine.cpus),
        "--memory",
        format!("size={}M", mebibytes(machine)),
        "--rng",
        "src=/dev/urandom",
        "--serial",
        "tty",
        "--console",
        "off",
    ]
}

/// The crosvm book, "Running crosvm: example usage".
fn crosvm(machine: &Machine) -> Vec<OsString> {
    arguments![
        "run",
        "--disable-sandbox",
        "--mem",
        mebibytes(machine).to_string(),
        "--cpus",
        machine.cpus.to_string(),
        "--initrd",
        &machine.initramfs,
        "--block",
        format!("path={}", machine.root.display()),
        "--serial",
        "type=stdout,hardware=serial,num=1",
        "--params",
        &machine.command_line,
        &machine.kernel,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(accel: Accel) -> Machine {
        Machine {
            kernel: "/k".into(),
            initramfs: "/i".into(),
            root: "/r,1".into(),
            memory: 256 << 20,
            cpus: 2,
            command_line: "quiet console=ttyS0".into(),
            accel,
            tsc_khz: Some(2_400_000),
        }
    }

    fn words(peer: Peer, accel: Accel) -> String {
        let invocation = peer.invocation(&machine(accel), Path::new("/s"));
        let words: Vec<_> = invocation.arguments.iter().map(|a| a.to_str().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn every_peer_gets_the_same_machine() {
        for peer in [Peer::Qemu, Peer::CloudHypervisor, Peer::Crosvm] {
            let words = words(peer, Accel::Kvm);
            for part in ["/k", "/i", "/r,", "256", "2", "quiet console=ttyS0"] {
                assert!(words.contains(part), "{peer:?}: {part} in {words}");
            }
        }
    }

    #[test]
    fn qemu_is_a_microvm_whose_clock_suits_what_runs_it() {
        let kvm = words(Peer::Qemu, Accel::Kvm);
        assert!(kvm.contains("-M microvm,accel=kvm,acpi=on,pit=off,pic=off,rtc=off -cpu host"));
        assert!(!kvm.contains("tsc_early_khz"));
        let tcg = words(Peer::Qemu, Accel::Tcg);
        assert!(tcg.contains("accel=tcg"));
        assert!(tcg.contains("quiet console=ttyS0 tsc_early_khz=2400000"));
        assert!(tcg.contains("file=/r,,1"));
    }

    #[test]
    fn firecracker_is_configured_by_a_file() {
        let invocation = Peer::Firecracker.invocation(&machine(Accel::Kvm), Path::new("/s"));
        assert_eq!(
            invocation.arguments,
            ["--no-api", "--config-file", "/s/firecracker.json"]
        );
        let (path, text) = invocation.file.unwrap();
        assert_eq!(path, Path::new("/s/firecracker.json"));
        let configuration: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(configuration["boot-source"]["kernel_image_path"], "/k");
        assert_eq!(configuration["boot-source"]["initrd_path"], "/i");
        assert_eq!(
            configuration["boot-source"]["boot_args"],
            "quiet console=ttyS0 reboot=k"
        );
        assert_eq!(configuration["drives"][0]["path_on_host"], "/r,1");
        assert_eq!(configuration["machine-config"]["vcpu_count"], 2);
        assert_eq!(configuration["machine-config"]["mem_size_mib"], 256);
    }

    #[test]
    fn only_qemu_runs_without_kvm() {
        let able: Vec<_> = Peer::ALL
            .into_iter()
            .filter(|peer| peer.supports(Accel::Tcg))
            .collect();
        assert_eq!(able, [Peer::Qemu]);
        assert!(Peer::ALL.into_iter().all(|peer| peer.supports(Accel::Kvm)));
    }
}
