//! The record of an instance: `instance.json` in its state directory.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::store::id::ReservationId;
use crate::store::limits::Limits;
use crate::store::network::{Network, Port, is_public};
use crate::store::pause::Paused;
use crate::{InstanceId, State, VolumeId};
pub use machine::accel::{Accel, CpuModel};

/// Version of the record's format; a newer one is not guessed at.
pub const FORMAT: u32 = 1;

/// All that outlives the process that runs the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// The instance's id.
    pub id: InstanceId,
    /// The name it was given, unique among instances.
    pub name: Option<String>,
    /// Free key/value pairs.
    pub tags: BTreeMap<String, String>,
    /// Last state written; [`crate::store`] says when it is current.
    pub state: State,
    /// Why it is in this state, in words.
    pub reason: String,
    /// How the last run ended, if one has.
    pub ending: Option<Ending>,
    /// The launch that this instance came from, shared by all of them.
    pub reservation: ReservationId,
    /// Its place in that launch, from 0.
    pub launch_index: u32,
    /// Seconds since 1970 at the launch.
    pub launched: u64,
    /// The process that owns it; meaningful only while the lock is held.
    pub owner: Option<u32>,
    /// Whether the guest's agent has reported itself ready in this run.
    pub ready: bool,
    /// Why it is paused, if it is. Left out if not: an older `vmm` reads the record of an
    /// instance that it can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
    /// Whether it is removed when it stops.
    pub auto_remove: bool,
    /// What it is a copy of.
    pub image: ImageRef,
    /// How its machine is built.
    pub config: Config,
    /// Root volume first, then the others in the guest's order.
    pub volumes: Vec<Volume>,
}

/// The AMI behind an instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// `ami-` and 17 hexadecimal digits.
    pub id: String,
    /// The manifest's name.
    pub name: String,
    /// Where the file was found at launch, absolute.
    pub path: PathBuf,
    /// Whether a hard link of its own is next to the state directory, so that the file cannot be deleted by
    /// others.
    pub linked: bool,
}

/// How the machine is built. `None` means what the AMI's manifest says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The name of the size that was asked for, such as `t3.micro`; `cpus` and `memory` say what it has. Left
    /// out if there is none: an older `vmm` reads the record of an instance that it can run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Virtual processors.
    pub cpus: Option<u32>,
    /// RAM in bytes.
    pub memory: Option<u64>,
    /// `auto`, `kvm` or `soft`.
    pub accel: Accel,
    /// Which processor the guest sees: `v2`, `v3` or `host`. `None` means what suits the accelerator: all that
    /// KVM offers, or x86-64-v3 in software.
    pub cpu: Option<CpuModel>,
    /// Words added to the kernel command line.
    pub append: Option<String>,
    /// A kernel instead of the AMI's.
    pub kernel: Option<PathBuf>,
    /// An initramfs instead of the AMI's.
    pub initrd: Option<PathBuf>,
    /// The network.
    pub network: Network,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<Port>,
    /// Keys that may log in, in OpenSSH's one-line form.
    pub ssh_keys: Vec<String>,
    /// The security groups that it was launched with; their rules are in `ports`. Left out if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_groups: Vec<SecurityGroup>,
    /// Whether the guest gives memory that it does not use back to the host.
    pub balloon: bool,
    /// What its devices may do in a second.
    pub limits: Limits,
}

/// A security group by id and name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecurityGroup {
    /// `sg-` and 17 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A volume as attached to an instance: one block device mapping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// `vol-` and 17 hexadecimal digits.
    pub id: VolumeId,
    /// The name the guest sees, such as `/dev/vda`.
    pub device: String,
    /// The file that holds it, absolute.
    pub path: PathBuf,
    /// Size in bytes.
    pub size: u64,
    /// Whether it goes away with the instance.
    pub delete_on_termination: bool,
    /// How it was made.
    pub kind: VolumeKind,
}

/// How a volume was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// The root volume, filled from the AMI as it is read.
    Lazy,
    /// The root volume, copied from the AMI before the launch.
    Full,
    /// Empty at the launch.
    Blank,
    /// Empty at each start, as an instance store volume is; a reboot keeps it.
    Ephemeral,
    /// A file that the user brought; never deleted.
    File,
}

/// How a guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "how", content = "detail")]
pub enum Ending {
    /// The guest switched itself off.
    PoweredOff,
    /// The image's main program ended with this status, and the guest switched itself off.
    Exited(u8),
    /// The guest's kernel panicked; the line that says why.
    Panicked(String),
    /// The processor shut down (triple fault).
    Crashed,
    /// It was ended from outside without its consent.
    Killed,
    /// It was saved where it was; the next start goes on from there.
    Hibernated,
    /// The machine could not be built or failed; the reason.
    Failed(String),
    /// The instance process vanished.
    Lost,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::PoweredOff => f.write_str("the guest powered off"),
            Ending::Exited(status) => write!(f, "its command ended with status {status}"),
            Ending::Panicked(line) => write!(f, "the guest's kernel panicked: {line}"),
            Ending::Crashed => f.write_str("the guest's processor shut down (triple fault)"),
            Ending::Hibernated => f.write_str("hibernated: the next start goes on from here"),
            Ending::Killed => f.write_str("it was ended without the guest's consent"),
            Ending::Failed(reason) => write!(f, "the machine failed: {reason}"),
            Ending::Lost => f.write_str("the process that ran it vanished"),
        }
    }
}

impl Config {
    /// Whether a boot is asked for: by what only a boot looks at.
    pub fn wants_boot(&self) -> bool {
        self.kernel.is_some() || self.initrd.is_some() || self.append.is_some()
    }
}

impl Record {
    /// The same with the identity that every instance has in a repeatable run: what the guest sees of ids and
    /// names.
    pub fn without_identity(&self) -> Record {
        let mut record = self.clone();
        record.id = InstanceId::nobody();
        record.name = None;
        record.reservation = ReservationId::nobody();
        for volume in &mut record.volumes {
            volume.id = VolumeId::nobody();
        }
        record
    }

    /// The address of this host that is its own, if its ports are published on one.
    pub fn public_address(&self) -> Option<Ipv4Addr> {
        self.config.ports.iter().find_map(|port| match port.address {
            IpAddr::V4(address) if is_public(address) => Some(address),
            _ => None,
        })
    }

    /// What a person calls it: the name if it has one, else the id.
    pub fn label(&self) -> &str {
        self.name.as_deref().unwrap_or(self.id.as_str())
    }
}
