//! The lock file: which packages, exactly, an image is made of. It is next to the recipe and belongs under
//! version control with it.
//!
//! A build uses the lock file as long as it answers the recipe's question (its `inputs` are the digest of
//! everything that resolution depends on) and makes it where it is missing. `imgtool lock` asks the archive
//! anew; `--locked` refuses to build when the lock file would have to change.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use ami::Architecture;
use displaydoc::Display;
use serde::{Deserialize, Serialize};

use crate::advice::{Advice, Reason};
use crate::recipe::Recipe;
use crate::store::Sha256;

/// The version of the format that this program writes and reads.
const VERSION: u32 = 1;
/// A lock file of 10,000 packages has 4 MB.
const MAX_LOCK: u64 = 64 << 20;
const HEADER: &str = "# Written by `imgtool lock`: the packages of the recipe beside it. Do not edit.\n\n";

/// Why a lock file is not usable.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// cannot use lock file {path}: {source}
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// lock file {path} is damaged: {reason}
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        reason: Reason,
    },
    /// lock file {path} does not lock {arch}, and --locked forbids to change it
    Missing {
        /// The file.
        path: PathBuf,
        /// The architecture.
        arch: Architecture,
    },
    /// the recipe asks for other packages than lock file {path} was made for, and --locked forbids to change
    /// it
    Outdated {
        /// The file.
        path: PathBuf,
    },
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Io { .. } => "check the permissions of its directory".into(),
            Self::Damaged { .. } => "`imgtool lock` to write it anew".into(),
            Self::Missing { .. } => "`imgtool lock`, and keep the file with the recipe".into(),
            Self::Outdated { .. } => "`imgtool lock`".into(),
        })
    }
}

/// A package of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `all` or Debian's name of the architecture.
    pub architecture: String,
    /// The digest of its `.deb`.
    pub sha256: Sha256,
    /// The size of its `.deb` in bytes.
    pub size: u64,
    /// Where it was found.
    pub url: String,
    /// It holds the kernel and is not part of the root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kernel: bool,
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// The packages for one architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The digest of what they were chosen by.
    pub inputs: Sha256,
    /// The packages, by name; those of the kernel at the end.
    #[serde(rename = "package", default)]
    pub packages: Vec<Package>,
}

impl Section {
    /// The packages as text, one a line: what a digest of the package set is taken of.
    pub fn text(&self) -> String {
        let line = |package: &Package| {
            let Package {
                name,
                version,
                architecture,
                sha256,
                size,
                url: _,
                kernel,
            } = package;
            let kernel = if *kernel { " kernel" } else { "" };
            format!("{name} {version} {architecture} {sha256} {size}{kernel}\n")
        };
        self.packages.iter().map(line).collect()
    }
}

/// A lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    version: u32,
    /// Sections by architecture.
    #[serde(default)]
    arch: BTreeMap<String, Section>,
}

impl Default for Lock {
    fn default() -> Self {
        Self {
            version: VERSION,
            arch: BTreeMap::new(),
        }
    }
}

/// `examples/hello.toml` is locked by `examples/hello.lock`.
pub fn path_for(recipe: &Path) -> PathBuf {
    recipe.with_extension("lock")
}

