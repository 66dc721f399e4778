//! Packages installed by the target's own dpkg.

use std::fs;
use std::io::Write;
use std::path::Path;

use rustix::io::Errno;

use super::batches::{self, Batches};
use super::failure::Failure;
use super::input::InputRoot;
use super::job::Message;
use super::mounts::{Mounts, root_in_memory};
use super::repack::{file_name, prepare, size_of};
use super::worker::Worker;
use super::{disk, edit, inside};
use crate::lock::Package;
use crate::progress::Step;
use crate::store::Store;
use crate::tree::{Meta, Tree};
use crate::unpack::{self, Filter, Unpack};

/// No daemon starts while an image is made: policy-rc.d, as Debian's init scripts and deb-systemd-invoke ask
/// it.
const POLICY_RC_D: &str = "#!/bin/sh\nexit 101\n";

impl Worker<'_> {
    /// Installs packages in an empty root.
    pub fn install(
        &self,
        packages: &[Package],
        store: &Store,
        filter: &Filter,
        epoch: Option<i64>,
        sources: &str,
    ) -> Result<(), Failure> {
        let debs = self.job.work.join("packages");
        fs::create_dir(&debs).map_err(|e| Failure::io(&debs, &e))?;
        Message::Start("decompress packages".into(), packages.len() as u64).say();
        let (needs, newest) = prepare(packages, store, &debs)?;
        Message::Finish(format!("{} packages", packages.len())).say();
        let epoch = epoch.unwrap_or(newest);
        root_in_memory(self.root, size_of(&debs)?);
        let batches = batches::plan(&needs, self.job.arch.debian());
        self.bootstrap(packages, &batches.essential, &debs, filter, epoch)?;
        {
            let _mounts = Mounts::new(self.root, Some(&debs))?;
            self.configure(&batches, packages.len(), epoch)?;
        }
        self.write_sources(sources)?;
        self.collect("", epoch)
    }

    /// Adds packages to a root in which dpkg works.
    pub fn add(
        &self,
        base: &InputRoot,
        packages: &[Package],
        store: &Store,
        filter: &Filter,
        epoch: Option<i64>,
    ) -> Result<(), Failure> {
        let debs = self.job.work.join("packages");
        fs::create_dir(&debs).map_err(|e| Failure::io(&debs, &e))?;
        let (needs, newest) = prepare(packages, store, &debs)?;
        let mut tree = base.read().map_err(Failure::other)?;
        // Nothing in the result is newer than the newest of what it is made of.
        let epoch = epoch.unwrap_or(newest.max(tree.node(Tree::ROOT).meta.mtime));
        root_in_memory(self.root, base.bytes().saturating_add(size_of(&debs)?));
        write_policy(&mut tree, filter, epoch)?;
        self.write_architectures(&mut tree, packages, epoch)?;
        disk::write(&tree, self.root)?;
        drop(tree);
        let mut batches = batches::plan(&needs, self.job.arch.debian());
        let essential = std::mem::take(&mut batches.essential);
        if !essential.is_empty() {
            batches.later.insert(0, essential);
        }
        {
            let _mounts = Mounts::new(self.root, Some(&debs))?;
            self.configure(&batches, packages.len(), epoch)?;
        }
        self.collect("", epoch)
    }

    /// Unpacks the essential packages, so that there is a system in which dpkg can install them.
    fn bootstrap(
        &self,
        packages: &[Package],
        essential: &[usize],
        debs: &Path,
        filter: &Filter,
        epoch: i64,
    ) -> Result<(), Failure> {
        Message::Start("unpack the essential".into(), essential.len() as u64).say();
        let mut tree = Tree::new();
        unpack::merge_usr(&mut tree, self.job.arch.debian(), 0).map_err(Failure::other)?;
        let order: Vec<usize> = essential.to_vec();
        let chosen: Vec<Package> = order.iter().map(|i| packages[*i].clone()).collect();
        let load = |package: &Package| {
            let i = packages.iter().position(|p| p == package).unwrap_or_default();
            let path = debs.join(file_name(i));
            fs::read(&path).map_err(|source| unpack::Error::Scratch { path, source })
        };
        let (scratch, step) = (&*self.job.work, &Ticks as &dyn Step);
        let unpack = Unpack {
            load: &load,
            packages: &chosen,
            filter,
            scratch,
            step,
        };
        unpack.unpack_into(&mut tree).map_err(|e| Failure::of(&e))?;
        prepare_root(&mut tree, filter, epoch)?;
        self.write_architectures(&mut tree, packages, epoch)?;
        disk::write(&tree, self.root)?;
        Message::Finish(format!("{} packages", essential.len())).say();
        Ok(())
    }

    /// dpkg takes packages of foreign architectures once it knows these.
    fn write_architectures(&self, tree: &mut Tree, packages: &[Package], epoch: i64) -> Result<(), Failure> {
        const PATH: &str = "var/lib/dpkg/arch";
        let known = edit::read_text(tree, PATH).map_err(|e| Failure::of(&e))?;
        match unpack::architectures(&known, self.job.arch.debian(), packages) {
            Some(text) => write_file(tree, PATH, &text, 0o644, epoch),
            None => Ok(()),
        }
    }

    fn configure(&self, batches: &Batches, total: usize, epoch: i64) -> Result<(), Failure> {
        Message::Start("configure".into(), total as u64).say();
        let files = |batch: &[usize]| {
            batch
                .iter()
                .map(|i| format!("/run/packages/{}", file_name(*i)))
                .collect::<Vec<_>>()
        };
        // The essential packages depend on each other in circles: they are there already, unpacked.
        if !batches.essential.is_empty() {
            self.dpkg(
                &["--install", "--force-depends"],
                &files(&batches.essential),
                epoch,
            )?;
        }
        for batch in &batches.later {
            self.dpkg(&["--unpack"], &files(batch), epoch)?;
            self.dpkg(&["--configure", "--pending"], &[], epoch)?;
        }
        Message::Finish(format!("{total} packages, {} batches", batches.later.len() + 1)).say();
        Ok(())
    }

    fn dpkg(&self, action: &[&str], files: &[String], epoch: i64) -> Result<(), Failure> {
        // The database is written once by us at the end; no need to wait for the disk in between.
        let mut words = vec!["dpkg", "--force-unsafe-io", "--log=/dev/null"];
        words.extend(action);
        words.extend(files.iter().map(String::as_str));
        self.program(&words, epoch)
    }

    fn write_sources(&self, sources: &str) -> Result<(), Failure> {
        const PATH: &str = "etc/apt/sources.list.d/debian.sources";
        if sources.is_empty() {
            return Ok(());
        }
        let written = match inside::create(self.root, PATH) {
            // A root without apt.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => Err(error.into()),
            Ok(mut file) => file.write_all(sources.as_bytes()),
        };
        written.map_err(|error| Failure::io(&self.root.join(PATH), &error))
    }
}

