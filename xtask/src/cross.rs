//! `cargo xtask cross ARCH`: the static programs for the other architecture; of 32-bit x86, which is no
//! host's, guest-init for images with a 32-bit kernel.
//!
//! The standard library for it comes from an installed rustup target, or is built from source: rustup's own
//! `rust-src`, or Debian's package of the same version, unpacked into `target/` and shown to the compiler
//! through a sysroot of links, so that the installed toolchain stays as it is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, LAUNCHING, PROGRAMS, Profile, cargo, kiln_dir};

use crate::packages;

/// Suites of Debian that carry recent compilers, several versions of each.
const SUITES: [&str; 2] = ["trixie-backports", "sid"];
/// Where Debian's package has the library.
const LIBRARY: &str = "usr/src/rustc-*/library";

/// 32-bit x86, by its name in the kernel and in GNU's tools.
const I686: &str = "i686";

/// What `cargo xtask cross` is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// An architecture of hosts.
    Arch(Arch),
    /// 32-bit x86.
    I686,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Target> {
        match name {
            I686 => Ok(Target::I686),
            name => Ok(Target::Arch(name.parse()?)),
        }
    }
}

/// Builds what ships for `target`.
pub fn cross_target(target: Target) -> Result<()> {
    match target {
        Target::Arch(arch) => cross(arch, Profile::Release).map(|_| ()),
        Target::I686 => guest_init_i686().map(|_| ()),
    }
}

/// Builds guest-init for 32-bit kernels where `imgtool` looks for it, and returns its path.
pub fn guest_init_i686() -> Result<PathBuf> {
    const PROGRAM: &str = "guest-init";
    packages::ensure(packages::cross_i686())?;
    let target = format!("{I686}-unknown-linux-gnu");
    let mut build = compiler(I686, &target)?;
    let place = Profile::Release.dir().join(I686);
    let scratch = Profile::Release.dir().join("cross");
    let status = build
        .args([
            "build",
            "--profile",
            "release",
            "--target",
            &target,
            "--package",
            PROGRAM,
        ])
        .arg("--target-dir")
        .arg(&scratch)
        .status()
        .context("cargo could not be started")?;
    if !status.success() {
        bail!("{PROGRAM} for {I686} did not build ({status}); cargo says why above");
    }
    // The profile strips it.
    make(&place)?;
    let built = scratch.join(&target).join("release").join(PROGRAM);
    let installed = place.join(PROGRAM);
    fs::copy(&built, &installed).with_context(|| format!("{} could not be copied", built.display()))?;
    Ok(installed)
}

/// Builds the programs for `arch`.
pub fn cross(arch: Arch, profile: Profile) -> Result<Dist> {
    if arch == Arch::host()? {
        return Dist::build(profile);
    }
    packages::ensure(packages::cross(arch))?;
    let mut build = compiler(&arch.to_string(), &arch.target())?;
    // What is tried in a lab needs no optimized dependencies, and no imgtool: images are built on this
    // machine.
    let programs: &[&str] = match profile {
        Profile::Dev => {
            build.args(["--config", "profile.dev.package.\"*\".opt-level=1"]);
            &LAUNCHING
        }
        Profile::Release => &PROGRAMS,
        Profile::Launch => &LAUNCHING,
    };
    Dist::build_programs(build, arch, profile, programs)
}

/// A cargo that links for `machine` and has a standard library for the Rust target.
fn compiler(machine: &str, target: &str) -> Result<Command> {
    let mut build = cargo();
    let variable = target.replace('-', "_").to_uppercase();
    build.env(
        format!("CARGO_TARGET_{variable}_LINKER"),
        format!("{machine}-linux-gnu-gcc"),
    );
    match Library::find(target)? {
        Library::Built => {}
        Library::Source(rustc) => {
            // What the stable compiler calls unstable here is cargo's option; the library is its own.
            build.env("RUSTC_BOOTSTRAP", "1");
            build.arg("-Zbuild-std=std,panic_abort");
            if let Some(rustc) = rustc {
                build.env("RUSTC", rustc);
            }
        }
    }
    Ok(build)
}

/// How the compiler comes to a standard library for the target.
enum Library {
    /// It has one.
    Built,
    /// From source, which this compiler finds; `None` is the installed one.
    Source(Option<PathBuf>),
}

impl Library {
    fn find(target: &str) -> Result<Library> {
        let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?.trim());
        let rustlib = sysroot.join("lib/rustlib");
        if rustlib.join(target).join("lib").is_dir() {
            return Ok(Library::Built);
        }
        if rustlib.join("src/rust/library/Cargo.lock").is_file() {
            return Ok(Library::Source(None));
        }
        let version = rustc(&["--version", "--verbose"])?
            .lines()
            .find_map(|line| line.strip_prefix("release: "))
            .context("rustc does not print its release")?
            .to_owned();
        let dir = kiln_dir().join("toolchain").join(&version);
        let compiler = dir.join("sysroot/rustc");
        if !compiler.is_file() {
            debian_source(&dir, &version).with_context(|| {
                format!("no standard library for {target} was found; try: rustup target add {target}")
            })?;
            link_sysroot(&sysroot, &dir)?;
        }
        Ok(Library::Source(Some(compiler)))
    }
}

