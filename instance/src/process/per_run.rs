//! Options of one run of an instance, which are not kept in its record.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Error;
use crate::process::restore::Begin;
use crate::store::limits::Limits;
use machine::accel::Profiling;
use machine::sandbox::Mode;
use machine::virtio::block::IoEngine;
use machine::virtio::determinism::Determinism;
use serde::{Deserialize, Serialize};

/// How the process that runs an instance deals with its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostUse {
    /// How the process is confined.
    pub sandbox: Mode,
    /// How requests of disks get to their files.
    pub disk_engine: DiskEngine,
    /// Whether the guest's programs run on the host's processor.
    pub direct: Direct,
}

/// What is asked of one run of an instance and not kept.
#[derive(Debug, Clone, Default)]
pub struct PerRun {
    /// Where it is reported when each step of the boot was reached.
    pub timing: Option<Timing>,
    /// Whether it is shown how often the guest left its processor up to each step, by device register.
    pub exits: bool,
    /// Whether instructions are time, so that every run is the same.
    pub icount: bool,
    /// How the first run begins; after a reboot the kernel boots.
    pub begin: Begin,
    /// Which devices the machine has.
    pub devices: Devices,
    /// What it takes of this host.
    pub host: HostUse,
    /// Where the processor's profile goes.
    pub profile: Option<Arc<Profiling>>,
    /// Other files that the process writes at the end.
    pub outputs: Vec<PathBuf>,
}

/// Which of an instance's devices its machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Devices {
    /// All of them.
    #[default]
    All,
    /// No vsock, so that the agent is out of reach, and the serial port as the only console.
    Basic,
}

/// Where the steps of a boot are reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// As a table, when the guest has ended.
    Table,
    /// As JSON in this file, with the exits up to each step.
    File(PathBuf),
}

/// How requests of disks get to their files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskEngine {
    /// One after the other in each queue.
    #[default]
    Sync,
    /// Many at once in each queue, through the kernel's io_uring.
    IoUring,
}

/// Whether the guest's programs run on the host's processor where its kernel is interpreted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direct {
    /// They are interpreted as well.
    #[default]
    Off,
    /// They do, or it is said why not.
    On,
    /// They do where the host allows it, and where the guest boots.
    Auto,
}

impl From<DiskEngine> for IoEngine {
    fn from(engine: DiskEngine) -> IoEngine {
        match engine {
            DiskEngine::Sync => IoEngine::Sync,
            DiskEngine::IoUring => IoEngine::IoUring,
        }
    }
}

/// A [`PerRun`] on its way to a process of its own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    timing: Option<Timing>,
    exits: bool,
    icount: bool,
    begin: Begin,
    devices: Devices,
    sandbox: String,
    disk_engine: DiskEngine,
    direct: Direct,
}

impl PerRun {
    /// As JSON, for the process of a detached instance, which runs in another directory.
    ///
    /// # Errors
    /// When the path of a file is not UTF-8, or the current directory is gone.
    pub fn to_json(&self) -> io::Result<String> {
        let PerRun {
            timing,
            exits,
            icount,
            begin,
            devices,
            host:
                HostUse {
                    sandbox,
                    disk_engine,
                    direct,
                },
            profile: _,
            outputs: _,
        } = self;
        let absolute = |timing: &Timing| match timing {
            Timing::Table => Ok(Timing::Table),
            Timing::File(path) => std::path::absolute(path).map(Timing::File),
        };
        let message = Message {
            timing: timing.as_ref().map(absolute).transpose()?,
            exits: *exits,
            icount: *icount,
            begin: *begin,
            devices: *devices,
            sandbox: sandbox.name().to_owned(),
            disk_engine: *disk_engine,
            direct: *direct,
        };
        Ok(serde_json::to_string(&message)?)
    }

    /// What [`to_json`](PerRun::to_json) has written.
    ///
    /// # Errors
    /// In words, when it is something else.
    pub fn from_json(text: &str) -> Result<PerRun, String> {
        let Message {
            timing,
            exits,
            icount,
            begin,
            devices,
            sandbox,
            disk_engine,
            direct,
        } = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let sandbox =
            Mode::named(&sandbox).ok_or_else(|| format!("{sandbox} is no way to confine a process"))?;
        Ok(PerRun {
            timing,
            exits,
            icount,
            begin,
            devices,
            host: HostUse {
                sandbox,
                disk_engine,
                direct,
            },
            ..PerRun::default()
        })
    }

    /// Whether `limits` can be kept in such a run.
    ///
    /// # Errors
    /// When they cannot, and why.
    pub fn check(&self, limits: &Limits) -> Result<(), Error> {
        if self.icount && !limits.none() {
            return Err(Error::CountingWithLimits);
        }
        Ok(())
    }

    /// Whether every run of the machine is the same.
    pub fn determinism(&self) -> Determinism {
        if self.icount {
            Determinism::enabled()
        } else {
            Determinism::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_one_run_round_trip() {
        let sent = PerRun {
            timing: Some(Timing::File("timing.json".into())),
            icount: true,
            begin: Begin::RestoreOnly,
            devices: Devices::Basic,
            host: HostUse {
                sandbox: Mode::Required,
                disk_engine: DiskEngine::IoUring,
                direct: Direct::On,
            },
            ..PerRun::default()
        };
        let arrived = PerRun::from_json(&sent.to_json().unwrap()).unwrap();
        assert_eq!(arrived.host, sent.host);
        let file = Timing::File(std::path::absolute("timing.json").unwrap());
        assert_eq!(arrived.timing, Some(file));
        assert!(arrived.icount && !arrived.exits);
        assert_eq!(arrived.begin, Begin::RestoreOnly);
        assert_eq!(arrived.devices, Devices::Basic);
        assert!(PerRun::from_json("{}").is_err());
        let text = sent.to_json().unwrap().replace("required", "perhaps");
        assert!(PerRun::from_json(&text).unwrap_err().contains("perhaps"));
    }
}
