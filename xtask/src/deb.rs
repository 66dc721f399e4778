//! `cargo xtask deb`: a Debian package of the programs as they ship.
//!
//! The programs stand together in `/usr/lib/kiln`, because `imgtool` looks for `guest-init` in its own
//! directory; `/usr/bin` has links to the two that a person calls. Manual pages and completions come from the
//! programs themselves. The same sources give the same bytes: all times in the package are those of the last
//! commit.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, PROGRAMS, Profile, kiln_dir, workspace};

use crate::packages;

/// Where the programs stand in the package.
const LIBRARY: &str = "usr/lib/kiln";
/// The programs that a person calls.
const COMMANDS: [&str; 2] = ["imgtool", "vmm"];
/// Completions: the shell, the directory, and what stands before and after the program's name in the file's.
const COMPLETIONS: [(&str, &str, &str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions", "", ""),
    ("zsh", "usr/share/zsh/vendor-completions", "_", ""),
    ("fish", "usr/share/fish/vendor_completions.d", "", ".fish"),
];

/// Builds the programs and the package; prints the package's path.
pub fn deb() -> Result<u8> {
    packages::ensure(packages::deb())?;
    let arch = Arch::host()?;
    let dist = Dist::build(Profile::Release)?;
    let root = kiln_dir().join("deb");
    let _ = fs::remove_dir_all(&root);
    fill(&dist, &root)?;
    let installed_size = kibibytes(&root)?;
    let control = control(arch, installed_size);
    write(&root.join("DEBIAN/control"), &control)?;
    let name = format!("kiln_{}_{}.deb", env!("CARGO_PKG_VERSION"), arch.debian());
    let package = Profile::Release.dir().join(name);
    let time = run(Command::new("git")
        .args(["log", "-1", "--format=%ct"])
        .current_dir(workspace()))?;
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zxz", "--build"])
        .args([&root, &package])
        .env("SOURCE_DATE_EPOCH", time.trim()))?;
    println!("{}", package.display());
    Ok(0)
}

/// Lays the package's files out below `root`.
fn fill(dist: &Dist, root: &Path) -> Result<()> {
    for program in PROGRAMS {
        let to = root.join(LIBRARY).join(program);
        make(to.parent().unwrap_or(root))?;
        fs::copy(dist.program(program), &to)
            .with_context(|| format!("{program} could not be copied to {}", to.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    make(&root.join("usr/bin"))?;
    let pages = root.join("usr/share/man/man1");
    make(&pages)?;
    for command in COMMANDS {
        let link = root.join("usr/bin").join(command);
        symlink(Path::new("../lib/kiln").join(command), &link)
            .with_context(|| format!("{} could not be linked", link.display()))?;
        let program = dist.program(command);
        run(Command::new(&program).arg("man").arg(&pages))?;
        for (shell, directory, before, after) in COMPLETIONS {
            let text = run(Command::new(&program).args(["completions", shell]))?;
            write(
                &root.join(directory).join(format!("{before}{command}{after}")),
                &text,
            )?;
        }
    }
    for page in entries(&pages)? {
        // `-n`: no name and no time in the file.
        run(Command::new("gzip").args(["-9n"]).arg(page))?;
    }
    let documents = root.join("usr/share/doc/kiln");
    make(&documents)?;
    for (from, to) in [
        ("README.md", "README.md"),
        ("CHANGELOG.md", "CHANGELOG.md"),
        ("LICENSE", "copyright"),
    ] {
        let text = fs::read_to_string(workspace().join(from))
            .with_context(|| format!("{from} could not be read"))?;
        write(&documents.join(to), &text)?;
    }
    Ok(())
}

/// The package's description (Debian Policy, 5.3). The programs are static: they need no library. mke2fs and
/// the like are not called; `e2fsprogs` is what people check images with.
fn control(arch: Arch, installed_size: u64) -> String {
    format!(
        "Package: kiln\n\
         Version: {version}\n\
         Architecture: {architecture}\n\
         Maintainer: The Kiln authors <kiln@localhost>\n\
         Installed-Size: {installed_size}\n\
         Section: otherosfs\n\
         Priority: optional\n\
         Suggests: e2fsprogs, openssh-client, uidmap\n\
         Description: compose machine images and boot them in a minimal hypervisor\n \
         imgtool composes a machine image (one file: kernel, initramfs, ext4 root)\n \
         from a recipe and Debian packages. vmm boots instances of it, on KVM or on\n \
         its own software processor.\n",
        version = env!("CARGO_PKG_VERSION"),
        architecture = arch.debian(),
    )
}

/// What is below `root`, in KiB, each file rounded up (Debian Policy, 5.6.20).
fn kibibytes(root: &Path) -> Result<u64> {
    let mut sum = 0;
    for path in entries(root)? {
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("{}", path.display()))?;
        sum += match metadata.is_dir() {
            true => 1 + kibibytes(&path)?,
            false => metadata.len().div_ceil(1024),
        };
    }
    Ok(sum)
}

/// The entries of a directory, in the order of their names.
fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing =
        fs::read_dir(directory).with_context(|| format!("{} could not be listed", directory.display()))?;
    let mut paths = listing
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Runs a command to its end and returns what it wrote to its standard output.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} could not be started"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    match String::from_utf8(output.stdout) {
        Ok(text) => Ok(text),
        Err(_) => bail!("{command:?} did not print text"),
    }
}

fn make(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("{} could not be made", directory.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    make(path.parent().unwrap_or(path))?;
    fs::write(path, text).with_context(|| format!("{} could not be written", path.display()))
}
