//! The recipe's `services` as units of systemd, and its `hostname`. guest-init takes its services from the
//! boot configuration instead.

use std::fmt::Write;

use super::Error;
use super::edit::{make_parents, read_text, write_text};
use ami::boot::Restart;

use crate::recipe::{Recipe, Service};
use crate::tree::{Kind, Meta, Tree};

/// Writes a unit for each service and enables it.
pub fn add_units(tree: &mut Tree, recipe: &Recipe, epoch: i64) -> Result<(), Error> {
    for service in &recipe.services {
        let path = format!("etc/systemd/system/{}.service", service.name);
        write_text(tree, &path, unit(service), Meta::new(0o644, 0, 0, epoch))?;
        let link = format!(
            "etc/systemd/system/multi-user.target.wants/{}.service",
            service.name
        );
        make_parents(tree, &link, epoch)?;
        let target = Kind::Symlink(format!("../{}.service", service.name).into_bytes());
        tree.insert(link.as_bytes(), target, Meta::new(0o777, 0, 0, epoch))
            .map_err(Error::tree(&link))?;
    }
    Ok(())
}

/// Writes `/etc/hostname` and the host's own line of `/etc/hosts`.
pub fn set_hostname(tree: &mut Tree, hostname: &str, epoch: i64) -> Result<(), Error> {
    let meta = || Meta::new(0o644, 0, 0, epoch);
    write_text(tree, "etc/hostname", format!("{hostname}\n"), meta())?;
    let mut hosts = read_text(tree, "etc/hosts")?;
    if hosts.is_empty() {
        hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".into();
    }
    let own = |line: &str| line.split_ascii_whitespace().next() == Some("127.0.1.1");
    let mut text: String = hosts
        .lines()
        .filter(|line| !own(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let _ = writeln!(text, "127.0.1.1\t{hostname}");
    write_text(tree, "etc/hosts", text, meta())
}

fn unit(service: &Service) -> String {
    // In a command line `$` would begin a variable; in a value it is a letter like any other.
    let words: Vec<_> = service
        .command
        .iter()
        .map(|word| quote(word).replace('$', "$$"))
        .collect();
    let restart = match service.restart {
        Restart::Always => "always",
        Restart::OnFailure => "on-failure",
        Restart::Never => "no",
    };
    let mut text = format!(
        "[Unit]\nDescription={}\nAfter=network-online.target\nWants=network-online.target\n\n\
         [Service]\nExecStart={}\nWorkingDirectory={}\nUser={}\nRestart={restart}\n",
        escape(&service.name),
        words.join(" "),
        escape(&service.working_directory),
        escape(&service.user),
    );
    for (name, value) in &service.environment {
        let _ = writeln!(text, "Environment={}", quote(&format!("{name}={value}")));
    }
    text += "\n[Install]\nWantedBy=multi-user.target\n";
    text
}

/// A percent sign begins a specifier of systemd everywhere in a unit.
fn escape(text: &str) -> String {
    text.replace('%', "%%")
}

/// A word in quotation marks.
fn quote(word: &str) -> String {
    let escaped = escape(word).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}
