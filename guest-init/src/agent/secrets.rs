//! The [table of secrets](crate::secrets) in a running system: what is removed from it, and what its first
//! boot makes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::secrets::{PENDING, Secret, TABLE, is_star};

/// What the commands print, for a person who looks why one has failed.
const LOG: &str = "var/lib/kiln/first-boot.log";

/// A command that takes longer hangs: a database on a full disk waits without end. The slowest, MariaDB's,
/// takes two minutes of a processor in software.
const TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// How often it is looked whether a command has ended: short beside what the shortest one takes.
const INTERVAL: Duration = Duration::from_millis(10);

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Removes what no two machines may share from the system below `root`, and lists it for its next boot.
///
/// # Errors
/// When something that is there cannot be removed.
pub fn remove(root: &Path) -> io::Result<()> {
    let mut pending = pending(root);
    let before = pending.len();
    for secret in TABLE.iter().filter(|secret| secret.throwaway) {
        for star in stars(root, secret) {
            if has_program(root, secret, &star) && remove_one(root, secret, &star)? {
                pending.insert(secret.entry(&star));
            }
        }
    }
    remove_if_there(&root.join(LOG))?;
    match pending.len() == before {
        true => Ok(()),
        false => write_pending(root, &pending),
    }
}

/// Makes what is listed, and takes off the list what could be made. `say` prints what takes time and what
/// could not be made.
pub fn make(root: &Path, say: &dyn Fn(&str)) {
    make_with(root, say, &|secret, star| run(root, secret, star));
}

fn make_with(root: &Path, say: &dyn Fn(&str), run: &dyn Fn(&Secret, &str) -> io::Result<()>) {
    let listed = pending(root);
    let mut left = listed.clone();
    for line in &listed {
        let made = match Secret::of_entry(line) {
            Some((secret, star)) if has_program(root, secret, star) => {
                // A database takes a while: who waits should know for what.
                if !secret.throwaway {
                    say(&format!(
                        "guest-init: first boot: making /{line} of package {}",
                        secret.package
                    ));
                }
                run(secret, star).map_err(|error| (secret, error))
            }
            // The package has gone, or a later version of this program listed it.
            _ => Ok(()),
        };
        match made {
            Ok(()) => {
                left.remove(line);
            }
            Err((secret, error)) => say(&format!(
                "guest-init: /{line} of package {} could not be made: {error}; see /{LOG}; \
                 the next boot tries again",
                secret.package
            )),
        }
    }
    if left != listed
        && let Err(error) = write_pending(root, &left)
    {
        say(&format!("guest-init: /{PENDING} could not be written: {error}"));
    }
}

fn run(root: &Path, secret: &Secret, star: &str) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(root.join(LOG))?;
    let mut child = Command::new("/bin/sh")
        .args(["-euc", secret.make, "sh", star])
        .current_dir("/")
        .process_group(0)
        .env_clear()
        .envs([
            ("PATH", PATH),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let status = wait(&mut child, TIMEOUT)?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(status.to_string())),
    }
}

/// Waits for a child that leads a process group, and ends the group when it takes too long.
fn wait(child: &mut Child, timeout: Duration) -> io::Result<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() >= timeout {
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(INTERVAL);
    }
}

fn has_program(root: &Path, secret: &Secret, star: &str) -> bool {
    root.join(secret.program.replace('*', star)).exists()
}

/// What `*` may stand for in a system; one empty text where an entry has none.
fn stars(root: &Path, secret: &Secret) -> Vec<String> {
    let Some(folder) = secret.star_folder() else {
        return vec![String::new()];
    };
    let names = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_star(name))
        .collect()
}

/// Removes the files and links of an entry. Returns whether there were any.
fn remove_one(root: &Path, secret: &Secret, star: &str) -> io::Result<bool> {
    let mut found = false;
    for path in secret.paths {
        found |= remove_if_there(&root.join(path.replace('*', star)))?;
    }
    let Some((folder, target)) = secret.links else {
        return Ok(found);
    };
    for entry in fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == target) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(found)
}

