//! `/etc/kiln/boot.json` in the initramfs: the configuration of guest-init. The composer writes it;
//! guest-init reads it with a struct of its own, because it depends on no other crate; `tests/` checks that
//! both agree.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the file is in the initramfs.
pub const PATH: &str = "etc/kiln/boot.json";
/// The directory of the modules in the initramfs.
pub const MODULES: &str = "lib/modules";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// Version of this schema: 1.
    pub schema: u32,
    /// Kernel modules in load order, as absolute paths in the initramfs.
    pub modules: Vec<String>,
    /// The disk to mount, such as `/dev/vda`.
    pub root_device: String,
    /// Its file system type: `ext4`.
    pub root_filesystem: String,
    /// Mount it read-write.
    pub root_writable: bool,
    /// Grow the file system to the size of the disk.
    pub grow_root: bool,
    /// `guest-init` to stay PID 1 and supervise [`BootConfig::services`], or the absolute path of the program
    /// in the root file system that becomes PID 1.
    pub init: String,
    /// The console's device name without `/dev/`, such as `hvc0`.
    pub console: String,
    /// Run a shell on the console (when `init` is `guest-init`).
    pub console_shell: bool,
    /// The machine's name; nothing keeps what the image has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What to run and keep running (when `init` is `guest-init`).
    #[serde(default)]
    pub services: Vec<Service>,
}

impl BootConfig {
    /// Version of the schema that this program writes.
    pub const SCHEMA: u32 = 1;
}

/// A program that guest-init starts and watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name in messages.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables beside guest-init's own.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Working directory.
    #[serde(default = "root_directory")]
    pub directory: String,
    /// The user that it runs as: a name or a number, and maybe `:` and a group.
    #[serde(default = "root_user")]
    pub user: String,
    /// When to start it again.
    #[serde(default)]
    pub restart: Restart,
    /// It is what the image is for, as a container's command is: it has the console, and the machine powers
    /// off when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub main: bool,
}

fn root_directory() -> String {
    "/".into()
}

fn root_user() -> String {
    "root".into()
}

/// When a service that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    Never,
    /// When it ended with a status other than 0.
    #[default]
    OnFailure,
    /// Whenever it ended.
    Always,
}
