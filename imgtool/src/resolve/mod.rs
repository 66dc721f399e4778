//! From the packages that a recipe asks for to the packages that an image holds.

pub mod relation;
mod solver;
mod universe;
pub mod version;

use std::borrow::Cow;
use std::collections::BTreeSet;

use displaydoc::Display;
use solver::{Clause, Solver};
pub use universe::{Id, MalformedIndex, MultiArch, Package, Priority, Universe};

use crate::advice::Advice;
use crate::recipe::Variant;

/// Why no set of packages was found.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {0}
    Index(#[from] MalformedIndex),
    /// {0}
    Syntax(#[from] relation::ParseRelationError),
    /// no repository of the recipe has package {name}{nearest}
    Missing {
        /// The name.
        name: String,
        /// A similar name that exists, as a sentence.
        nearest: String,
    },
    /// no repository of the recipe has kernel package {name} for {arch}: images of 32-bit programs boot the
    /// 64-bit kernel unless the recipe says otherwise
    NoKernel64 {
        /// The name.
        name: String,
        /// Debian's name of the kernel's architecture.
        arch: String,
    },
    /// The wanted packages contradict each other.
    #[displaydoc("these packages cannot be installed together:\n    {0}")]
    Contradiction(String),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Index(error) => error.advice(),
            Self::Syntax(..) => {
                Some("write `name`, `name (>= version)`, `a | b`, or `-name` to leave one out".into())
            }
            Self::Missing { .. } => Some(
                "check its name and suite at https://packages.debian.org, or add a component or \
                 repository"
                    .into(),
            ),
            Self::NoKernel64 { name, arch } => Some(
                format!("kernel.package = \"linux-image-{arch}\", or \"{name}:i386\" for a 32-bit kernel")
                    .into(),
            ),
            Self::Contradiction(..) => {
                Some("change the packages that the recipe asks for or leaves out".into())
            }
        }
    }
}

/// What to install.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The set that the image starts from.
    pub variant: Variant,
    /// The recipe's `packages`: relations, and names with `-` in front.
    pub packages: Vec<String>,
    /// Whether recommended packages are installed, too.
    pub recommends: bool,
}

/// The architectures beside `native` of which the entries of a recipe's `packages` name packages, such as
/// `libc6:i386`.
pub fn foreign_architectures(packages: &[String], native: &str) -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for entry in packages.iter().filter(|entry| !entry.starts_with('-')) {
        for relation in relation::parse_group(entry)? {
            let of = relation.qualifier;
            found.extend(
                of.filter(|of| !["any", "native", native].contains(of))
                    .map(str::to_owned),
            );
        }
    }
    Ok(found)
}

/// Chooses packages, sorted by name.
pub fn resolve(universe: &Universe<'_>, wanted: &Wanted) -> Result<Vec<Id>, Error> {
    let mut excluded = BTreeSet::new();
    let mut clauses = Vec::new();
    for entry in &wanted.packages {
        match entry.strip_prefix('-') {
            Some(name) => drop(excluded.insert(name.trim().to_owned())),
            None => {
                let group = relation::parse_group(entry)?;
                check_exists(universe, &group)?;
                clauses.push(Clause { owner: None, group });
            }
        }
    }
    for id in base_set(universe, wanted.variant) {
        let name = universe.get(id).name;
        if !excluded.contains(name) {
            let group = vec![relation::Relation {
                name,
                qualifier: None,
                version: None,
            }];
            clauses.push(Clause { owner: None, group });
        }
    }
    Solver::solve(universe, &excluded, clauses, wanted.recommends)
        .map_err(|contradiction| Error::Contradiction(contradiction.0.join("\n    ")))
}

/// The packages of a universe as a recipe would ask for exactly these versions.
pub fn as_wanted(universe: &Universe<'_>) -> Vec<String> {
    let ids = universe.newest().into_iter();
    ids.map(|id| format!("{} (= {})", universe.show(id), universe.get(id).version))
        .collect()
}

/// The kernel package and, of what it depends on, the packages that hold the kernel and its modules: never
/// the initramfs builder, boot loader and helpers that an installed system would want.
pub fn resolve_kernel(universe: &Universe<'_>, package: &str) -> Result<Vec<Id>, Error> {
    let group = relation::parse_group(package)?;
    check_exists(universe, &group)?;
    let mut found: Vec<Id> = Vec::new();
    let mut queue: Vec<Id> = group
        .iter()
        .flat_map(|r| universe.candidates(r, Some(universe.native())))
        .take(1)
        .collect();
    while let Some(id) = queue.pop() {
        if found.contains(&id) {
            continue;
        }
        found.push(id);
        for group in universe.get(id).depends()? {
            let part = group.iter().find(|relation| is_kernel_part(relation.name));
            queue.extend(part.and_then(|relation| {
                let found = universe.candidates(relation, Some(universe.native()));
                found.first().copied()
            }));
        }
    }
    found.sort_by_key(|id| universe.get(*id).name);
    Ok(found)
}

/// Before 6.19 `linux-image-VERSION` holds everything; from then on it depends on `linux-binary-*` and
/// `linux-modules-*`.
fn is_kernel_part(name: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"]
        .iter()
        .any(|p| name.starts_with(p))
}

fn base_set(universe: &Universe<'_>, variant: Variant) -> Vec<Id> {
    let least = match variant {
        Variant::Extract => return Vec::new(),
        Variant::Essential => None,
        Variant::Minbase => Some(Priority::Required),
        Variant::Important => Some(Priority::Important),
        Variant::Standard => Some(Priority::Standard),
    };
    let belongs = |id: &Id| {
        let package = universe.get(*id);
        let needed = least.is_some_and(|least| package.priority <= least || package.name == "apt");
        (package.essential || needed) && universe.counts_as(*id) == universe.native()
    };
    universe.newest().into_iter().filter(belongs).collect()
}

fn check_exists(universe: &Universe<'_>, group: &[relation::Relation<'_>]) -> Result<(), Error> {
    let known = |relation: &relation::Relation<'_>| {
        let any = relation::Relation {
            version: None,
            ..relation.clone()
        };
        !universe.candidates(&any, Some(universe.native())).is_empty()
    };
    if group.iter().any(known) {
        return Ok(());
    }
    let first = &group[0];
    let (name, suffix) = match first.qualifier {
        None => (first.name.to_owned(), String::new()),
        Some(arch) => (format!("{}:{arch}", first.name), format!(" of {arch}")),
    };
    let names = universe.names().filter(|name| *name != first.name);
    let nearest = match universe.versions(first.name) {
        [] => crate::spelling::nearest(first.name, names).map(|near| format!("; there is {near}")),
        [other, ..] => {
            let arch = universe.counts_as(*other);
            Some(format!("; there is none{suffix}, but one of {arch}"))
        }
    };
    Err(Error::Missing {
        name,
        nearest: nearest.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests;
