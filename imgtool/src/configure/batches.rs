//! In which order dpkg gets the packages.
//!
//! dpkg orders configuration itself; what it asks of its caller is that the Pre-Depends of a package are
//! configured before it is unpacked. Most systems need two or three batches.

use std::collections::{BTreeMap, BTreeSet};

use crate::resolve::relation::{Group, Relation, parse_field};

/// What of a package's control paragraph decides the order.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    name: String,
    arch: String,
    essential: bool,
    provides: Vec<String>,
    pre_depends: Vec<Vec<String>>,
    depends: Vec<Vec<String>>,
}

impl Needs {
    /// Reads a control paragraph.
    pub fn parse(paragraph: &str) -> Self {
        let fields = match deb822_fast::borrowed::parse_borrowed(paragraph) {
            Ok(paragraphs) => paragraphs.into_iter().next(),
            Err(_) => None,
        };
        let text = |name: &str| fields.as_ref()?.get_field(name).map(|field| field.join());
        // Versions do not matter: resolution has checked them. A field that cannot be read orders nothing;
        // dpkg reports it.
        let groups = |name: &str| {
            let text = text(name).unwrap_or_default();
            let names = |group: Group<'_>| group.iter().map(|r: &Relation<'_>| r.name.to_owned()).collect();
            parse_field(&text)
                .unwrap_or_default()
                .into_iter()
                .map(names)
                .collect::<Vec<Vec<String>>>()
        };
        Self {
            name: text("Package").unwrap_or_default(),
            arch: text("Architecture").unwrap_or_default(),
            essential: text("Essential").as_deref() == Some("yes"),
            provides: groups("Provides").into_iter().flatten().collect(),
            pre_depends: groups("Pre-Depends"),
            depends: groups("Depends"),
        }
    }
}

/// The order: the essential packages with all that they need, then batches whose Pre-Depends are in earlier
/// ones. The numbers are places in `packages`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batches {
    /// What must be there, in any state, before the first maintainer script can run.
    pub essential: Vec<usize>,
    /// The rest.
    pub later: Vec<Vec<usize>>,
}

/// Plans the order for a root of Debian architecture `native`, which packages of `all` count as.
pub fn plan(packages: &[Needs], native: &str) -> Batches {
    let arch = |package: &Needs| match package.arch.as_str() {
        "all" => native.to_owned(),
        arch => arch.to_owned(),
    };
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, package) in packages.iter().enumerate() {
        by_name.entry(&package.name).or_default().push(i);
        for name in &package.provides {
            by_name.entry(name).or_default().push(i);
        }
    }
    // Of a package that is there for several architectures the one of the same, if there is one, is meant.
    let present = |owner: &Needs, name: &String| {
        let ids = by_name.get(name.as_str()).into_iter().flatten().copied();
        let (same, other): (Vec<_>, Vec<_>) = ids.partition(|i| arch(&packages[*i]) == arch(owner));
        if same.is_empty() { other } else { same }
    };
    let edges = |owner: &Needs, groups: &[Vec<String>]| {
        let names = groups.iter().flatten();
        names
            .flat_map(|name| present(owner, name))
            .collect::<Vec<usize>>()
    };
    let pre: Vec<_> = packages.iter().map(|p| edges(p, &p.pre_depends)).collect();
    let all: Vec<_> = packages
        .iter()
        .zip(&pre)
        .map(|(p, pre)| [&edges(p, &p.depends), &pre[..]].concat())
        .collect();

    let start = (0..packages.len()).filter(|i| packages[*i].essential);
    let essential = closure(start, &all);
    let mut done = essential.clone();
    let mut later = Vec::new();
    while done.len() < packages.len() {
        let batch = next_batch(packages.len(), &done, &pre, &all);
        done.extend(&batch);
        later.push(batch.into_iter().collect());
    }
    Batches {
        essential: first_things_first(packages, essential),
        later,
    }
}

/// base-passwd makes the users and base-files the layout that the others take for granted.
fn first_things_first(packages: &[Needs], essential: BTreeSet<usize>) -> Vec<usize> {
    let mut order: Vec<_> = essential.into_iter().collect();
    let rank = |i: &usize| match packages[*i].name.as_str() {
        "base-passwd" => 0,
        "base-files" => 1,
        _ => 2,
    };
    order.sort_by_key(rank);
    order
}

/// All packages whose Pre-Depends, and those of everything that they depend on, are done. If there are none,
/// the packages are tied in a circle and go together.
fn next_batch(n: usize, done: &BTreeSet<usize>, pre: &[Vec<usize>], all: &[Vec<usize>]) -> BTreeSet<usize> {
    let mut ready: BTreeSet<usize> = (0..n)
        .filter(|i| !done.contains(i) && pre[*i].iter().all(|p| done.contains(p)))
        .collect();
    loop {
        let fits = |i: &usize| all[*i].iter().all(|d| done.contains(d) || ready.contains(d));
        let smaller: BTreeSet<usize> = ready.iter().copied().filter(fits).collect();
        if smaller.len() == ready.len() {
            break;
        }
        ready = smaller;
    }
    match ready.is_empty() {
        true => (0..n).filter(|i| !done.contains(i)).collect(),
        false => ready,
    }
}

fn closure(start: impl Iterator<Item = usize>, edges: &[Vec<usize>]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut queue: Vec<usize> = start.collect();
    while let Some(i) = queue.pop() {
        if found.insert(i) {
            queue.extend(&edges[i]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(list: &[(&str, &str)]) -> Vec<Needs> {
        list.iter()
            .map(|(name, fields)| Needs::parse(&format!("Package: {name}\n{fields}")))
            .collect()
    }

    #[test]
    fn pre_depends_come_in_earlier_batches() {
        let packages = needs(&[
            ("a", "Pre-Depends: b\n"),
            ("b", "Depends: c | missing\n"),
            ("base-files", "Essential: yes\nDepends: libc\n"),
            ("base-passwd", "Essential: yes\n"),
            ("c", ""),
            ("d", "Depends: a\n"),
            ("libc6", "Provides: libc\n"),
        ]);
        let batches = plan(&packages, "amd64");
        assert_eq!(batches.essential, [3, 2, 6]);
        assert_eq!(batches.later, [vec![1, 4], vec![0, 5]]);
    }

    #[test]
    fn a_package_waits_for_those_of_its_own_architecture() {
        let packages = needs(&[
            ("libc6", "Architecture: amd64\n"),
            ("libc6", "Architecture: i386\n"),
            (
                "base-files",
                "Architecture: amd64\nEssential: yes\nDepends: libc6\n",
            ),
            ("tool", "Architecture: i386\nPre-Depends: libc6, base-files\n"),
        ]);
        let batches = plan(&packages, "amd64");
        assert_eq!(batches.essential, [2, 0]);
        assert_eq!(batches.later, [vec![1], vec![3]]);
    }

    #[test]
    fn circular_dependencies_end() {
        let batches = plan(
            &needs(&[("a", "Pre-Depends: b\n"), ("b", "Pre-Depends: a\n")]),
            "amd64",
        );
        assert_eq!(batches.later, [vec![0, 1]]);
        let batches = plan(&needs(&[("a", "Depends: b\n"), ("b", "Depends: a\n")]), "amd64");
        assert_eq!(batches.later, [vec![0, 1]]);
    }
}