impl Lock {
    /// Reads a lock file; an absent one is empty.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let damaged = |reason: Reason| Error::Damaged {
            path: path.to_owned(),
            reason,
        };
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(io(e)),
            Ok(metadata) if metadata.len() > MAX_LOCK => {
                return Err(damaged(format!("it is longer than {MAX_LOCK} bytes").into()));
            }
            Ok(_) => {}
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let lock: Self = toml::from_str(&text).map_err(|e| damaged(e.into()))?;
        match lock.version {
            VERSION => Ok(lock),
            other => Err(damaged(
                format!("its version is {other}, this program knows {VERSION}").into(),
            )),
        }
    }

    /// The section of an architecture, if it answers the recipe's question.
    pub fn current(&self, arch: Architecture, inputs: &Sha256) -> Option<&Section> {
        self.arch
            .get(arch.as_str())
            .filter(|section| section.inputs == *inputs)
    }

    /// As [`Lock::current`]; the error says what `--locked` refuses.
    pub fn demand(&self, path: &Path, arch: Architecture, inputs: &Sha256) -> Result<&Section, Error> {
        let path = || path.to_owned();
        let section = self
            .arch
            .get(arch.as_str())
            .ok_or(Error::Missing { path: path(), arch })?;
        match section.inputs == *inputs {
            true => Ok(section),
            false => Err(Error::Outdated { path: path() }),
        }
    }

    /// Replaces the section of an architecture.
    pub fn set(&mut self, arch: Architecture, section: Section) {
        self.arch.insert(arch.as_str().to_owned(), section);
    }

    /// Writes the file, all of it or nothing.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let io = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        let text = toml::to_string(self).map_err(|e| Error::Damaged {
            path: path.to_owned(),
            reason: e.into(),
        })?;
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        let mut file = builder.permissions(readable()).tempfile_in(dir).map_err(io)?;
        file.write_all(HEADER.as_bytes())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(io)?;
        file.persist(path).map_err(|e| io(e.error))?;
        Ok(())
    }
}

fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// The digest of everything in a recipe that decides which packages are chosen; `base` is the id of its base.
pub fn inputs(recipe: &Recipe, arch: Architecture, base: Option<&str>) -> Sha256 {
    let question = (
        VERSION,
        arch,
        recipe.variant,
        recipe.packages_for(arch),
        recipe.recommends,
        &recipe.distribution,
        // A kernel that is built comes with the packages that build it, and those are of the building
        // machine.
        recipe.kernel_package(arch).or_else(|| {
            let build = recipe.kernel.build?;
            Some(format!("{build:?} built on {}", crate::microvm::builder()))
        }),
        base,
    );
    // Serializing plain data to memory does not fail.
    Sha256::of(&serde_json::to_vec(&question).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section() -> Section {
        let package = Package {
            name: "a".into(),
            version: "1:2.0-1".into(),
            architecture: "all".into(),
            sha256: Sha256::of(b"a"),
            size: 1,
            url: "http://x/a.deb".into(),
            kernel: false,
        };
        Section {
            inputs: Sha256::of(b"question"),
            packages: vec![package],
        }
    }

    #[test]
    fn a_lock_file_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_for(&dir.path().join("hello.toml"));
        assert!(path.ends_with("hello.lock"));
        let mut lock = Lock::load(&path).unwrap();
        lock.set(Architecture::X86_64, section());
        lock.save(&path).unwrap();
        let again = Lock::load(&path).unwrap();
        assert_eq!(again, lock);
        assert!(
            again
                .current(Architecture::X86_64, &Sha256::of(b"question"))
                .is_some()
        );
        assert!(
            again
                .current(Architecture::X86_64, &Sha256::of(b"other"))
                .is_none()
        );
        assert!(matches!(
            again.demand(&path, Architecture::Arm64, &Sha256::of(b"")),
            Err(Error::Missing { .. })
        ));
        assert!(matches!(
            again.demand(&path, Architecture::X86_64, &Sha256::of(b"")),
            Err(Error::Outdated { .. })
        ));
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        for text in ["version = 2", "version = 1\nmore = 1", "version"] {
            std::fs::write(&path, text).unwrap();
            let error = Lock::load(&path).unwrap_err().report();
            assert!(error.contains("damaged") && error.contains("try:"), "{error}");
        }
    }

    #[test]
    fn the_inputs_digest_changes_with_what_resolution_depends_on() {
        let parse = |text: &str| toml::from_str::<Recipe>(text).unwrap();
        let base = inputs(&parse("name = 'a'"), Architecture::X86_64, None);
        assert_eq!(
            base,
            inputs(
                &parse("name = 'b'\ncommand-line = 'quiet'"),
                Architecture::X86_64,
                None
            )
        );
        for text in [
            "name = 'a'\npackages = ['x']",
            "name = 'a'\ndistribution.suite = 'sid'",
            "name = 'a'\nkernel.package = 'k'",
            "name = 'a'\nkernel.build = 'microvm'",
        ] {
            assert_ne!(base, inputs(&parse(text), Architecture::X86_64, None), "{text}");
        }
        assert_ne!(base, inputs(&parse("name = 'a'"), Architecture::Arm64, None));
    }
}
