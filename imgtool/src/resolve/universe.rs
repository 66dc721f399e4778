//! All packages that the repositories offer, and which of them satisfy a relation.

use std::borrow::Cow;
use std::collections::HashMap;

use deb822_fast::borrowed::{BorrowedParagraph, iter_paragraphs_borrowed};
use displaydoc::Display;

use super::relation::{self, Group, Relation};
use super::version;
use crate::advice::Advice;
use crate::fetch::Index;
use crate::store::Sha256;

/// A package's place in [`Universe::packages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(usize);

/// How important Debian finds a package (Policy §2.5), most important first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Needed for dpkg to work.
    Required,
    /// Expected on any Unix system.
    Important,
    /// A small but not too limited text system.
    Standard,
    /// Everything else.
    Optional,
}

/// The field Multi-Arch (deb-control(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MultiArch {
    /// It serves packages of its own architecture.
    No,
    /// It may be installed for several architectures at a time, in one version.
    Same,
    /// It serves packages of any architecture.
    Foreign,
    /// It serves packages of any architecture where they ask for `name:any`.
    Allowed,
}

/// One version of one package.
#[derive(Debug)]
pub struct Package<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its version.
    pub version: &'a str,
    /// `all` or an architecture, by Debian's name.
    pub arch: &'a str,
    /// `Essential: yes`.
    pub essential: bool,
    /// Its priority.
    pub priority: Priority,
    /// What packages of other architectures may make of it.
    pub multi_arch: MultiArch,
    /// The archive's base address.
    pub url: &'a str,
    /// Its path below `url`.
    pub filename: &'a str,
    /// The size of its `.deb` in bytes.
    pub size: u64,
    /// The digest of its `.deb`.
    pub sha256: Sha256,
    depends: [Option<Cow<'a, str>>; 2],
    recommends: Option<Cow<'a, str>>,
    against: [Option<Cow<'a, str>>; 2],
    provides: Option<Cow<'a, str>>,
}

impl Package<'_> {
    /// What it needs: Pre-Depends, then Depends.
    pub fn depends(&self) -> Result<Vec<Group<'_>>, relation::ParseRelationError> {
        parse_all(&self.depends)
    }

    /// What it recommends.
    pub fn recommends(&self) -> Result<Vec<Group<'_>>, relation::ParseRelationError> {
        parse_all(std::slice::from_ref(&self.recommends))
    }

    /// What cannot be installed with it: Conflicts and Breaks.
    pub fn against(&self) -> Result<Vec<Group<'_>>, relation::ParseRelationError> {
        parse_all(&self.against)
    }

    /// The virtual packages that it provides, with their versions.
    pub fn provides(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let text = self.provides.as_deref().unwrap_or_default();
        text.split(',').filter_map(|part| {
            let relation = relation::parse_group(part.trim()).ok()?.into_iter().next()?;
            Some((relation.name, relation.version.map(|(_, version)| version)))
        })
    }
}

fn parse_all<'a>(fields: &'a [Option<Cow<'_, str>>]) -> Result<Vec<Group<'a>>, relation::ParseRelationError> {
    let mut groups = Vec::new();
    for field in fields.iter().flatten() {
        groups.extend(relation::parse_field(field)?);
    }
    Ok(groups)
}

/// Every package of the indexes that fits the architectures.
#[derive(Debug)]
pub struct Universe<'a> {
    /// The image's own first.
    architectures: Vec<&'a str>,
    packages: Vec<Package<'a>>,
    /// Newest version first.
    by_name: HashMap<&'a str, Vec<Id>>,
    /// In the order in which a free choice between providers prefers them.
    by_provided: HashMap<String, Vec<(Id, Option<String>)>>,
}

/// the package index of {suite} is malformed: {reason}
#[derive(Debug, Display, thiserror::Error)]
pub struct MalformedIndex {
    suite: String,
    reason: String,
}

impl Advice for MalformedIndex {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some("another mirror".into())
    }
}

