//! Where a test runs: on this machine with the software processor, or in a lab with KVM. The tests are the
//! same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::dist::{Dist, Profile, kiln_dir};
use crate::lab::{COMMAND_LIMIT, Lab, Output, Session};

/// What `imgtool inspect --json` says, as far as it matters here.
#[derive(Debug, serde::Deserialize)]
struct Inspected {
    id: String,
}

/// A place with `vmm` and `imgtool` on PATH, images in the current folder, and a state directory of its own.
#[derive(Debug)]
pub enum TestHost {
    /// This machine.
    Here {
        /// XDG directories and HOME; removed at the end.
        home: PathBuf,
        /// The programs.
        dist: Dist,
    },
    /// A lab.
    Lab {
        /// The host's architecture.
        arch: Arch,
        /// Which programs are tried there.
        profile: Profile,
        /// Each thread that runs tests has a host of its own, booted on first use, so that a filtered run
        /// does not boot what it does not need. While a thread's host runs a command, it is not in here.
        hosts: Mutex<HashMap<ThreadId, Session>>,
    },
}

impl TestHost {
    /// This machine, with `home` for everything that the programs write.
    pub fn here(home: PathBuf) -> Result<Arc<TestHost>> {
        Ok(Arc::new(TestHost::Here {
            home,
            dist: Dist::at(Arch::host()?, Profile::Dev),
        }))
    }

    /// A lab for `arch` with the programs of `profile`. Tests that share it share its booted hosts.
    pub fn lab(arch: Arch, profile: Profile) -> Arc<TestHost> {
        Arc::new(TestHost::Lab {
            arch,
            profile,
            hosts: Mutex::default(),
        })
    }

    /// Whether `imgtool` is there: images for a lab of another architecture than this machine's are built on
    /// this machine.
    pub fn has_imgtool(&self) -> bool {
        match self {
            TestHost::Here { .. } => true,
            TestHost::Lab { arch, .. } => Arch::host().is_ok_and(|host| host == *arch),
        }
    }

    /// The id of an image that was built for this host, as `imgtool` on this machine says.
    pub fn image_id(&self, name: &str) -> Result<String> {
        let (arch, profile) = match self {
            TestHost::Here { .. } => (Arch::host()?, Profile::Dev),
            TestHost::Lab { arch, profile, .. } => (*arch, *profile),
        };
        let file = match arch == Arch::host()? {
            true => format!("{name}.ami"),
            false => format!("{name}-{}.ami", arch.debian()),
        };
        let host = Dist::at(Arch::host()?, profile);
        let output = Command::new(host.program("imgtool"))
            .args(["inspect", "--json"])
            .arg(host.images().join(&file))
            .output()
            .context("imgtool could not be started")?;
        let inspected: Inspected =
            serde_json::from_slice(&output.stdout).with_context(|| format!("imgtool inspect {file}"))?;
        Ok(inspected.id)
    }

    /// The accelerator that tests expect here.
    pub fn accelerator(&self) -> &'static str {
        match self {
            TestHost::Here { .. } => "soft",
            TestHost::Lab { .. } => "kvm",
        }
    }

    /// The architecture that guests have.
    pub fn arch(&self) -> Arch {
        match self {
            TestHost::Here { .. } => Arch::X86_64,
            TestHost::Lab { arch, .. } => *arch,
        }
    }

    /// One of our programs, to be started by the caller: on this machine only.
    pub fn command(&self, program: &str) -> Result<Command> {
        match self {
            TestHost::Here { home, dist } => Ok(command_here(
                home,
                dist,
                &dist.program(program).display().to_string(),
            )),
            TestHost::Lab { .. } => bail!("a lab takes whole command lines only"),
        }
    }

    /// Runs a shell command line and returns what it printed.
    pub fn sh(&self, line: &str) -> Result<Output> {
        self.sh_within(line, COMMAND_LIMIT)
    }

    /// The same with another limit.
    pub fn sh_within(&self, line: &str, limit: Duration) -> Result<Output> {
        match self {
            TestHost::Here { home, dist } => run_here(home, dist, line, limit),
            TestHost::Lab { arch, profile, hosts } => {
                let hosts = || hosts.lock().unwrap_or_else(PoisonError::into_inner);
                let this = thread::current().id();
                let idle = hosts().remove(&this);
                let mut session = match idle {
                    Some(session) => session,
                    None => Lab::shared(*arch, *profile)?.start()?,
                };
                // A host that did not answer is not asked again: the next test boots another.
                let output = session.run(line, limit)?;
                hosts().insert(this, session);
                Ok(output)
            }
        }
    }
}

/// `program` with its surroundings.
fn command_here(home: &Path, dist: &Dist, program: &str) -> Command {
    let path = format!(
        "{}:{}:/usr/sbin:/sbin",
        dist.dir().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    let mut command = Command::new(program);
    command
        .current_dir(kiln_dir().join("images"))
        .env("PATH", path)
        .env("HOME", home);
    for (variable, dir) in [
        ("XDG_STATE_HOME", "state"),
        ("XDG_DATA_HOME", "data"),
        ("XDG_RUNTIME_DIR", "run"),
    ] {
        command.env(variable, home.join(dir));
    }
    command
}

fn run_here(home: &Path, dist: &Dist, line: &str, limit: Duration) -> Result<Output> {
    let mut command = command_here(home, dist, "timeout");
    command.args(["--kill-after=5", &limit.as_secs().to_string(), "sh", "-c", line]);
    command.stdin(Stdio::null());
    // Detached instances must not hold our pipes: output goes to files, which end when the command does.
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let status = command
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .status()
        .context("timeout(1)")?;
    let status = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX);
    Ok(Output {
        status,
        stdout: read_all(out)?,
        stderr: read_all(err)?,
    })
}

fn read_all(mut file: std::fs::File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind().context("a temporary file")?;
    file.read_to_end(&mut bytes).context("a temporary file")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
