//! `/etc/kiln/boot.json` of the initramfs: what the image wants of its PID 1. The composer writes it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Where the file is.
pub const PATH: &str = "/etc/kiln/boot.json";

/// Version of the schema that this program reads.
pub const SCHEMA: u32 = 1;

/// The value of [`Config::init`] that keeps guest-init as PID 1.
pub const INIT_GUEST: &str = "guest-init";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// Version of the schema.
    pub schema: u32,
    /// Kernel modules in load order, as absolute paths in the initramfs.
    pub modules: Vec<String>,
    /// The disk to mount, such as `/dev/vda`.
    pub root_device: String,
    /// Its file system type.
    pub root_filesystem: String,
    /// Mount it read-write.
    pub root_writable: bool,
    /// Grow the file system to the size of the disk.
    pub grow_root: bool,
    /// [`INIT_GUEST`], or the program in the root file system that becomes PID 1.
    pub init: String,
    /// The console's device name without `/dev/`.
    pub console: String,
    /// Run a shell on the console, when PID 1 stays ours.
    pub console_shell: bool,
    /// The machine's name; nothing keeps what the image has.
    #[serde(default)]
    pub hostname: Option<String>,
    /// What to run and keep running, when PID 1 stays ours.
    #[serde(default)]
    pub services: Vec<Service>,
}

/// A program that PID 1 starts and watches.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Service {
    /// Its name in messages.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Environment variables beside our own.
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
    /// It is what the image is for: it has the console, is not started again, and the machine ends with it.
    /// At most one of the image's services.
    #[serde(default)]
    pub main: bool,
}

fn root_directory() -> String {
    "/".to_owned()
}

fn root_user() -> String {
    "root".to_owned()
}

/// When a service that ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
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

impl Restart {
    /// Whether a service that ended so is started again.
    pub fn again(self, succeeded: bool) -> bool {
        match self {
            Restart::Never => false,
            Restart::OnFailure => !succeeded,
            Restart::Always => true,
        }
    }
}

/// Why the file cannot be used.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// /etc/kiln/boot.json could not be read: {0}; the initramfs is incomplete, build the image again
    Read(#[from] std::io::Error),
    /// /etc/kiln/boot.json is malformed: {0}; build the image again
    Parse(#[from] serde_json::Error),
    /// /etc/kiln/boot.json has schema {0}, this guest-init reads 1; build the image with its imgtool
    Schema(u32),
}

impl Config {
    /// Reads the file.
    pub fn load() -> Result<Config, Error> {
        Config::parse(&std::fs::read(PATH)?)
    }

    /// Reads the file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Config, Error> {
        let config: Config = serde_json::from_slice(bytes)?;
        if config.schema == SCHEMA {
            Ok(config)
        } else {
            Err(Error::Schema(config.schema))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = r#"{"schema":1,"modules":["/lib/modules/a.ko"],"root_device":"/dev/vda",
        "root_filesystem":"ext4","root_writable":true,"grow_root":true,"init":"guest-init",
        "console":"hvc0","console_shell":true,"services":[{"name":"web","command":["/bin/httpd"]}]}"#;

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = Config::parse(SMALLEST.as_bytes()).unwrap();
        let service = &config.services[0];
        assert_eq!(
            (service.user.as_str(), service.directory.as_str(), service.restart),
            ("root", "/", Restart::OnFailure)
        );
    }

    #[test]
    fn another_schema_is_refused_with_advice() {
        let other = SMALLEST.replace("\"schema\":1", "\"schema\":2");
        let error = Config::parse(other.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("schema 2") && error.contains("build"), "{error}");
        // The message has them as text.
        assert!(
            error.starts_with(PATH) && error.contains(&format!("reads {SCHEMA};")),
            "{error}"
        );
        assert!(Config::parse(b"{}").is_err());
    }
}
