//! `doctor`: what this host offers, what it lacks, and what to do about it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::stream::{Unwritten, line};
use super::{Context, Status, output};
use instance::store::home::create_private;
use machine::accel::{Accel, Measured, Support, choose, measure, soft, support};
use machine::arch::Architecture;
use machine::block::volume::{Base, Error as VolumeError, Volume};
use machine::sandbox::{self, Offer};

/// Check what this host offers for running instances
#[derive(Debug, Args)]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a finding means for running instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Instances run, but slower or with less.
    Fair,
    /// Instances cannot run.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    advice: Option<String>,
}

impl Finding {
    fn new(what: &'static str, verdict: Verdict, found: impl Into<String>) -> Finding {
        Finding {
            what,
            verdict,
            found: found.into(),
            advice: None,
        }
    }

    fn advice(self, advice: impl Into<String>) -> Finding {
        Finding {
            advice: Some(advice.into()),
            ..self
        }
    }
}

impl Doctor {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let mut findings = vec![
            host(),
            kvm_device(),
            accelerator(context.home().kvm_verdict().as_deref()),
        ];
        findings.extend(measure().into_iter().map(speed));
        findings.push(direct());
        let remembered = context.home().kvm_verdict();
        findings.extend(support(remembered.as_deref()).into_iter().map(images));
        findings.extend([
            directory("instances", &context.home().instances()),
            volumes(&context.home().instances()),
            directory("images", &context.home().images()),
            tun(),
        ]);
        findings.extend(confinement());
        if self.json {
            output::json(&findings)?;
        } else {
            findings.iter().try_for_each(print)?;
        }
        let bad = findings.iter().any(|f| f.verdict == Verdict::Bad);
        Ok(if bad { Status::VMM_FAILED } else { Status::OK })
    }
}

fn print(finding: &Finding) -> Result<(), Unwritten> {
    let style = output::Style::of(&io::stdout());
    let mark = match finding.verdict {
        Verdict::Good => style.good("good"),
        Verdict::Fair => style.fair("fair"),
        Verdict::Bad => style.bad("bad "),
    };
    line(format_args!("{mark}  {:<12} {}", finding.what, finding.found))?;
    if let Some(advice) = &finding.advice {
        line(format_args!("{:>18} {} {advice}", "", style.dim("try:")))?;
    }
    Ok(())
}

/// What runs here.
fn host() -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(|_| "unknown".into());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = memory_available().map_or_else(|| "unknown".into(), output::size);
    let found = format!(
        "Linux {} on {}, {cpus} processors, {memory} of memory available",
        release.trim(),
        std::env::consts::ARCH
    );
    Finding::new("host", Verdict::Good, found)
}

fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

/// Whether `/dev/kvm` is there and may be opened.
fn kvm_device() -> Finding {
    const PATH: &str = "/dev/kvm";
    let fair = |found: String| Finding::new("/dev/kvm", Verdict::Fair, found);
    match OpenOptions::new().read(true).write(true).open(PATH) {
        Ok(_) => Finding::new("/dev/kvm", Verdict::Good, "is there and can be opened"),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let host = Architecture::host().unwrap_or(Architecture::X86_64);
            fair("is not there".into()).advice(absent(host))
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let group = fs::metadata(PATH).map_or(0, |m| m.gid());
            fair(format!("is there, but not for you (it belongs to group {group})"))
                .advice("sudo usermod -aG kvm $USER, then log in again")
        }
        Err(e) => fair(format!("cannot be opened: {e}")),
    }
}

/// How a host of architecture `host` comes to a `/dev/kvm`.
fn absent(host: Architecture) -> &'static str {
    match host {
        Architecture::X86_64 | Architecture::I386 => {
            "on hardware, enable virtualization in the firmware and load kvm_intel or kvm_amd; in a virtual \
             machine, ask for nested virtualization; without it the processor in software is used"
        }
        // KVM is part of the arm64 kernel, and needs the exception level that it was booted at (booting.rst).
        Architecture::Arm64 => {
            "on hardware, have the firmware boot the kernel at EL2; in a virtual machine, ask for nested \
             virtualization; without it x86_64 and i386 images run on the processor in software, and arm64 \
             images do not run"
        }
    }
}

/// What `--accel auto` would choose, and why.
fn accelerator(remembered: Option<&Path>) -> Finding {
    let native = Architecture::host().unwrap_or(Architecture::X86_64);
    match choose(Accel::Auto, native, remembered) {
        Ok(chosen) => {
            let verdict = if chosen.name() == "kvm" {
                Verdict::Good
            } else {
                Verdict::Fair
            };
            Finding::new(
                "accelerator",
                verdict,
                format!("{}: {}", chosen.name(), chosen.why),
            )
        }
        Err(error) => Finding::new(
            "accelerator",
            Verdict::Fair,
            format!("soft, for x86_64 and i386 images only: {error}"),
        ),
    }
}

/// Whether images of an architecture run on an accelerator. That one does not is no defect of the host while
/// another does.
fn images(support: Support) -> Finding {
    let what = match (support.architecture, support.accelerator) {
        (Architecture::X86_64, "kvm") => "x86_64 kvm",
        (Architecture::X86_64, _) => "x86_64 soft",
        (Architecture::Arm64, "kvm") => "arm64 kvm",
        (Architecture::Arm64, _) => "arm64 soft",
        (Architecture::I386, "kvm") => "i386 kvm",
        (Architecture::I386, _) => "i386 soft",
    };
    match support.result {
        Ok(why) => Finding::new(what, Verdict::Good, format!("images run: {why}")),
        Err(why) => Finding::new(what, Verdict::Fair, format!("images do not run: {why}")),
    }
}

