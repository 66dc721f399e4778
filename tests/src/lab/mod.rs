//! The lab: a host with genuine virtualization extensions, emulated by QEMU, on any machine.
//!
//! QEMU's software emulation knows AMD-V with nested paging and, for Arm, EL2. A Kiln image
//! (`tests/lab/host.toml`) boots on it, loads KVM, and serves commands over virtio-serial ports: what a
//! command prints and how it ends comes back as if it had run here. The programs under test and the images
//! lie on a second disk, mounted at `/work`.

mod payload;
mod qemu;
mod session;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::dist::{Dist, Profile};

pub use session::{Output, Session};

/// The recipe of the lab's host.
const HOST_RECIPE: &str = "tests/lab/host.toml";

/// How long one command may take before the lab is given up: emulated guests in an emulated host are slow.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// A lab that is ready to boot.
#[derive(Debug)]
pub struct Lab {
    arch: Arch,
    profile: Profile,
    dir: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    root: PathBuf,
    command_line: String,
}

impl Lab {
    /// Why there can be no lab for `arch` here, if so. The words name what is missing.
    pub fn missing(arch: Arch, profile: Profile) -> Option<String> {
        let program = qemu::program(arch);
        let found = Command::new(program)
            .arg("--version")
            .output()
            .is_ok_and(|output| output.status.success());
        if !found {
            return Some(format!("{program} is not installed"));
        }
        let dist = Dist::at(arch, profile);
        (!dist.is_built()).then(|| format!("there are no programs for {arch} in {}", dist.dir().display()))
    }

    /// Builds what the lab needs and does not have yet: the programs (for this machine's architecture), the
    /// host image and the hello image.
    pub fn prepare(arch: Arch, profile: Profile) -> Result<Lab> {
        let host = Dist::build(profile)?;
        let dist = if arch == Arch::host()? {
            host.clone()
        } else {
            Dist::at(arch, profile)
        };
        if !dist.is_built() {
            bail!("there are no programs for {arch} yet; try: cargo xtask cross {arch}");
        }
        dist.image("examples/hello.toml")?;
        Lab::with_host_image(arch, profile, &host, &dist.image(HOST_RECIPE)?)
    }

    /// The same, prepared once for all threads of this process: what one boots, another must not replace.
    pub fn shared(arch: Arch, profile: Profile) -> Result<Arc<Lab>> {
        static PREPARED: Mutex<Vec<Arc<Lab>>> = Mutex::new(Vec::new());
        let mut prepared = PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lab) = prepared
            .iter()
            .find(|lab| (lab.arch, lab.profile) == (arch, profile))
        {
            return Ok(Arc::clone(lab));
        }
        let lab = Arc::new(Lab::prepare(arch, profile)?);
        prepared.push(Arc::clone(&lab));
        Ok(lab)
    }

    fn with_host_image(arch: Arch, profile: Profile, host: &Dist, image: &Path) -> Result<Lab> {
        let dir = profile.dir().join("lab").join(arch.to_string());
        fs::create_dir_all(&dir).with_context(|| format!("{} could not be made", dir.display()))?;
        let part = |name: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            if !is_newer(&path, image) {
                let _ = fs::remove_file(&path);
                let mut extract = Command::new(host.imgtool()?);
                extract
                    .arg("extract")
                    .arg(image)
                    .args(["--part", name, "-o"])
                    .arg(&path);
                let status = extract.status().context("imgtool could not be started")?;
                if !status.success() {
                    bail!("imgtool could not extract {name} from {}", image.display());
                }
            }
            Ok(path)
        };
        Ok(Lab {
            arch,
            profile,
            kernel: part("kernel")?,
            initramfs: part("initramfs")?,
            root: part("root")?,
            command_line: format!(
                "console={} quiet loglevel=4 mitigations=off{}",
                qemu::console(arch),
                measuring(profile)
            ),
            dir,
        })
    }

    /// Boots the host and returns when it takes commands.
    pub fn start(&self) -> Result<Session> {
        Session::start(self)
    }

    /// Boots the host, runs one command with its output going to ours, and returns its exit status.
    pub fn run_attached(&self, command: &[String]) -> Result<u8> {
        let line = command
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(" ");
        let mut session = self.start()?;
        let status = session.run_into(&line, Duration::MAX, &mut io::stdout(), &mut io::stderr())?;
        session.stop();
        Ok(status)
    }

    /// Boots the host with its console on this terminal.
    pub fn shell(&self) -> Result<u8> {
        let scratch = tempfile::tempdir().context("no temporary folder could be made")?;
        let payload = payload::build(self.arch, self.profile, scratch.path())?;
        let status = qemu::command(self, &payload)
            .args(["-serial", "mon:stdio"])
            .status();
        let status = status.context("QEMU could not be started")?;
        Ok(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(u8::MAX))
    }
}

/// A parameter of the kernel of a lab whose launches are measured.
///
/// QEMU keeps the translation of each page of code, and a store into such a page discards it. The pages that a
/// guest of the lab leaves hold its kernel's code, so the launch that gets them pays for the guest before it: the
/// same launch took 1.8 or 3.6 s, when several monitors alternated. On hardware there is no such cost. Pages that
/// are cleared when they are freed cost the launch that frees them, after its last event.
fn measuring(profile: Profile) -> &'static str {
    match profile {
        Profile::Release => " init_on_free=1",
        Profile::Dev | Profile::Launch => "",
    }
}

/// Whether `path` exists and was written after `than`.
fn is_newer(path: &Path, than: &Path) -> bool {
    let written = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    matches!((written(path), written(than)), (Some(this), Some(that)) if this > that)
}

/// `word` as one word of a shell command on one line.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut quoted = String::from("$'");
    for c in word.chars() {
        match c {
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\'' | '\\' => quoted.extend(['\\', c]),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word_on_one_line() {
        for word in [
            "",
            "plain",
            "two words",
            "it's",
            "back\\slash",
            "line\nbreak",
            "$HOME `x` \"q\" *",
        ] {
            let quoted = quote(word);
            assert!(!quoted.contains('\n'), "{quoted}");
            let shell = Command::new("bash")
                .arg("-c")
                .arg(format!("printf %s {quoted}"))
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(shell.stdout).unwrap(), word);
        }
    }
}
