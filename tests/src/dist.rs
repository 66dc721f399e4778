//! Builds the programs and images: those under test in `target/kiln`, those that ship in `target/dist`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

use crate::arch::Arch;

/// The programs that make up Kiln.
pub const PROGRAMS: [&str; 3] = ["vmm", "imgtool", "guest-init"];
/// What the end-to-end tests of a development build drive besides.
pub const SERVERS: [&str; 1] = ["ec2"];
/// Those without which no guest runs. Images for a foreign lab are baked on this machine.
pub const LAUNCHING: [&str; 2] = ["vmm", "guest-init"];
/// Packages that have no unit tests: the end-to-end tests, and benchmarks, whose measuring takes its time to
/// build.
pub const UNTESTED: [&str; 2] = ["kiln-tests", "kiln-benches"];

/// The root of the workspace. Cargo passes the directory of the package that it runs; what was compiled in
/// may be another checkout's, when a target folder was copied along with the sources.
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

/// Where cargo builds for `arch`. Cross builds have a folder of their own: their settings would make each
/// rebuild the build scripts of the other.
fn build_dir(arch: Arch) -> Result<PathBuf> {
    let cross = if arch == Arch::host()? { "" } else { "cross" };
    Ok(target_dir().join(cross))
}

/// Where everything that tests and demonstrations build goes.
pub fn kiln_dir() -> PathBuf {
    Profile::Dev.dir()
}

/// The cargo that runs this program, without what it passes of this program's package: a build script that
/// reads such a variable (that of the crate `ring` does) would see another environment for each program, and
/// run again, with all that needs it.
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
    /// As the unit tests are: nothing that these have compiled is compiled again, and assertions hold.
    Dev,
    /// As they ship: small, fast, and minutes of link-time optimization. What is measured is measured with
    /// these.
    Release,
    /// What a launch runs (`LAUNCHING`) as it ships. Images are composed by the development build of imgtool:
    /// they have the same bytes, and nobody waits for imgtool's link-time optimization.
    Launch,
}

impl Profile {
    /// Cargo's name of the profile.
    fn name(self) -> &'static str {
        match self {
            Profile::Dev => "dev",
            Profile::Release | Profile::Launch => "release",
        }
    }

    /// The programs that are built.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Profile::Dev | Profile::Release => &PROGRAMS,
            Profile::Launch => &LAUNCHING,
        }
    }

    /// The build whose imgtool composes the images.
    fn composer(self) -> Profile {
        match self {
            Profile::Dev | Profile::Launch => Profile::Dev,
            Profile::Release => Profile::Release,
        }
    }

    /// Cargo's name of the folder that the profile's programs are in.
    fn folder(self) -> &'static str {
        match self {
            Profile::Dev => "debug",
            Profile::Release | Profile::Launch => "release",
        }
    }

    /// Where the programs, and the images that they bake, are put.
    pub fn dir(self) -> PathBuf {
        target_dir().join(match self {
            Profile::Dev => "kiln",
            Profile::Release | Profile::Launch => "dist",
        })
    }
}

/// Static programs of one architecture.
#[derive(Debug, Clone)]
pub struct Dist {
    arch: Arch,
    profile: Profile,
}

impl Dist {
    /// Builds the programs for this machine's architecture. Those of the development build have the features
    /// that unit tests have, so that nothing that these have compiled is compiled again.
    pub fn build(profile: Profile) -> Result<Dist> {
        let mut selection = Vec::new();
        if profile.composer() == Profile::Dev {
            // Cargo counts the features of development dependencies only where a test is built: `layers` is
            // the smallest. The packages are those of the unit tests.
            selection.extend(["--workspace", "--test", "layers"]);
            selection.extend(UNTESTED.iter().flat_map(|package| ["--exclude", package]));
            let programs: Vec<_> = PROGRAMS.into_iter().chain(SERVERS).collect();
            selection.extend(programs.iter().flat_map(|program| ["--bin", program]));
            Dist::build_by(cargo(), Arch::host()?, Profile::Dev, &programs, &selection)?;
        }
        match profile {
            Profile::Dev => Ok(Dist::at(Arch::host()?, profile)),
            Profile::Release | Profile::Launch => {
                Dist::build_programs(cargo(), Arch::host()?, profile, profile.programs())
            }
        }
    }