/// How fast an accelerator is, measured now.
fn speed(measured: Measured) -> Finding {
    let what = match measured.name {
        "kvm" => "kvm speed",
        _ => "soft speed",
    };
    match measured.mips {
        Ok(mips) => Finding::new(
            what,
            Verdict::Good,
            format!("{mips:.0} million instructions per second"),
        ),
        Err(why) => Finding::new(what, Verdict::Fair, format!("not measured: {why}")),
    }
}

/// Whether programs of a guest can run on the host's processor without KVM.
fn direct() -> Finding {
    const WHAT: &str = "direct";
    let interpreted = |why: String| {
        let found = format!("without KVM, programs are interpreted: {why}");
        Finding::new(WHAT, Verdict::Fair, found)
    };
    match soft::try_direct() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => interpreted(error.to_string()),
        Err(error) => interpreted(format!("this host does not let a process drive another: {error}")).advice(
            "in a container, allow ptrace (`--cap-add SYS_PTRACE`, or its seccomp profile); elsewhere, see \
             /proc/sys/kernel/yama/ptrace_scope",
        ),
        Ok(()) if Offer::of_host().files.is_err() => {
            interpreted("a confined process may not drive others where there is no Landlock".into())
        }
        Ok(()) => Finding::new(
            WHAT,
            Verdict::Good,
            "without KVM, programs can run on this processor (`--direct on`)",
        ),
    }
}

/// Whether a directory of ours can be used, and what room it has.
fn directory(what: &'static str, path: &Path) -> Finding {
    let room = create_private(path).map_err(|e| e.to_string()).and_then(|()| {
        let probe = tempfile_in(path).map_err(|e| format!("{} cannot be written to: {e}", path.display()))?;
        fs::remove_file(&probe).map_err(|e| e.to_string())?;
        let stats = nix::sys::statvfs::statvfs(path).map_err(|e| e.to_string())?;
        Ok(stats.blocks_available() as u64 * stats.fragment_size() as u64)
    });
    match room {
        Ok(room) if room < 1 << 30 => {
            let found = format!("{} has only {} left", path.display(), output::size(room));
            Finding::new(what, Verdict::Fair, found)
                .advice("make room, or set XDG_STATE_HOME and XDG_DATA_HOME")
        }
        Ok(room) => Finding::new(
            what,
            Verdict::Good,
            format!("{}, {} free", path.display(), output::size(room)),
        ),
        Err(reason) => Finding::new(what, Verdict::Bad, reason)
            .advice("set XDG_STATE_HOME and XDG_DATA_HOME to directories that you can write to"),
    }
}

fn tempfile_in(directory: &Path) -> io::Result<std::path::PathBuf> {
    let path = directory.join(format!(".doctor-{}", std::process::id()));
    OpenOptions::new().create_new(true).write(true).open(&path)?;
    Ok(path)
}

/// Whether root volumes can be lazy copies where instances are kept.
fn volumes(directory: &Path) -> Finding {
    const WHAT: &str = "lazy volumes";
    let path = directory.join(format!(".doctor-{}.vol", std::process::id()));
    let made = fs::File::open("/dev/null")
        .map_err(|e| e.to_string())
        .and_then(|base| {
            Volume::create(&path, Base::new(base, 0, 0, [0; 32]), 1 << 20).map_err(|error| match error {
                VolumeError::FileSystem { .. } => "this file system cannot hold them".into(),
                other => other.to_string(),
            })
        });
    // Only what was made is there to be removed.
    let _ = fs::remove_file(&path);
    match made {
        Ok(_) => Finding::new(
            WHAT,
            Verdict::Good,
            "a root volume is made in microseconds at any size",
        ),
        Err(reason) => Finding::new(WHAT, Verdict::Fair, reason).advice(
            "launch with --root-copy full, or set XDG_STATE_HOME to a directory on ext4, XFS or Btrfs",
        ),
    }
}

/// Whether tap devices could be used; the user network needs none.
fn tun() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::new(
            "network",
            Verdict::Good,
            "the user network needs nothing; tap devices can be used",
        ),
        Err(e) => {
            let found = format!("the user network needs nothing; no tap devices (/dev/net/tun: {e})");
            Finding::new("network", Verdict::Good, found)
        }
    }
}

/// Which mechanisms of confinement this host offers.
fn confinement() -> [Finding; 3] {
    let offer = Offer::of_host();
    let finding = |what, part: Result<String, String>| match part {
        Ok(found) => Finding::new(what, Verdict::Good, found),
        Err(missing) => Finding::new(what, Verdict::Fair, missing).advice(
            "a kernel that has it; until then guests run confined by the rest, and --sandbox required \
             refuses them",
        ),
    };
    [
        finding("system calls", offer.system_calls),
        finding("files", offer.files),
        finding("own network", sandbox::network_offered()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_architecture_has_its_own_way_to_kvm() {
        let (x86_64, arm64) = (absent(Architecture::X86_64), absent(Architecture::Arm64));
        assert!(
            x86_64.contains("kvm_intel") && !x86_64.contains("EL2"),
            "{x86_64}"
        );
        assert!(arm64.contains("EL2") && !arm64.contains("kvm_intel"), "{arm64}");
    }
}