/// The policy for dpkg and maintainer scripts in this root. Into the tree, not onto the disk: there, a link
/// of the root could lead out of it.
fn write_policy(tree: &mut Tree, filter: &Filter, epoch: i64) -> Result<(), Failure> {
    write_file(tree, "usr/sbin/policy-rc.d", POLICY_RC_D, 0o755, epoch)?;
    let options = filter.dpkg_options();
    if !options.is_empty() {
        write_file(tree, "etc/dpkg/dpkg.cfg.d/excludes", &options, 0o644, epoch)?;
    }
    Ok(())
}

/// What dpkg needs in order to begin.
fn prepare_root(tree: &mut Tree, filter: &Filter, epoch: i64) -> Result<(), Failure> {
    for empty in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        write_file(tree, empty, "", 0o644, epoch)?;
    }
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        tree.create_dirs(dir.as_bytes(), &Meta::new(0o755, 0, 0, epoch))
            .map_err(Failure::other)?;
    }
    write_policy(tree, filter, epoch)
}

fn write_file(tree: &mut Tree, path: &str, text: &str, mode: u16, epoch: i64) -> Result<(), Failure> {
    let meta = Meta::new(mode, 0, 0, epoch);
    let is_new = tree.find(path.as_bytes()).map_err(Failure::other)?.is_none();
    edit::write_text(tree, path, text.into(), meta).map_err(|e| Failure::of(&e))?;
    if let Some(id) = tree.find_followed(path.as_bytes()).map_err(Failure::other)? {
        tree.node_mut(id).meta.mode = mode;
    }
    // A new name changes its directory.
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    if let Some(id) = tree.find_followed(parent.as_bytes()).map_err(Failure::other)?
        && is_new
    {
        tree.node_mut(id).meta.mtime = epoch;
    }
    Ok(())
}

/// Advances the caller's step.
struct Ticks;

impl Step for Ticks {
    fn advance(&self, units: u64) {
        (0..units).for_each(|_| Message::Tick.say());
    }

    fn finish(&self, _summary: &str) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    /// A base's links are its own: nothing is written where they would lead on this machine.
    #[test]
    fn a_link_of_the_root_stays_in_it() {
        let mut tree = Tree::new();
        let link = Kind::Symlink(b"/tmp/elsewhere".to_vec());
        tree.insert(b"usr", link, Meta::new(0o777, 0, 0, 0)).unwrap();
        prepare_root(&mut tree, &Filter::default(), 7).unwrap();
        let id = tree.find(b"tmp/elsewhere/sbin/policy-rc.d").unwrap().unwrap();
        assert_eq!(tree.node(id).meta, Meta::new(0o755, 0, 0, 7));
        assert!(tree.find(b"var/lib/dpkg/updates").unwrap().is_some());
    }
}
