//! A package archive of the tests' own, so that a guest can install with apt where no mirror can be reached:
//! the packages that two recipes differ in, from imgtool's store, where each was verified against the
//! distribution's signed index.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::arch::Arch;
use crate::dist::{kiln_dir, workspace};

/// Where packages are in a cache directory.
const BLOBS: &str = "kiln/blobs";

/// A lock file, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Lock {
    arch: std::collections::BTreeMap<String, Section>,
}

#[derive(Debug, Deserialize)]
struct Section {
    package: Vec<Package>,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    name: String,
    sha256: String,
    size: u64,
    #[serde(default)]
    kernel: bool,
}

/// What tests share with guests, on every test host: `../shared` from where commands run.
pub fn shared_dir() -> PathBuf {
    kiln_dir().join("shared")
}

/// Makes `shared/repository` with the packages that `recipe` has more than `base` (both relative to the
/// workspace, both built before), and copies the folder `content` beside it.
pub fn build(arch: Arch, recipe: &str, base: &str, content: &str) -> Result<()> {
    let shared = shared_dir();
    let _ = fs::remove_dir_all(&shared);
    let repository = shared.join("repository");
    fs::create_dir_all(&repository).with_context(|| format!("{} could not be made", repository.display()))?;
    let known: HashSet<String> = packages(base, arch)?
        .into_iter()
        .map(|package| package.name)
        .collect();
    let new: Vec<Package> = packages(recipe, arch)?
        .into_iter()
        .filter(|package| !known.contains(&package.name))
        .collect();
    ensure!(!new.is_empty(), "{recipe} has no package that {base} has not");
    fill(&repository, &new, &store()?)?;
    let copied = Command::new("cp")
        .arg("-r")
        .arg(workspace().join(content))
        .arg(&shared)
        .status()
        .context("cp")?;
    ensure!(copied.success(), "{content} could not be copied");
    Ok(())
}

/// Makes an archive of the packages that a lock file names for the root, from imgtool's cache directory
/// `cache`. Returns their names.
pub fn of_lock(lock: &Path, arch: Arch, cache: &Path, repository: &Path) -> Result<Vec<String>> {
    let mut packages = locked(lock, arch)?;
    packages.retain(|package| !package.kernel);
    fs::create_dir_all(repository).with_context(|| format!("{} could not be made", repository.display()))?;
    fill(repository, &packages, &cache.join(BLOBS))?;
    Ok(packages.into_iter().map(|package| package.name).collect())
}

fn fill(repository: &Path, packages: &[Package], store: &Path) -> Result<()> {
    let mut index = String::new();
    for package in packages {
        add(package, store, repository, &mut index)?;
    }
    fs::write(repository.join("Packages"), index).context("the archive's index")
}

fn packages(recipe: &str, arch: Arch) -> Result<Vec<Package>> {
    locked(&workspace().join(recipe).with_extension("lock"), arch)
}

fn locked(path: &Path, arch: Arch) -> Result<Vec<Package>> {
    let text = fs::read_to_string(path).with_context(|| format!("{} could not be read", path.display()))?;
    let mut lock: Lock = toml::from_str(&text).with_context(|| format!("{} is malformed", path.display()))?;
    let section = lock.arch.remove(&arch.to_string());
    Ok(section
        .with_context(|| format!("{} has nothing for {arch}", path.display()))?
        .package)
}

/// Puts one package into the archive, with its own control file as its entry of the index.
fn add(package: &Package, store: &Path, repository: &Path, index: &mut String) -> Result<()> {
    let stored = store.join(&package.sha256[..2]).join(&package.sha256);
    let name = format!("{}.deb", package.name);
    fs::copy(&stored, repository.join(&name)).with_context(|| {
        format!(
            "{} is not in imgtool's store ({})",
            package.name,
            stored.display()
        )
    })?;
    let control = Command::new("dpkg-deb")
        .arg("--field")
        .arg(&stored)
        .output()
        .context("dpkg-deb could not be started")?;
    if !control.status.success() {
        bail!("dpkg-deb cannot read {}", stored.display());
    }
    let control = String::from_utf8(control.stdout).context("a control file that is not text")?;
    writeln!(
        index,
        "{}\nFilename: ./{name}\nSize: {}\nSHA256: {}\n",
        control.trim_end(),
        package.size,
        package.sha256
    )
    .context("the archive's index")
}

/// Where imgtool keeps packages, by the XDG base directory specification.
fn store() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = base.filter(|base| base.is_absolute()).or_else(home);
    Ok(base
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join(BLOBS))
}
