//! The initial content of every root: the merged `/usr` and the usual directories.

use std::collections::BTreeSet;

use crate::lock::Package;
use crate::tree::{Kind, Meta, Tree, TreeError};

/// Directories and their permissions.
const DIRECTORIES: &[(&str, u16)] = &[
    ("boot", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// Makes `/bin`, `/sbin`, `/lib` and, where the architecture has it, `/lib64` links into `/usr`, as every
/// Debian since bookworm expects.
pub fn merge_usr(tree: &mut Tree, debian_arch: &str, mtime: i64) -> Result<(), TreeError> {
    let lib64 = (debian_arch == "amd64").then_some("lib64");
    for name in ["bin", "lib", "sbin"].into_iter().chain(lib64) {
        let target = format!("usr/{name}");
        tree.create_dirs(target.as_bytes(), &Meta::new(0o755, 0, 0, mtime))?;
        let link = Kind::Symlink(target.into_bytes());
        tree.insert(name.as_bytes(), link, Meta::new(0o777, 0, 0, mtime))?;
    }
    Ok(())
}

/// The text of `/var/lib/dpkg/arch`, the architectures of which dpkg takes packages, where it must change from
/// `known` for these packages: only a system with packages of foreign architectures has the file.
pub fn architectures(known: &str, native: &str, packages: &[Package]) -> Option<String> {
    let named = packages.iter().map(|package| package.architecture.as_str());
    let foreign: BTreeSet<&str> = named
        .filter(|arch| ![native, "all"].contains(arch) && !known.lines().any(|line| line == *arch))
        .collect();
    let mut text = match known.is_empty() {
        true => format!("{native}\n"),
        false => known.to_owned(),
    };
    foreign.iter().for_each(|arch| text += &format!("{arch}\n"));
    (!foreign.is_empty()).then_some(text)
}

/// Makes the directories that no package brought.
pub fn complete(tree: &mut Tree, mtime: i64) -> Result<(), TreeError> {
    for (path, mode) in DIRECTORIES {
        if tree.find_followed(path.as_bytes())?.is_none() {
            tree.create_dirs(path.as_bytes(), &Meta::new(*mode, 0, 0, mtime))?;
        }
    }
    for (path, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        if tree.find(path.as_bytes())?.is_none() {
            let link = Kind::Symlink(target.as_bytes().to_vec());
            tree.insert(path.as_bytes(), link, Meta::new(0o777, 0, 0, mtime))?;
        }
    }
    Ok(())
}