fn remove_if_there(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn pending(root: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(root.join(PENDING)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn write_pending(root: &Path, entries: &BTreeSet<String>) -> io::Result<()> {
    let path = root.join(PENDING);
    if entries.is_empty() {
        return remove_if_there(&path).map(drop);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let text: String = entries.iter().flat_map(|entry| [entry, "\n"]).collect();
    fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const KEY: &str = "etc/ssl/private/ssl-cert-snakeoil.key";
    const CLUSTER: &str = "var/lib/postgresql/17/main";

    fn system() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for path in [
            KEY,
            "etc/ssl/certs/ssl-cert-snakeoil.pem",
            "etc/ssl/certs/other.pem",
            "usr/sbin/make-ssl-cert",
            "var/lib/postgresql/17/main/PG_VERSION",
            "usr/lib/postgresql/17/bin/initdb",
            "etc/munge/munge.key",
            "usr/sbin/mungekey",
            // Its package is not there.
            "etc/xrdp/rsakeys.ini",
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "text").unwrap();
        }
        for (target, link) in [("ssl-cert-snakeoil.pem", "0a.0"), ("other.pem", "0b.0")] {
            std::os::unix::fs::symlink(target, root.path().join("etc/ssl/certs").join(link)).unwrap();
        }
        root
    }

    #[test]
    fn renewable_keys_are_removed_and_listed_and_data_stays() {
        let root = system();
        let at = |path: &str| root.path().join(path).symlink_metadata().is_ok();
        remove(root.path()).unwrap();
        for path in [KEY, "etc/ssl/certs/ssl-cert-snakeoil.pem", "etc/ssl/certs/0a.0"] {
            assert!(!at(path), "{path}");
        }
        for path in [
            "etc/ssl/certs/0b.0",
            "var/lib/postgresql/17/main/PG_VERSION",
            "etc/munge/munge.key",
            "etc/xrdp/rsakeys.ini",
        ] {
            assert!(at(path), "{path}");
        }
        assert_eq!(
            fs::read_to_string(root.path().join(PENDING)).unwrap(),
            format!("{KEY}\n")
        );
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let spawn = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", script])
                .process_group(0)
                .stdout(Stdio::piped());
            command.spawn().unwrap()
        };
        assert!(wait(&mut spawn("exit 0"), TIMEOUT).unwrap().success());
        let mut child = spawn("sleep 1000 & wait");
        let mut output = child.stdout.take().unwrap();
        let error = wait(&mut child, Duration::ZERO).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // The end of file: no process of the group holds the pipe any more.
        assert_eq!(io::copy(&mut output, &mut io::sink()).unwrap(), 0);
    }

    #[test]
    fn listed_secrets_are_made_once_and_failures_are_retried() {
        let root = system();
        remove(root.path()).unwrap();
        let list = BTreeSet::from([KEY.to_owned(), CLUSTER.to_owned(), "etc/unknown".to_owned()]);
        write_pending(root.path(), &list).unwrap();
        let (ran, said) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let say = |text: &str| said.borrow_mut().push(text.to_owned());
        let attempt = |succeeds: bool| {
            make_with(root.path(), &say, &|secret, star| {
                ran.borrow_mut().push((secret.package, star.to_owned()));
                match succeeds || secret.package == "ssl-cert" {
                    true => Ok(()),
                    false => Err(io::Error::other("exit status: 1")),
                }
            });
        };
        attempt(false);
        assert_eq!(pending(root.path()), BTreeSet::from([CLUSTER.to_owned()]));
        assert_eq!(
            said.borrow()[0],
            format!("guest-init: first boot: making /{CLUSTER} of package postgresql")
        );
        assert!(
            said.borrow()[1].contains("postgresql") && said.borrow()[1].contains("exit status"),
            "{said:?}"
        );
        attempt(true);
        attempt(true);
        let packages: Vec<_> = ran.borrow().iter().map(|(package, _)| *package).collect();
        assert_eq!(packages, ["ssl-cert", "postgresql", "postgresql"]);
        assert_eq!(ran.borrow()[1].1, "17");
        assert!(!root.path().join(PENDING).exists());
    }
}