impl<'a> Universe<'a> {
    /// Reads the indexes for Debian architecture `native` and, beside it, `foreign`. Of equal versions the
    /// first index's counts.
    pub fn new(
        indexes: &'a [Index],
        native: &'a str,
        foreign: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, MalformedIndex> {
        let mut universe = Self {
            architectures: std::iter::once(native).chain(foreign).collect(),
            packages: Vec::new(),
            by_name: HashMap::new(),
            by_provided: HashMap::new(),
        };
        for index in indexes {
            for paragraph in iter_paragraphs_borrowed(&index.text) {
                let malformed = |reason| MalformedIndex {
                    suite: index.suite.clone(),
                    reason,
                };
                let paragraph = paragraph.map_err(|e| malformed(e.to_string()))?;
                let package = read_package(&paragraph, &index.url).map_err(malformed)?;
                if package.arch == "all" || universe.architectures.contains(&package.arch) {
                    universe.add(package);
                }
            }
        }
        universe.sort();
        Ok(universe)
    }

    fn add(&mut self, package: Package<'a>) {
        let id = Id(self.packages.len());
        let versions = self.by_name.entry(package.name).or_default();
        if versions
            .iter()
            .map(|other| &self.packages[other.0])
            .any(|other| (other.version, other.arch) == (package.version, package.arch))
        {
            return;
        }
        versions.push(id);
        for (name, version) in package.provides() {
            let providers = self.by_provided.entry(name.to_owned()).or_default();
            providers.push((id, version.map(str::to_owned)));
        }
        self.packages.push(package);
    }

    fn sort(&mut self) {
        let packages = &self.packages;
        let newer = |a: &Id, b: &Id| {
            let order = version::compare(packages[b.0].version, packages[a.0].version);
            order.unwrap_or(std::cmp::Ordering::Equal)
        };
        self.by_name
            .values_mut()
            .for_each(|versions| versions.sort_by(newer));
        for providers in self.by_provided.values_mut() {
            providers.sort_by(|(a, _), (b, _)| {
                let (pa, pb) = (&packages[a.0], &packages[b.0]);
                let rank = |p: &Package<'_>| (!p.essential, p.priority);
                rank(pa)
                    .cmp(&rank(pb))
                    .then_with(|| pa.name.cmp(pb.name))
                    .then_with(|| newer(a, b))
            });
        }
    }

    /// The package of that id.
    pub fn get(&self, id: Id) -> &Package<'a> {
        &self.packages[id.0]
    }

    /// The versions of a package, newest first.
    pub fn versions(&self, name: &str) -> &[Id] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// The architectures, the image's own first.
    pub fn architectures(&self) -> &[&'a str] {
        &self.architectures
    }