fn rustc(args: &[&str]) -> Result<String> {
    let output = Command::new("rustc")
        .args(args)
        .output()
        .context("rustc could not be started")?;
    String::from_utf8(output.stdout).context("rustc's answer")
}

/// Unpacks the library of Debian's `rust-src` into `dir`. apt verifies the archive's signatures, in folders
/// of its own: neither the host's package lists nor its installed packages change, and nobody needs to be
/// root.
fn debian_source(dir: &Path, version: &str) -> Result<()> {
    let apt = dir.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        make(&apt.join(folder))?;
    }
    let sources: String = SUITES
        .iter()
        .map(|suite| {
            format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {suite} main\n"
            )
        })
        .collect();
    write(&apt.join("sources.list"), &sources)?;
    let place = apt.display();
    write(
        &apt.join("apt.conf"),
        &format!(
            "Dir::Etc::SourceList \"{place}/sources.list\";\nDir::Etc::SourceParts \"/nonexistent\";\n\
             Dir::State::Lists \"{place}/lists\";\nDir::Cache \"{place}/cache\";\nAPT::Sandbox::User \"root\";\n"
        ),
    )?;
    for args in [
        vec!["update".to_owned()],
        vec!["download".to_owned(), format!("rust-src={version}*")],
    ] {
        eprintln!("xtask: apt-get {} (in {place})", args.join(" "));
        let status = Command::new("apt-get")
            .env("APT_CONFIG", apt.join("apt.conf"))
            .current_dir(&apt)
            .arg("-qq")
            .args(&args)
            .status()
            .context("apt-get could not be run: is this Debian?")?;
        if !status.success() {
            bail!("apt-get {} failed ({status})", args.join(" "));
        }
    }
    let package = only(&apt, |name| {
        name.starts_with("rust-src_") && name.ends_with(".deb")
    })?;
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package)
        .stdout(Stdio::piped())
        .spawn()
        .context("dpkg-deb could not be started")?;
    let content = archive.stdout.take().context("dpkg-deb's output")?;
    let status = Command::new("tar")
        .args(["--extract", "--wildcards", "--directory"])
        .arg(dir)
        .arg(format!("./{LIBRARY}"))
        .stdin(content)
        .status()
        .context("tar could not be started")?;
    let unpacked = archive.wait().context("dpkg-deb")?;
    if !status.success() || !unpacked.success() {
        bail!("{} could not be unpacked", package.display());
    }
    // The download is not needed twice.
    fs::remove_dir_all(&apt).with_context(|| format!("{place} could not be removed"))
}

/// A sysroot beside the library: all of the installed one by links, and the source where cargo looks for it.
/// Its `rustc` is a script, because a linked compiler would find its way home.
fn link_sysroot(installed: &Path, dir: &Path) -> Result<()> {
    let sysroot = dir.join("sysroot");
    let _ = fs::remove_dir_all(&sysroot);
    let rustlib = sysroot.join("lib/rustlib");
    make(&rustlib.join("src"))?;
    for (from, to) in [
        (installed.join("lib"), sysroot.join("lib")),
        (installed.join("lib/rustlib"), rustlib.clone()),
    ] {
        for entry in fs::read_dir(&from).with_context(|| format!("{} could not be listed", from.display()))? {
            let entry = entry?;
            let to = to.join(entry.file_name());
            if !to.exists() {
                symlink(entry.path(), &to)
                    .with_context(|| format!("{} could not be linked", to.display()))?;
            }
        }
    }
    let source = only(&dir.join("usr/src"), |name| name.starts_with("rustc-"))?;
    symlink(source, rustlib.join("src/rust")).context("the library could not be linked")?;
    let script = sysroot.join("rustc");
    let quoted = |path: &Path| kiln_tests::lab::quote(&path.display().to_string());
    write(
        &script,
        &format!(
            "#!/bin/sh\nexec {} --sysroot {} \"$@\"\n",
            quoted(&installed.join("bin/rustc")),
            quoted(&sysroot)
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).context("the compiler's script")
}

/// The one entry of `dir` that `wanted` accepts.
fn only(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("{} could not be listed", dir.display()))?;
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| wanted(&name.to_string_lossy()))
        });
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        _ => bail!("{} does not hold what was downloaded", dir.display()),
    }
}

fn make(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("{} could not be made", dir.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} could not be written", path.display()))
}
