//! What belongs to one instance: host name, keys, user data. cloud-init does this where it is in the image.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{failed, has_cloud_init, identity};
use crate::proto::{Configure, Failure};
use crate::users::User;

/// Holds the id of the instance whose user data has run.
const USER_DATA_DONE: &str = "/var/lib/kiln/user-data-done";

/// What the user-data script prints.
const USER_DATA_LOG: &str = "/var/log/user-data.log";

/// Applies everything, keys before user data. With cloud-init in the image, does nothing.
pub fn apply(configure: &Configure) -> Result<(), Failure> {
    if has_cloud_init() {
        return Ok(());
    }
    let Configure {
        instance,
        hostname,
        ssh_keys,
        user_data,
    } = configure;
    if let Some(hostname) = hostname {
        identity::set_hostname(Path::new("/"), hostname).map_err(|error| failed("the host name", error))?;
    }
    if !ssh_keys.is_empty() {
        for user in login_users() {
            authorize(&user, ssh_keys)
                .map_err(|error| failed(format_args!("keys of {}", user.name), error))?;
        }
    }
    match user_data {
        Some(script) if script.starts_with("#!") => {
            run_once(instance, script).map_err(|error| failed("user data", error))
        }
        _ => Ok(()),
    }
}

/// Root, and the first ordinary user of the image, as cloud images have one to log in with.
fn login_users() -> Vec<User> {
    let root = Path::new("/");
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let ordinary = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, uid) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (1000..60_000).contains(&uid).then(|| User::find(root, name))?
    });
    User::find(root, "root").into_iter().chain(ordinary).collect()
}

/// Adds `keys` to those that may log in as `user`.
fn authorize(user: &User, keys: &[String]) -> io::Result<()> {
    let folder = PathBuf::from(&user.home).join(".ssh");
    if !folder.is_dir() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)?;
        std::os::unix::fs::chown(&folder, Some(user.uid), Some(user.gid))?;
    }
    let file = folder.join("authorized_keys");
    let present = fs::read_to_string(&file).unwrap_or_default();
    let missing: Vec<&str> = keys
        .iter()
        .map(|key| key.trim())
        .filter(|key| !present.lines().any(|line| line == *key))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut opened = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&file)?;
    let newline = if present.is_empty() || present.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    opened.write_all(format!("{newline}{}\n", missing.join("\n")).as_bytes())?;
    std::os::unix::fs::chown(&file, Some(user.uid), Some(user.gid))
}

/// Runs the script in the background, once for each instance.
fn run_once(instance: &str, script: &str) -> io::Result<()> {
    if fs::read_to_string(USER_DATA_DONE).is_ok_and(|done| done.trim() == instance) {
        return Ok(());
    }
    fs::create_dir_all("/var/lib/kiln")?;
    fs::create_dir_all("/var/log")?;
    let path = "/var/lib/kiln/user-data";
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    fs::write(USER_DATA_DONE, instance)?;
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(USER_DATA_LOG)?;
    let mut command = Command::new(path);
    let root = User::root();
    command.current_dir("/").env_clear().envs(root.environment());
    root.run(&mut command, false);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    std::thread::spawn(move || child.wait());
    Ok(())
}
