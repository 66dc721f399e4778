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

/// One version of one package.
#[derive(Debug)]
pub struct Package<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its version.
    pub version: &'a str,
    /// `all` or the architecture of the image.
    pub arch: &'a str,
    /// `Essential: yes`.
    pub essential: bool,
    /// Its priority.
    pub priority: Priority,
    /// `Multi-Arch: allowed`: a relation `name:any` accepts it.
    pub any: bool,
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

/// Every package of the indexes that fits the architecture.
#[derive(Debug)]
pub struct Universe<'a> {
    arch: &'a str,
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
    /// Reads the indexes for Debian architecture `arch`. Of equal versions the first index's counts.
    pub fn new(indexes: &'a [Index], arch: &'a str) -> Result<Self, MalformedIndex> {
        let mut universe = Self {
            arch,
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
                if package.arch == arch || package.arch == "all" {
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
            .any(|other| self.packages[other.0].version == package.version)
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

    /// The newest version of each package, by name.
    pub fn newest(&self) -> Vec<Id> {
        let mut ids: Vec<_> = self.by_name.values().filter_map(|v| v.first().copied()).collect();
        ids.sort_by_key(|id| self.get(*id).name);
        ids
    }

    /// The names of all real packages.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.by_name.keys().copied()
    }

    /// The packages that satisfy a relation, in the order of preference: versions of the package itself,
    /// newest first, then providers.
    pub fn candidates(&self, relation: &Relation<'_>) -> Vec<Id> {
        let mut found: Vec<Id> = self
            .versions(relation.name)
            .iter()
            .copied()
            .filter(|id| relation.accepts(Some(self.get(*id).version)))
            .filter(|id| self.arch_fits(relation, *id))
            .collect();
        for (id, version) in self.by_provided.get(relation.name).into_iter().flatten() {
            if relation.accepts(version.as_deref()) && !found.contains(id) {
                found.push(*id);
            }
        }
        found
    }

    fn arch_fits(&self, relation: &Relation<'_>, id: Id) -> bool {
        match relation.qualifier {
            None | Some("native") => true,
            Some("any") => self.get(id).any || self.get(id).arch == "all",
            Some(arch) => arch == self.arch,
        }
    }

    /// Whether the package satisfies the relation, itself or by what it provides.
    pub fn satisfies(&self, id: Id, relation: &Relation<'_>) -> bool {
        let package = self.get(id);
        if package.name == relation.name
            && relation.accepts(Some(package.version))
            && self.arch_fits(relation, id)
        {
            return true;
        }
        package
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
        any: paragraph.get_single("Multi-Arch") == Some("allowed"),
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