    /// Builds `programs` and what they need, with a cargo that has been prepared for `arch`.
    pub fn build_programs(cargo: Command, arch: Arch, profile: Profile, programs: &[&str]) -> Result<Dist> {
        let selection: Vec<&str> = programs
            .iter()
            .flat_map(|program| ["--package", program])
            .collect();
        Dist::build_by(cargo, arch, profile, programs, &selection)
    }

    /// Builds what `selection` (options of `cargo build`) names, `programs` among it. `.cargo/config.toml`
    /// makes them static.
    fn build_by(
        mut build: Command,
        arch: Arch,
        profile: Profile,
        programs: &[&str],
        selection: &[&str],
    ) -> Result<Dist> {
        build
            .args(["build", "--profile", profile.name(), "--target", &arch.target()])
            .arg("--target-dir")
            .arg(build_dir(arch)?)
            .args(selection);
        let status = build.status().context("cargo could not be started")?;
        if !status.success() {
            bail!("the programs for {arch} did not build ({status}); cargo says why above");
        }
        let dist = Dist::at(arch, profile);
        dist.collect(programs)?;
        Ok(dist)
    }

    /// Copies built programs to where they are used, without what only a debugger reads.
    fn collect(&self, programs: &[&str]) -> Result<()> {
        let dir = self.dir();
        fs::create_dir_all(&dir).with_context(|| format!("{} could not be made", dir.display()))?;
        let built = build_dir(self.arch)?
            .join(self.arch.target())
            .join(self.profile.folder());
        for program in programs {
            let (from, to) = (built.join(program), self.program(program));
            // A running program cannot be written over, but it can be replaced.
            let fresh = dir.join(format!(".{program}.new"));
            strip(self.arch, &from, &fresh)?;
            fs::rename(&fresh, &to).with_context(|| format!("{} could not be replaced", to.display()))?;
        }
        Ok(())
    }

    /// The programs of `arch`, whether or not they have been built.
    pub fn at(arch: Arch, profile: Profile) -> Dist {
        Dist { arch, profile }
    }

    /// Whether all programs are there that a guest's host needs.
    pub fn is_built(&self) -> bool {
        LAUNCHING.iter().all(|program| self.program(program).is_file())
    }

    /// The folder of the programs.
    pub fn dir(&self) -> PathBuf {
        self.profile.dir().join(self.arch.to_string())
    }

