//! `diff` and `du`.

use std::io::{self, Write};
use std::path::Path;

use ami::{Ami, PartName};

use super::Error;
use super::image::size;
use crate::diff::{self, Change};
use crate::imagefs;
use crate::usage::{self, Item};

/// Items below this share of the whole are joined in the page.
const PAGE_SHARE: u64 = 5000;

pub(super) fn diff(
    before: &Path,
    after: &Path,
    times: bool,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let (a, b) = (Ami::open(before)?, Ami::open(after)?);
    let mut changes = diff::manifests(&a, &b);
    changes.extend(diff::packages(&a, &b)?);
    // The same digest is the same file system: no need to look inside.
    if a.part(PartName::Root)?.blake3 != b.part(PartName::Root)?.blake3 {
        let (left, right) = (imagefs::of_ami(&a)?, imagefs::of_ami(&b)?);
        let read = |source| Error::Read {
            what: "files of the images".into(),
            source,
        };
        changes.extend(diff::files(&left, &right, times).map_err(read)?);
    }
    if as_json {
        serde_json::to_writer_pretty(&mut *out, &changes).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    let mut section = "";
    for change in &changes {
        if change.section != section {
            section = change.section;
            writeln!(out, "{section}:")?;
        }
        line(change, out)?;
    }
    if changes.is_empty() {
        writeln!(out, "the images are the same")?;
    }
    Ok(())
}

fn line(change: &Change, out: &mut dyn Write) -> io::Result<()> {
    let name = &change.name;
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => writeln!(out, "  ~ {name}: {before} -> {after}"),
        (Some(before), None) => writeln!(out, "  - {name}: {before}"),
        (None, Some(after)) => writeln!(out, "  + {name}: {after}"),
        (None, None) => Ok(()),
    }
}

pub(super) fn du(image: &Path, html: Option<&Path>, lines: usize, out: &mut dyn Write) -> Result<(), Error> {
    let ami = Ami::open(image)?;
    let tree = imagefs::of_ami(&ami)?;
    let all = usage::measure(&tree, 0);
    let read = |source| Error::Read {
        what: "dpkg's lists".into(),
        source,
    };
    let packages = usage::packages(&tree).map_err(read)?;
    if let Some(html) = html {
        let threshold = all.size / PAGE_SHARE;
        let title = format!("{} — {}", ami.manifest().name, ami.id());
        let page = usage::page(&title, &usage::measure(&tree, threshold), &packages);
        std::fs::write(html, page).map_err(|source| Error::Write {
            path: html.into(),
            source,
        })?;
        writeln!(out, "{}", html.display())?;
        return Ok(());
    }
    writeln!(out, "parts")?;
    for part in &ami.manifest().parts {
        match part.name {
            // Most of it is zero.
            PartName::Memory => {
                let stored = size(ami.stored(part.name)?);
                writeln!(out, "{stored:>12}  {} (of {})", part.name, size(part.length))?;
            }
            name => writeln!(out, "{:>12}  {name}", size(part.length))?,
        }
    }
    writeln!(out, "root: {} in {} files", size(all.size), all.files)?;
    if packages.len() > 1 {
        writeln!(out, "packages")?;
        for (name, bytes) in packages.iter().take(lines) {
            writeln!(out, "{:>12}  {name}", size(*bytes))?;
        }
    }
    writeln!(out, "directories")?;
    let mut directories = Vec::new();
    flatten(&all, "", &mut directories);
    directories.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    for (path, bytes) in directories.iter().take(lines) {
        writeln!(out, "{:>12}  {path}", size(*bytes))?;
    }
    Ok(())
}

/// Directories with their whole size, the root aside. Depth is bounded by the reader of the file system.
fn flatten(item: &Item, path: &str, out: &mut Vec<(String, u64)>) {
    for child in item.children.iter().filter(|child| !child.children.is_empty()) {
        let below = format!("{path}/{}", child.name);
        flatten(child, &below, out);
        out.push((below, child.size));
    }
}