    /// The image's own architecture.
    pub fn native(&self) -> &'a str {
        self.architectures[0]
    }

    /// The architecture that a package counts as: `all` is the image's own.
    pub fn counts_as(&self, id: Id) -> &'a str {
        match self.get(id).arch {
            "all" => self.native(),
            arch => arch,
        }
    }

    /// A package's name as dpkg shows it: with its architecture if that is not the image's own.
    pub fn show(&self, id: Id) -> Cow<'a, str> {
        let (name, arch) = (self.get(id).name, self.counts_as(id));
        match arch == self.native() {
            true => name.into(),
            false => format!("{name}:{arch}").into(),
        }
    }

    /// What packages are sorted by: the name, and of a name the image's own architecture first.
    pub fn sort_key(&self, id: Id) -> (&'a str, Option<usize>) {
        let arch = self.counts_as(id);
        (
            self.get(id).name,
            self.architectures.iter().position(|other| *other == arch),
        )
    }

    /// The newest version of each package for each architecture.
    pub fn newest(&self) -> Vec<Id> {
        let mut ids = Vec::new();
        for versions in self.by_name.values() {
            for arch in &self.architectures {
                ids.extend(versions.iter().copied().find(|id| self.counts_as(*id) == *arch));
            }
        }
        ids.sort_by_key(|id| self.sort_key(*id));
        ids
    }

    /// The names of all real packages.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.by_name.keys().copied()
    }

    /// The packages that satisfy a relation of a package of architecture `asker`, in the order of preference:
    /// versions of the package itself, newest first, then providers; of each first what is of that
    /// architecture. With no asker, the packages that a Conflicts or Breaks means: those of every
    /// architecture.
    pub fn candidates(&self, relation: &Relation<'_>, asker: Option<&str>) -> Vec<Id> {
        let own = self.versions(relation.name).iter().copied();
        let mut own: Vec<Id> = own
            .filter(|id| relation.accepts(Some(self.get(*id).version)))
            .filter(|id| self.arch_fits(relation, *id, asker))
            .collect();
        let provided = self.by_provided.get(relation.name).into_iter().flatten();
        let mut provided: Vec<Id> = provided
            .filter(|(_, version)| relation.accepts(version.as_deref()))
            .map(|(id, _)| *id)
            .filter(|id| self.provider_fits(relation, *id, asker))
            .collect();
        if self.architectures.len() > 1 {
            let is_other = |id: &Id| asker.is_some_and(|asker| self.counts_as(*id) != asker);
            own.sort_by_key(is_other);
            provided.sort_by_key(is_other);
        }
        for id in provided {
            if !own.contains(&id) {
                own.push(id);
            }
        }
        own
    }

    fn arch_fits(&self, relation: &Relation<'_>, id: Id, asker: Option<&str>) -> bool {
        let package = self.get(id);
        match (relation.qualifier, asker) {
            (Some("any"), Some(_)) => package.multi_arch == MultiArch::Allowed || package.arch == "all",
            _ => self.provider_fits(relation, id, asker),
        }
    }

    /// As [`Universe::arch_fits`] for a package that provides what is asked for: of the same architecture it
    /// serves `name:any` as well.
    fn provider_fits(&self, relation: &Relation<'_>, id: Id, asker: Option<&str>) -> bool {
        let (arch, multi_arch) = (self.counts_as(id), self.get(id).multi_arch);
        match (relation.qualifier, asker) {
            (None | Some("any"), None) => true,
            (None, Some(asker)) => arch == asker || multi_arch == MultiArch::Foreign,
            (Some("any"), Some(asker)) => arch == asker || multi_arch == MultiArch::Allowed,
            (Some("native"), _) => arch == self.native(),
            (Some(wanted), _) => arch == wanted,
        }
    }

    /// Whether a Conflicts or Breaks means the package, itself or by what it provides.
    pub fn is_meant(&self, id: Id, relation: &Relation<'_>) -> bool {
        let package = self.get(id);
        if !self.provider_fits(relation, id, None) {
            return false;
        }
        (package.name == relation.name && relation.accepts(Some(package.version)))
            || package
                .provides()
                .any(|(name, version)| name == relation.name && relation.accepts(version))
    }
}

fn read_package<'a>(paragraph: &BorrowedParagraph<'a>, url: &'a str) -> Result<Package<'a>, String> {
    let name = paragraph
        .get_single("Package")
        .ok_or("a paragraph names no package")?;
    let wrong = |field: &str| format!("package {name} has no proper field {field}");
    let single = |field: &str| paragraph.get_single(field).ok_or_else(|| wrong(field));
    let text = |field: &str| {
        let field = paragraph.get_field(field)?;
        Some(
            field
                .as_single_line()
                .map_or_else(|| field.join().into(), Cow::Borrowed),
        )
    };
    let filename = single("Filename")?;
    let filename = filename.strip_prefix("./").unwrap_or(filename);
    if filename.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(wrong("Filename"));
    }
    Ok(Package {
        name,
        version: single("Version")?,
        arch: single("Architecture")?,
        essential: paragraph.get_single("Essential") == Some("yes"),
        priority: match paragraph.get_single("Priority") {
            Some("required") => Priority::Required,
            Some("important") => Priority::Important,
            Some("standard") => Priority::Standard,
            _ => Priority::Optional,
        },
        multi_arch: match paragraph.get_single("Multi-Arch") {
            Some("same") => MultiArch::Same,
            Some("foreign") => MultiArch::Foreign,
            Some("allowed") => MultiArch::Allowed,
            _ => MultiArch::No,
        },
        url,
        filename,
        size: single("Size")?.parse().map_err(|_| wrong("Size"))?,
        sha256: single("SHA256")?.parse().map_err(|_| wrong("SHA256"))?,
        depends: [text("Pre-Depends"), text("Depends")],
        recommends: text("Recommends"),
        against: [text("Conflicts"), text("Breaks")],
        provides: text("Provides"),
    })
}
