//! The lab's second disk: the programs under test, the images and what tests share with guests, in an ext4
//! file system with room to work.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::dist::{Dist, Profile};

/// Room beside the content, in MiB: volumes and captured images of the tests. The disk is sparse, so it costs
/// nothing.
const ROOM_MIB: u64 = 8 * 1024;

/// Peers of `vmm bench` that the lab's host does not have from its own packages. Where they are on PATH here
/// they are taken along; they have to be static, or to need nothing that a Debian host lacks.
const PEERS: [&str; 3] = ["firecracker", "cloud-hypervisor", "crosvm"];

/// Makes the disk in `scratch` and returns its path.
pub fn build(arch: Arch, profile: Profile, scratch: &Path) -> Result<PathBuf> {
    let tree = scratch.join("tree");
    let make = |path: &Path| {
        fs::create_dir_all(path).with_context(|| format!("{} could not be made", path.display()))
    };
    for dir in ["bin", "images", "state", "tmp"] {
        make(&tree.join(dir))?;
    }
    let dist = Dist::at(arch, profile);
    for file in list(&dist.dir())? {
        link(
            &file,
            &tree
                .join("bin")
                .join(file.file_name().context("a file without a name")?),
        )?;
    }
    if Arch::host().is_ok_and(|host| host == arch) {
        for peer in peers(&env::var_os("PATH").unwrap_or_default()) {
            let name = peer.file_name().context("a file without a name")?;
            // A link to a program is not the program.
            let program = peer.canonicalize().context("a peer on PATH")?;
            link(&program, &tree.join("bin").join(name))?;
        }
    }
    for image in list(&dist.images())?.iter().filter(|image| belongs(arch, image)) {
        for name in names(arch, image) {
            link(image, &tree.join("images").join(name))?;
        }
    }
    let shared = profile.dir().join("shared");
    if shared.is_dir() {
        link_all(&shared, &tree.join("shared"))?;
    }
    let disk = scratch.join("payload.ext4");
    let status = Command::new("mke2fs")
        .env(
            "PATH",
            format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()),
        )
        .args([
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-E",
            "lazy_itable_init=1,root_owner=0:0",
            "-d",
        ])
        .arg(&tree)
        .arg(&disk)
        .arg(format!("{ROOM_MIB}M"))
        .status()
        .context("mke2fs could not be started; Debian's package e2fsprogs has it")?;
    if !status.success() {
        bail!("mke2fs could not make the lab's second disk ({status})");
    }
    Ok(disk)
}

/// The peers that are in one of the folders of `path`.
fn peers(path: &OsStr) -> Vec<PathBuf> {
    let find = |name: &str| {
        env::split_paths(path)
            .map(|folder| folder.join(name))
            .find(|program| program.is_file())
    };
    PEERS.into_iter().filter_map(find).collect()
}

/// Whether an image is for `arch`: images of another architecture than the build host's carry it in their
/// name.
fn belongs(arch: Arch, image: &Path) -> bool {
    let stem = image
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let suffix_of = |arch: Arch| stem.ends_with(&format!("-{}", arch.debian()));
    let is_ami = image.extension().is_some_and(|extension| extension == "ami");
    let foreign = [Arch::X86_64, Arch::Aarch64].into_iter().any(suffix_of);
    is_ami && (suffix_of(arch) || (!foreign && Arch::host().is_ok_and(|host| host == arch)))
}

/// A whole folder.
fn link_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("{} could not be made", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("{} could not be listed", from.display()))? {
        let entry = entry.with_context(|| format!("{} could not be listed", from.display()))?;
        if entry.path().is_dir() {
            link_all(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            link(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("{} could not be listed", dir.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry
            .with_context(|| format!("{} could not be listed", dir.display()))?
            .path();
        if path.is_file()
            && !path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'))
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// What an image is called on the lab's host: its own name, and the name that it would have had if it had
/// been built there.
fn names(arch: Arch, image: &Path) -> Vec<String> {
    let name = image
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let native = name.replace(&format!("-{}.ami", arch.debian()), ".ami");
    if native == name {
        vec![name]
    } else {
        vec![name, native]
    }
}

/// A symbolic link would reach the disk as such, so link hard, or copy where the scratch folder is on another
/// disk.
fn link(file: &Path, to: &Path) -> Result<()> {
    fs::hard_link(file, to)
        .or_else(|_| fs::copy(file, to).map(drop))
        .with_context(|| format!("{} could not be copied", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_looked_for_where_programs_are() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(first.path().join("crosvm")).unwrap();
        fs::write(second.path().join("firecracker"), "x").unwrap();
        fs::write(second.path().join("another"), "x").unwrap();
        let path = env::join_paths([first.path(), Path::new("/nowhere"), second.path()]).unwrap();
        assert_eq!(peers(&path), [second.path().join("firecracker")]);
    }

    #[test]
    fn a_foreign_image_has_its_native_name_too() {
        let path = Path::new("/images/hello-arm64.ami");
        assert_eq!(names(Arch::Aarch64, path), ["hello-arm64.ami", "hello.ami"]);
        assert_eq!(names(Arch::X86_64, Path::new("/images/hello.ami")), ["hello.ami"]);
        assert!(belongs(Arch::Aarch64, path) && !belongs(Arch::X86_64, path));
    }
}
