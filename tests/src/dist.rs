//! The programs and images under test, built into `target/kiln`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::arch::Arch;

/// The programs that make up Kiln.
const PROGRAMS: [&str; 3] = ["vmm", "imgtool", "guest-init"];

/// The root of the workspace. Cargo tells where the package is that it runs; what was compiled in may be another checkout's,
/// when a target folder was copied along with the sources.
pub fn workspace() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        Path::new(&package)
            .parent()
            .unwrap_or(Path::new("."))
            .to_path_buf()
    })
}

/// Cargo's target directory.
fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Where cargo builds for `arch`. Cross builds have a folder of their own: their settings would make each rebuild the
/// build scripts of the other.
fn build_dir(arch: Arch) -> Result<PathBuf> {
    let cross = if arch == Arch::host()? { "" } else { "cross" };
    Ok(target_dir().join(cross))
}

/// Where everything that is built for people and tests goes.
pub fn kiln_dir() -> PathBuf {
    target_dir().join("kiln")
}

/// The cargo that runs us, without what it tells us of our own package: a build script that reads such a variable (that of
/// the crate `ring` does) would take each of our programs for another surrounding, and be run again, and all that needs it.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    for (variable, _) in env::vars_os() {
        let name = variable.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&variable);
        }
    }
    command
}

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As they ship.
    Release,
    /// Sooner done, and slower: for the lab of an architecture whose counts are not held.
    Quick,
}

impl Profile {
    /// Cargo's word, and the folder's.
    fn name(self) -> &'static str {
        match self {
            Profile::Release => "release",
            Profile::Quick => "quick",
        }
    }
}

/// Static programs of one architecture.
#[derive(Debug, Clone)]
pub struct Dist {
    arch: Arch,
    dir: PathBuf,
}

impl Dist {
    /// Builds the programs for this machine's architecture.
    pub fn build(arch: Arch) -> Result<Dist> {
        Dist::build_by(cargo(), arch, Profile::Release)
    }

    /// Builds the programs with a cargo that has been prepared for `arch`.
    pub fn build_by(mut build: Command, arch: Arch, profile: Profile) -> Result<Dist> {
        let target = arch.target();
        // Named target and target-specific flags: crt-static must not reach build scripts and procedural macros.
        build
            .args(["build", "--profile", profile.name(), "--target", &target])
            .arg("--target-dir")
            .arg(build_dir(arch)?)
            .env(
                format!("CARGO_TARGET_{}_RUSTFLAGS", arch.target_variable()),
                "-C target-feature=+crt-static",
            );
        for program in PROGRAMS {
            build.args(["--package", program]);
        }
        let status = build.status().context("cargo could not be started")?;
        if !status.success() {
            bail!("the programs for {arch} did not build ({status}); cargo says why above");
        }
        Dist::collect(arch, profile)
    }

    /// Copies built programs into `target/kiln/ARCH`.
    pub fn collect(arch: Arch, profile: Profile) -> Result<Dist> {
        let dist = Dist::at(arch);
        fs::create_dir_all(&dist.dir).with_context(|| format!("{} could not be made", dist.dir.display()))?;
        let built = build_dir(arch)?.join(arch.target()).join(profile.name());
        for program in PROGRAMS {
            let (from, to) = (built.join(program), dist.program(program));
            // A running program cannot be written over, but it can be replaced.
            let fresh = dist.dir.join(format!(".{program}.new"));
            fs::copy(&from, &fresh).with_context(|| format!("{} could not be copied", from.display()))?;
            fs::rename(&fresh, &to).with_context(|| format!("{} could not be replaced", to.display()))?;
        }
        Ok(dist)
    }

    /// The programs of `arch`, whether or not they have been built.
    pub fn at(arch: Arch) -> Dist {
        Dist {
            arch,
            dir: kiln_dir().join(arch.to_string()),
        }
    }

    /// Whether all programs are there.
    pub fn is_built(&self) -> bool {
        PROGRAMS.iter().all(|program| self.program(program).is_file())
    }

    /// The folder of the programs.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Builds `recipe` (relative to the workspace) into `target/kiln/images/NAME.ami` for this architecture and returns the
    /// path. An image for another architecture than the host's is built with the host's imgtool.
    pub fn image(&self, recipe: &str) -> Result<PathBuf> {
        let stem = Path::new(recipe)
            .file_stem()
            .context("the recipe has no file name")?
            .to_string_lossy();
        let host = Arch::host()?;
        let name = if self.arch == host {
            format!("{stem}.ami")
        } else {
            format!("{stem}-{}.ami", self.arch.debian())
        };
        let images = kiln_dir().join("images");
        fs::create_dir_all(&images).with_context(|| format!("{} could not be made", images.display()))?;
        let image = images.join(name);
        let mut build = Command::new(Dist::at(host).program("imgtool"));
        build
            .current_dir(workspace())
            .arg("build")
            .arg(recipe)
            .arg("-o")
            .arg(&image);
        if self.arch != host {
            build
                .args(["--arch", &self.arch.to_string()])
                .arg("--guest-init")
                .arg(self.program("guest-init"));
        }
        let status = build.status().context("imgtool could not be started")?;
        if !status.success() {
            bail!("imgtool could not build {recipe} ({status}); it says why above");
        }
        Ok(image)
    }
}
