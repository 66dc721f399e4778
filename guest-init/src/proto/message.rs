//! The messages, as JSON has them.

use serde::{Deserialize, Serialize};

/// What the host asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Answer with [`Ready`].
    Ping,
    /// Run a command; frames of both streams follow, then [`Ended`].
    Exec(Exec),
    /// Shut the guest down in order. Done is sent before it begins.
    Shutdown {
        /// Start again afterwards.
        reboot: bool,
    },
    /// Unpack the tar archive that follows as input.
    CopyIn {
        /// An existing folder to unpack into, or the name that the one file or folder in the archive is to
        /// have.
        path: String,
    },
    /// Send this file or folder as a tar archive.
    CopyOut {
        /// A relative path begins at root's home.
        path: String,
        /// The host takes frames of error output with a line for each file that is left out. Agents before
        /// this field send none, and hosts before it do not set it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        notes: bool,
    },
    /// Answer when something listens on this TCP port.
    WaitPort {
        /// 1 to 65535.
        port: u16,
    },
    /// Connect to a TCP port on the guest's loopback address and pass input and output frames; Done is the
    /// end.
    Connect {
        /// 1 to 65535.
        port: u16,
    },
    /// Make every file system on a disk consistent and hold all writes to it, until [`Request::Thaw`] or the
    /// end of this connection.
    Freeze {
        /// Thaw by itself after so many seconds, should no request come: at most [`FREEZE_MAX`].
        seconds: u32,
    },
    /// Let writes go on.
    Thaw,
    /// Set the clock.
    SetClock {
        /// Nanoseconds since 1970 (UTC).
        nanoseconds: u64,
    },
    /// Set the clock to the host's, as its boot timer gives it, or where there is none as this request does.
    FollowClock {
        /// Nanoseconds since 1970 (UTC) when the request was sent.
        nanoseconds: u64,
    },
    /// Apply what belongs to this instance, unless cloud-init in the image does.
    Configure(Configure),
    /// The guest goes on from a snapshot, as another instance or after a hibernation: do in the running system
    /// what the first boot of the instance does, and set the clock. Agents before this request do not know it.
    Renew(Renew),
}

/// Longest freeze in seconds: more than a copy takes, less than the kernel's limit for hung tasks.
pub const FREEZE_MAX: u32 = 100;

/// A command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables beside the user's own.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Working directory; the user's home when absent.
    #[serde(default)]
    pub directory: Option<String>,
    /// Login name or user id; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Give the command a terminal of its own; then all output is one stream.
    #[serde(default)]
    pub terminal: Option<Terminal>,
}

/// A terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Value of `TERM`.
    pub kind: String,
    /// Its size.
    pub size: Size,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signaled(u8),
}

impl Ended {
    /// The exit status as a shell gives it: 128 and the signal's number for a signal.
    pub fn status(self) -> u8 {
        match self {
            Ended::Exited(status) => status,
            Ended::Signaled(signal) => signal.saturating_add(128),
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub reason: Reason,
    /// For people: what failed and why.
    pub message: String,
}

/// The kinds of failure that a caller distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There is no such program, file or user.
    NotFound,
    /// It is there, but may not be run or touched.
    Denied,
    /// Anything else.
    Other,
}

/// The guest takes requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Version of guest-init.
    pub version: String,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The host name.
    pub hostname: String,
    /// cloud-init is in the image and configures the instance.
    pub cloud_init: bool,
    /// The agent knows [`Request::Renew`].
    #[serde(default)]
    pub renews: bool,
}

/// What belongs to one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// `i-…`: user data runs once for each.
    pub instance: String,
    /// The host name.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Keys that may log in, in OpenSSH's one-line form.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// A script (it begins with `#!`) that runs once.
    #[serde(default)]
    pub user_data: Option<String>,
}

/// What a guest that goes on from a snapshot has to know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Nanoseconds since 1970 (UTC) when the request was sent, for a guest without a boot timer.
    pub nanoseconds: u64,
    /// Random bytes for the kernel's generator: at most 64 are used.
    #[serde(default)]
    pub seed: Vec<u8>,
    /// The Ethernet address that the network interface is to have.
    #[serde(default)]
    pub link_address: Option<[u8; 6]>,
    /// What belongs to the instance.
    pub configure: Configure,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_keep_their_names_on_the_wire() {
        let exec = Request::Exec(Exec {
            argv: vec!["id".to_owned()],
            ..Exec::default()
        });
        let json = serde_json::to_string(&exec).unwrap();
        assert!(json.starts_with(r#"{"request":"exec","argv":["id"]"#), "{json}");
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"request":"exec","argv":["id"]}"#).unwrap(),
            exec
        );
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"request":"copy-out","path":"/x"}"#).unwrap(),
            Request::CopyOut {
                path: "/x".into(),
                notes: false
            },
            "as hosts before `notes` write it"
        );
        assert_eq!(
            serde_json::to_string(&Request::CopyOut {
                path: "/x".into(),
                notes: true
            })
            .unwrap(),
            r#"{"request":"copy-out","path":"/x","notes":true}"#
        );
        assert!(
            serde_json::from_str::<Request>(r#"{"request":"copy-out","path":"/x","later":1}"#).is_ok(),
            "a field of a later release is ignored, so that it can be added"
        );
        assert!(serde_json::from_str::<Request>(r#"{"request":"format-disk"}"#).is_err());
        let renew = r#"{"request":"renew","nanoseconds":7,"configure":{"instance":"i-1"}}"#;
        let Request::Renew(renew) = serde_json::from_str(renew).unwrap() else {
            panic!("{renew}")
        };
        assert_eq!((renew.nanoseconds, renew.link_address), (7, None));
        assert_eq!(renew.configure.instance, "i-1");
    }

    #[test]
    fn a_signal_is_a_status_as_in_a_shell() {
        assert_eq!(Ended::Exited(7).status(), 7);
        assert_eq!(Ended::Signaled(9).status(), 137);
    }
}