    /// The folder of the images that these programs bake, of every architecture.
    pub fn images(&self) -> PathBuf {
        self.profile.dir().join("images")
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The imgtool that composes this build's images.
    pub fn imgtool(&self) -> Result<PathBuf> {
        Ok(Dist::at(Arch::host()?, self.profile.composer()).program("imgtool"))
    }

    /// Builds `recipe` (relative to the workspace) into `images/NAME.ami` beside the programs' folder, for
    /// their architecture, and returns the path. The imgtool that does it is always the host's.
    pub fn image(&self, recipe: &str) -> Result<PathBuf> {
        self.image_in(recipe, &self.images())
    }

    /// The same with 32-bit programs, into `images/NAME-i386.ami`. The programs' architecture is x86_64.
    ///
    /// Without the security archive, whose index of i386 some mirrors have from another day than the list
    /// that names its digest.
    pub fn image_of_i386(&self, recipe: &str) -> Result<PathBuf> {
        let scratch = tempfile::tempdir()?;
        let change = |text| format!("{text}\n[distribution]\nsecurity = false\n");
        let copy = changed(recipe, stem(recipe)?, scratch.path(), change)?;
        let image = self.images().join(format!("{}-i386.ami", stem(recipe)?));
        self.compose(&copy, image, |build| build.args(["--arch", "i386"]))
    }

    /// Builds `recipe`, whose kernel is of 32 bits, with a guest-init for it, which `cargo xtask cross`
    /// makes.
    pub fn image_of_32_bit_kernel(&self, recipe: &str) -> Result<PathBuf> {
        let status = cargo()
            .args(["xtask", "cross", "i686"])
            .status()
            .context("cargo could not be started")?;
        ensure!(
            status.success(),
            "guest-init for i686 did not build ({status}); cargo says why above"
        );
        let guest_init = Profile::Release.dir().join("i686/guest-init");
        let image = self.images().join(format!("{}.ami", stem(recipe)?));
        self.compose(recipe.as_ref(), image, |build| {
            build.arg("--guest-init").arg(&guest_init)
        })
    }

    /// The same as [`Dist::image`] with the driver `virtio_pci` in the initramfs, into `images/NAME-pci.ami`.
    pub fn image_with_pci(&self, recipe: &str) -> Result<PathBuf> {
        let scratch = tempfile::tempdir()?;
        let change = |text| format!("modules = [\"virtio_pci\"]\n{text}");
        let copy = changed(recipe, format!("{}-pci", stem(recipe)?), scratch.path(), change)?;
        self.image(&copy.to_string_lossy())
    }

    /// As [`Dist::image`] into another folder than that of the images which labs are given.
    pub fn image_in(&self, recipe: &str, images: &Path) -> Result<PathBuf> {
        let stem = stem(recipe)?;
        let host = Arch::host()?;
        let name = if self.arch == host {
            format!("{stem}.ami")
        } else {
            format!("{stem}-{}.ami", self.arch.debian())
        };
        self.compose(recipe.as_ref(), images.join(name), |build| {
            if self.arch != host {
                build.args(["--arch", &self.arch.to_string()]);
            }
            if (self.arch, self.profile) != (host, self.profile.composer()) {
                build.arg("--guest-init").arg(self.program("guest-init"));
            }
            build
        })
    }

    /// Builds `recipe` (relative to the workspace) into the file `image`, with further `options`.
    fn compose(
        &self,
        recipe: &Path,
        image: PathBuf,
        options: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<PathBuf> {
        let images = image.parent().context("the image is in no folder")?;
        fs::create_dir_all(images).with_context(|| format!("{} could not be made", images.display()))?;
        let mut build = Command::new(self.imgtool()?);
        build.current_dir(workspace()).arg("build").arg(recipe);
        let status = options(build.arg("-o").arg(&image)).status();
        let status = status.context("imgtool could not be started")?;
        ensure!(
            status.success(),
            "imgtool could not build {} ({status}); it says why above",
            recipe.display()
        );
        Ok(image)
    }
}

/// A copy of a recipe below `scratch`, with all that lies beside it, called `name` and changed.
fn changed(recipe: &str, name: String, scratch: &Path, change: impl Fn(String) -> String) -> Result<PathBuf> {
    let from = workspace().join(recipe);
    let folder = scratch.join("recipes");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(from.parent().context("the recipe is in no folder")?)
        .arg(&folder)
        .status();
    ensure!(
        copied.context("cp could not be started")?.success(),
        "{recipe} could not be copied"
    );
    let copy = folder.join(format!("{name}.toml"));
    fs::write(&copy, change(fs::read_to_string(&from)?))?;
    Ok(copy)
}

/// The name of a recipe's file without its ending.
fn stem(recipe: &str) -> Result<String> {
    let stem = Path::new(recipe)
        .file_stem()
        .context("the recipe has no file name")?;
    Ok(stem.to_string_lossy().into_owned())
}

/// Copies a program without its symbols and line tables: guest-init is in every initramfs, which the guest
/// unpacks.
fn strip(arch: Arch, from: &Path, to: &Path) -> Result<()> {
    let strip = match arch == Arch::host()? {
        true => "strip".to_owned(),
        false => format!("{arch}-linux-gnu-strip"),
    };
    let status = Command::new(&strip)
        .arg("-o")
        .args([to, from])
        .status()
        .with_context(|| {
            format!("{strip} could not be started; it is part of binutils, which compilers need")
        })?;
    if !status.success() {
        bail!("{strip} could not copy {} ({status})", from.display());
    }
    Ok(())
}
