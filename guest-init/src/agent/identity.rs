//! The identity of an instance (machine-id, host keys, host name, seeds), made anew at its first boot.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use super::hosts;
use super::secrets;

/// Holds the id of the instance that the identity belongs to.
const INSTANCE: &str = "var/lib/kiln/instance-id";

/// Files that no two machines may share. Host keys are found by their names.
const SECRETS: &[&str] = &[
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/lib/dbus/machine-id",
    "var/lib/kiln/instance-id",
    "var/lib/kiln/user-data-done",
    "var/lib/kiln/user-data",
];

/// Kinds of host key made. RSA is left out: it takes seconds without hardware acceleration and no client
/// needs it any more.
const HOST_KEYS: &[&str] = &["ed25519", "ecdsa"];

/// Gives the system below `root` an identity of its own, unless it has had this instance's already. Returns
/// whether it did.
pub fn renew(root: &Path, instance: Option<&str>, hostname: Option<&str>) -> io::Result<bool> {
    let known = fs::read_to_string(root.join(INSTANCE)).ok();
    let same = match instance {
        Some(instance) => known.as_deref().map(str::trim) == Some(instance),
        // Started without an id (by hand, by another hypervisor): renew once.
        None => known.is_some(),
    };
    if same {
        return Ok(false);
    }
    remove(root);
    secrets::remove(root)?;
    let machine_id = random_hex()?;
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/machine-id"), format!("{machine_id}\n"))?;
    if root == Path::new("/") {
        make_host_keys();
    }
    if let Some(hostname) = hostname {
        set_hostname(root, hostname)?;
    }
    fs::create_dir_all(root.join("var/lib/kiln"))?;
    fs::write(
        root.join(INSTANCE),
        format!("{}\n", instance.unwrap_or("unnamed")),
    )?;
    Ok(true)
}

/// Removes what no two machines may share.
pub fn remove(root: &Path) {
    for path in SECRETS {
        // Most images have few of them.
        let _ = fs::remove_file(root.join(path));
    }
    let Ok(entries) = fs::read_dir(root.join("etc/ssh")) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes host keys where sshd is installed. A failure leaves sshd without that key, which sshd reports.
fn make_host_keys() {
    if !["/usr/sbin/sshd", "/usr/bin/ssh-keygen"]
        .iter()
        .all(|program| Path::new(program).exists())
    {
        return;
    }
    for kind in HOST_KEYS {
        let _ = Command::new("/usr/bin/ssh-keygen")
            .args(["-q", "-N", "", "-C", "", "-t", kind, "-f"])
            .arg(format!("/etc/ssh/ssh_host_{kind}_key"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

/// Sets the host name, now and for later boots.
pub fn set_hostname(root: &Path, hostname: &str) -> io::Result<()> {
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    if hostname.is_empty() || hostname.len() > 63 || !hostname.chars().all(valid) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{hostname:?} is no host name"),
        ));
    }
    nix::unistd::sethostname(hostname)?;
    write_hostname(root, hostname)
}

/// Writes the name where later boots and resolvers find it.
fn write_hostname(root: &Path, hostname: &str) -> io::Result<()> {
    let path = root.join("etc/hostname");
    let old = fs::read_to_string(&path).unwrap_or_default();
    let old = Some(old.trim()).filter(|old| !old.is_empty());
    hosts::rename(root, old, hostname)?;
    fs::write(path, format!("{hostname}\n"))
}

/// 128 random bits in hexadecimal, with the version and variant bits of a random UUID as machine-id(5) wants
/// them.
fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/ssh")).unwrap();
        fs::create_dir_all(root.path().join("var/lib/systemd")).unwrap();
        fs::write(root.path().join("etc/machine-id"), "0\n").unwrap();
        fs::write(root.path().join("etc/ssh/ssh_host_rsa_key"), "secret").unwrap();
        fs::write(root.path().join("etc/ssh/sshd_config"), "keep").unwrap();
        fs::write(root.path().join("var/lib/systemd/random-seed"), "seed").unwrap();
        root
    }

    fn machine_id(root: &tempfile::TempDir) -> String {
        fs::read_to_string(root.path().join("etc/machine-id")).unwrap()
    }

    #[test]
    fn a_new_instance_gets_an_identity_and_keeps_it() {
        let root = image();
        assert!(renew(root.path(), Some("i-1"), None).unwrap());
        let first = machine_id(&root);
        assert_eq!(first.trim().len(), 32);
        assert!(!root.path().join("etc/ssh/ssh_host_rsa_key").exists());
        assert!(root.path().join("etc/ssh/sshd_config").exists());
        assert!(!root.path().join("var/lib/systemd/random-seed").exists());
        assert!(!renew(root.path(), Some("i-1"), None).unwrap());
        assert_eq!(machine_id(&root), first, "another boot of the same instance");
        assert!(renew(root.path(), Some("i-2"), None).unwrap());
        assert_ne!(machine_id(&root), first, "another instance of the same image");
    }

    #[test]
    fn without_an_instance_id_the_identity_is_made_once() {
        let root = image();
        assert!(renew(root.path(), None, None).unwrap());
        assert!(!renew(root.path(), None, None).unwrap());
    }

    #[test]
    fn the_name_resolves_and_is_renewed_with_the_instance() {
        let root = image();
        let hosts = || fs::read_to_string(root.path().join("etc/hosts")).unwrap();
        fs::write(root.path().join("etc/hostname"), "image\n").unwrap();
        fs::write(
            root.path().join("etc/hosts"),
            "127.0.0.1 localhost\n127.0.1.1\timage\n",
        )
        .unwrap();
        write_hostname(root.path(), "first").unwrap();
        assert_eq!(hosts(), "127.0.0.1 localhost\n127.0.1.1\tfirst\n");
        write_hostname(root.path(), "second").unwrap();
        assert_eq!(hosts(), "127.0.0.1 localhost\n127.0.1.1\tsecond\n");
        assert_eq!(
            fs::read_to_string(root.path().join("etc/hostname")).unwrap(),
            "second\n"
        );
    }

    #[test]
    fn invalid_host_names_are_refused() {
        let root = image();
        for name in ["", "a b", "a\nb", &"x".repeat(64)] {
            assert!(set_hostname(root.path(), name).is_err(), "{name:?}");
        }
    }
}
