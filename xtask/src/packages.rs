//! Packages of the host that the tests need: installed on Debian as root, otherwise named.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use kiln_tests::arch::Arch;
use kiln_tests::rootless;

/// A program that tests call (or a file, by its absolute path), and the Debian package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    program: &'static str,
    package: &'static str,
}

const E2FSPROGS: [Need; 2] = [
    Need {
        program: "mke2fs",
        package: "e2fsprogs",
    },
    Need {
        program: "e2fsck",
        package: "e2fsprogs",
    },
];

/// What `cargo xtask lab ARCH` needs.
pub fn lab(arch: Arch) -> Vec<Need> {
    let qemu = match arch {
        Arch::X86_64 => Need {
            program: "qemu-system-x86_64",
            package: "qemu-system-x86",
        },
        Arch::Aarch64 => Need {
            program: "qemu-system-aarch64",
            package: "qemu-system-arm",
        },
    };
    E2FSPROGS.into_iter().chain([qemu]).collect()
}

/// What `cargo xtask bench-image` needs.
pub fn image() -> Vec<Need> {
    let debstrap = Need {
        program: "mmdebstrap",
        package: "mmdebstrap",
    };
    E2FSPROGS.into_iter().chain([debstrap]).collect()
}

/// What `cargo xtask deb` needs.
pub fn deb() -> Vec<Need> {
    [("dpkg-deb", "dpkg"), ("gzip", "gzip"), ("git", "git")]
        .into_iter()
        .map(|(program, package)| Need { program, package })
        .collect()
}

/// What `cargo xtask cross ARCH` needs. The C library's package is known by a file of it.
pub fn cross(arch: Arch) -> Vec<Need> {
    let needs = match arch {
        Arch::X86_64 => [
            ("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
            ("/usr/x86_64-linux-gnu/lib/libc.a", "libc6-dev-amd64-cross"),
        ],
        Arch::Aarch64 => [
            ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
            ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),
        ],
    };
    needs
        .into_iter()
        .map(|(program, package)| Need { program, package })
        .collect()
}

/// What `cargo xtask test` needs.
pub fn test() -> Vec<Need> {
    let more = [
        ("cc", "gcc"),
        ("strace", "strace"),
        ("valgrind", "valgrind"),
        ("newuidmap", "uidmap"),
        ("dpkg-deb", "dpkg"),
        ("gpg", "gpg"),
        ("gpg-agent", "gpg-agent"),
        ("minisign", "minisign"),
        ("getfacl", "acl"),
        ("getfattr", "attr"),
        ("getcap", "libcap2-bin"),
        ("ssh", "openssh-client"),
        ("setpriv", "util-linux"),
        ("curl", "curl"),
        ("umoci", "umoci"),
    ]
    .map(|(program, package)| Need { program, package });
    let labs = [Arch::X86_64, Arch::Aarch64].into_iter().flat_map(lab);
    labs.chain(image()).chain(more).collect()
}

/// Makes the user that builds images without privileges, with a range of subordinate numbers, if this is
/// root.
pub fn ensure_rootless_user() -> Result<()> {
    if rootless::missing().is_none() || !is_root()? {
        return Ok(());
    }
    eprintln!("xtask: making the user {}", rootless::USER);
    let ranges = "2000000000-2000065535";
    for command in [
        format!(
            "id {0} 2>/dev/null || useradd --system --no-create-home --shell /usr/sbin/nologin {0}",
            rootless::USER
        ),
        format!(
            "usermod --add-subuids {ranges} --add-subgids {ranges} {}",
            rootless::USER
        ),
    ] {
        let status = Command::new("sh")
            .args(["-c", &command])
            .status()
            .context("sh could not be run")?;
        if !status.success() {
            bail!("`{command}` failed: {status}");
        }
    }
    Ok(())
}

/// Makes sure that every need is met: installs the packages when this is root on a Debian host, else says
/// what to install.
pub fn ensure(needs: Vec<Need>) -> Result<()> {
    let mut missing: Vec<&str> = needs
        .iter()
        .filter(|need| !on_path(need.program))
        .map(|need| need.package)
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !on_path("apt-get") {
        bail!(
            "these are needed and not installed: {} (names of Debian's packages)",
            missing.join(", ")
        );
    }
    if !is_root()? {
        bail!("packages are missing; run as root: {by_hand}");
    }
    eprintln!("xtask: installing {}", missing.join(" "));
    apt(&["update"])?;
    let install: Vec<&str> = ["install", "-y", "--no-install-recommends"]
        .into_iter()
        .chain(missing.clone())
        .collect();
    if apt(&install).is_err() {
        // A host that took some of QEMU's packages from backports refuses the rest from the release itself.
        let suite = backports_suite()?;
        let install = ["install", "-y", "--no-install-recommends", "-t", &suite]
            .into_iter()
            .chain(missing);
        apt(&install.collect::<Vec<_>>()).with_context(|| format!("try by hand: {by_hand}"))?;
    }
    Ok(())
}

/// Whether a program of this name can be called.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}

fn is_root() -> Result<bool> {
    let id = Command::new("id")
        .arg("-u")
        .output()
        .context("`id -u` could not be run")?;
    Ok(id.stdout.trim_ascii() == b"0")
}

fn apt(args: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(["-o", "Dpkg::Use-Pty=0", "-qq"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .context("apt-get could not be run")?;
    if !status.success() {
        bail!("apt-get {} failed: {status}", args.join(" "));
    }
    Ok(())
}

/// Makes the backports of this release known to apt and returns their suite.
fn backports_suite() -> Result<String> {
    let release = std::fs::read_to_string("/etc/os-release").context("/etc/os-release could not be read")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no VERSION_CODENAME: is this Debian?")?;
    let suite = format!("{codename}-backports");
    let list = Path::new("/etc/apt/sources.list.d/kiln-backports.sources");
    let source = format!(
        "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    std::fs::write(list, source).with_context(|| format!("{} could not be written", list.display()))?;
    apt(&["update"])?;
    Ok(suite)
}
