//! `ssh`: OpenSSH's client, connected to an instance through the guest's agent. No port has to be published,
//! and the host key comes from the agent, so it is authentic.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use guest_init::proto::{Exec, Request};

use super::failure::Advice;
use super::stream::Stream;
use super::{Context, Status, value};
use instance::InstanceId;
use instance::guest::agent::{self, Incoming, Sender, Session};
use instance::service::WaitFor;
use machine::virtio::determinism::Determinism;

/// The file in the state directory that holds the instance's host keys.
const KNOWN_HOSTS: &str = "known_hosts";
/// Host keys are a few hundred bytes each; more than this is no list of them.
const KEYS_CAP: usize = 64 << 10;

/// Log in to a running instance with OpenSSH
#[derive(Debug, Args)]
pub struct Ssh {
    /// A private key to log in with; its public half is what `run --ssh-key` was given
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// How long to wait for the SSH server of an instance that is still booting
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    wait_timeout: Duration,
    /// The instance, and the user to log in as (default: root)
    #[arg(value_name = "[USER@]INSTANCE")]
    target: String,
    /// A command to run instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Ssh {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let (user, instance) = self.target.rsplit_once('@').unwrap_or(("root", &self.target));
        let id = context
            .service
            .wait_for(instance, WaitFor::Ssh, self.wait_timeout)?;
        let directory = context.home().instance(&id);
        let known = directory.join(KNOWN_HOSTS);
        std::fs::write(&known, known_hosts(&id, &host_keys(&directory)?))
            .with_context(|| format!("cannot write {}", known.display()))?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut ssh = Command::new("ssh");
        ssh.args(options(&id, &known, &program));
        if let Some(identity) = &self.identity {
            ssh.args(only_identity(identity));
        }
        ssh.args(["-l", user, id.as_str()]).args(&self.command);
        // Returns only if it fails.
        let error = ssh.exec();
        Err(Advice::new(
            format!("ssh could not be started: {error}"),
            "install OpenSSH's client (openssh-client), or use `vmm exec -it`",
        )
        .into())
    }
}

/// The options by which the client reaches this instance and verifies its host key.
fn options(id: &InstanceId, known: &Path, program: &Path) -> Vec<String> {
    let program = program.display().to_string();
    let tunnel = format!(
        "'{}' tunnel {id} 22",
        program.replace('%', "%%").replace('\'', "'\\''")
    );
    let known = known.display().to_string().replace('%', "%%");
    [
        format!("ProxyCommand={tunnel}"),
        format!("HostKeyAlias={id}"),
        format!("UserKnownHostsFile=\"{known}\""),
        "GlobalKnownHostsFile=/dev/null".into(),
        "StrictHostKeyChecking=yes".into(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".into(), option])
    .collect()
}

/// This key and no other: an agent may hold more keys than a server lets a client try (sshd_config(5),
/// `MaxAuthTries`), and offers them first.
fn only_identity(identity: &Path) -> [&OsStr; 4] {
    let [option, only, file] = ["-o", "IdentitiesOnly=yes", "-i"].map(OsStr::new);
    [option, only, file, identity.as_os_str()]
}

/// The instance's public host keys, a line each.
fn host_keys(directory: &Path) -> anyhow::Result<String> {
    let mut session = agent::exec(
        directory,
        &Determinism::default(),
        Exec {
            argv: ["/bin/sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub"]
                .map(String::from)
                .to_vec(),
            ..Exec::default()
        },
    )?;
    session.without_input();
    let mut keys = Vec::new();
    loop {
        match session.receive()? {
            Some(Incoming::Output(bytes)) if keys.len() + bytes.len() <= KEYS_CAP => keys.extend(bytes),
            Some(Incoming::Output(_)) => bail!("the instance has no sensible host keys"),
            Some(Incoming::Ended(_)) => return Ok(String::from_utf8_lossy(&keys).into_owned()),
            Some(Incoming::Failed(failure)) => bail!("its host keys could not be read: {failure}"),
            Some(_) => {}
            None => bail!("the guest went away while its host keys were read"),
        }
    }
}

/// A known_hosts file (sshd(8)): the alias in front of each key, its comment left out.
fn known_hosts(id: &InstanceId, keys: &str) -> String {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some(format!("{id} {} {}\n", words.next()?, words.next()?))
    };
    keys.lines().filter_map(line).collect()
}

/// Pass standard input and output to a TCP port of an instance (used by `ssh`)
#[derive(Debug, Args)]
pub struct Tunnel {
    /// Id, beginning of an id, or name
    instance: String,
    /// The port, on the guest's loopback address
    port: u16,
}

impl Tunnel {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let id = context.service.find_instance(&self.instance)?;
        let mut session = Session::open(
            &context.home().instance(&id),
            &Determinism::default(),
            &Request::Connect { port: self.port },
        )?;
        let sender = session.sender();
        // Ends with the process: a thread that waits for input cannot be woken.
        std::thread::Builder::new()
            .name("input".into())
            .spawn(move || pass_input(&sender))?;
        loop {
            match session.receive()? {
                Some(Incoming::Output(bytes)) => Stream::Output.put(&bytes)?,
                Some(Incoming::Failed(failure)) => bail!("{}: {failure}", self.instance),
                Some(Incoming::Done(_)) | None => return Ok(Status::OK),
                Some(_) => {}
            }
        }
    }
}

fn pass_input(sender: &Sender) {
    let mut stdin = io::stdin().lock();
    let mut chunk = vec![0; 32 << 10];
    while let Ok(n @ 1..) = stdin.read(&mut chunk) {
        if sender.input(&chunk[..n]).is_err() {
            return;
        }
    }
    let _ = sender.end_input();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_known_under_the_instances_id() {
        let id = InstanceId::random();
        let keys = "ssh-ed25519 AAAAC3 root@debian\n\necdsa-sha2-nistp256 AAAAE2\nbroken\n";
        assert_eq!(
            known_hosts(&id, keys),
            format!("{id} ssh-ed25519 AAAAC3\n{id} ecdsa-sha2-nistp256 AAAAE2\n")
        );
    }

    #[test]
    fn with_a_key_given_no_other_is_offered() {
        let words = only_identity(Path::new("/home/me/key"));
        assert_eq!(words, ["-o", "IdentitiesOnly=yes", "-i", "/home/me/key"]);
    }

    #[test]
    fn paths_with_special_characters_survive_the_clients_parser() {
        let id = InstanceId::random();
        let options = options(&id, Path::new("/a b/known"), Path::new("/it's 100%/vmm"));
        assert!(options.contains(&format!("ProxyCommand='/it'\\''s 100%%/vmm' tunnel {id} 22")));
        assert!(options.contains(&"UserKnownHostsFile=\"/a b/known\"".to_owned()));
    }
}
