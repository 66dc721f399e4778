//! A guest that goes on from a snapshot becomes an instance of its own: what the first boot of an instance
//! does is done in the running system, before the host reports the launch as ready.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::clock::{self, HostTime};
use super::{configure, failed, freeze, identity, link, seed};
use crate::proto::{Failure, Renew};

/// Applies everything in the order in which one thing needs another: the date and random numbers before keys
/// are made, the host name before certificates, the identity before user data. Asking again for the same
/// instance changes its date and nothing else, so that a host whose connection broke may ask again.
pub fn apply(renew: &Renew, host_time: &HostTime) -> Result<(), Failure> {
    let Renew {
        nanoseconds,
        seed,
        link_address,
        configure,
    } = renew;
    // It was frozen for the snapshot, as a rule.
    let _ = freeze::thaw();
    if !clock::follow(host_time)? {
        clock::set(*nanoseconds)?;
    }
    seed::add(seed).map_err(|error| failed("the random number generator", error))?;
    if let Some(address) = link_address {
        link::set_address(address).map_err(|error| failed("the network interface's address", error))?;
    }
    let root = Path::new("/");
    let (instance, name) = (configure.instance.as_str(), configure.hostname.as_deref());
    match identity::renew(root, Some(instance), name) {
        Ok(true) => reload_sshd(Path::new("/proc")),
        Ok(false) => {}
        // A root file system that nobody writes to keeps its identity at a boot as well.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            let named = name.map_or(Ok(()), nix::unistd::sethostname);
            named.map_err(|error| failed("the host name", error))?;
        }
        Err(error) => return Err(failed("the machine's identity", error)),
    }
    super::make_secrets(root, &|_| {});
    configure::apply(configure)
}

/// Has the OpenSSH server that runs read its new host keys (sshd(8): SIGHUP).
fn reload_sshd(proc: &Path) {
    for pid in listeners(proc) {
        // One that ended meanwhile has no old keys.
        let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
    }
}

/// The servers among the processes: those named sshd whose parent is no sshd, which would be one serving a
/// connection.
fn listeners(proc: &Path) -> Vec<i32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let processes: Vec<(i32, i32)> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((pid, parent_of_sshd(&stat)?))
        })
        .collect();
    let is_sshd = |pid: i32| processes.iter().any(|(other, _)| *other == pid);
    let servers = processes.iter().filter(|(_, parent)| !is_sshd(*parent));
    servers.map(|(pid, _)| *pid).collect()
}

/// The parent of a process named sshd, by its line of /proc/PID/stat (proc_pid_stat(5)).
fn parent_of_sshd(stat: &str) -> Option<i32> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
    (name == "sshd").then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ssh_server_is_found_and_its_connections_are_left_alone() {
        let proc = tempfile::tempdir().unwrap();
        for (pid, stat) in [
            ("1", "1 (systemd) S 0 1 1 0"),
            ("70", "70 (sshd) S 1 70 70 0"),
            ("90", "90 (sshd) S 70 90 90 0"),
            ("91", "91 (ssh) d) S 1 91 91 0"),
            ("92", "92 (not sshd) S 1 92 92 0"),
            ("self", "93 (sshd) S 1 93 93 0"),
        ] {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("stat"), stat).unwrap();
        }
        fs::create_dir(proc.path().join("94")).unwrap();
        assert_eq!(listeners(proc.path()), [70]);
    }
}
