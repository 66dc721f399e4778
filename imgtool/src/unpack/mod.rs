//! From `.deb` files to a [`Tree`], without root and without running anything.

mod database;
mod deb;
mod filter;
mod layout;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use displaydoc::Display;

pub use deb::{Control, Deb, MAX_DATA, repack};
pub use filter::Filter;
pub use layout::{architectures, complete, merge_usr};

use crate::advice::Advice;
use crate::archive::{self, Entry, EntryKind};
use crate::lock::Package;
use crate::progress::Step;
use crate::store::{self, Store};
use crate::tree::{Content, Kind, Meta, Spool, Tree, TreeError, TreePath};

/// What is wrong with a package file.
#[derive(Debug, Display, thiserror::Error)]
pub enum Damage {
    /// it is not a Debian package
    NoDeb,
    /// it ends in the middle of a member
    Truncated,
    /// it has no {0}
    Lacks(&'static str),
    /// the member {0} does not belong there
    Member(String),
    /// the compression of {0} is unknown
    Compression(String),
    /// {0}
    Archive(#[from] archive::Damage),
}

impl Damage {
    /// Reading or writing failed.
    fn io(source: io::Error) -> Self {
        archive::Damage::Read(source).into()
    }
}

impl From<TreeError> for Damage {
    fn from(error: TreeError) -> Self {
        archive::Damage::Tree(error).into()
    }
}

/// Why packages could not be unpacked.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// refused package {package}: {damage}
    Package {
        /// Name and version.
        package: String,
        /// What is wrong.
        #[source]
        damage: Damage,
    },
    /// {0}
    Store(#[from] store::Error),
    /// package {0} disappeared from the cache or was damaged there
    Gone(String),
    /// cannot use {path} for temporary files: {source}
    Scratch {
        /// The directory.
        path: std::path::PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// cannot complete the root: {0}
    Layout(#[from] TreeError),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Store(error) => error.advice(),
            Self::Package { .. } => {
                Some("report this to the archive: the file is what its index promises".into())
            }
            Self::Gone(..) => Some("the same command again; it will be downloaded again".into()),
            Self::Scratch { .. } => Some("set TMPDIR to a directory with enough space".into()),
            Self::Layout(..) => None,
        }
    }
}

/// A package's content, its files in the spool of the thread that unpacked it.
struct Unpacked {
    control: Control,
    entries: Vec<(Entry, Option<Content>)>,
}

/// Where packages come from.
pub type Load<'a> = dyn Fn(&Package) -> Result<Vec<u8>, Error> + Sync + 'a;

/// Takes packages from the store.
pub fn from_store(store: &Store) -> impl Fn(&Package) -> Result<Vec<u8>, Error> + Sync {
    move |package| {
        let bytes = store.get(&package.sha256, package.size)?;
        bytes.ok_or_else(|| Error::Gone(package.to_string()))
    }
}

/// What to unpack, and how.
pub struct Unpack<'a> {
    /// Gives the bytes of a package's `.deb`.
    pub load: &'a Load<'a>,
    /// The packages. They are merged in this order: of a path in two packages the later one counts.
    pub packages: &'a [Package],
    /// Which paths.
    pub filter: &'a Filter,
    /// A directory for temporary files.
    pub scratch: &'a Path,
    /// Advances with each package.
    pub step: &'a dyn Step,
}

/// The newest time in the packages, in seconds since 1970: SOURCE_DATE_EPOCH of a build without a date of its
/// own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newest(pub i64);

impl Unpack<'_> {
    /// Unpacks into `tree`, on all processors. Directories that exist keep their owner and permissions, as
    /// with dpkg.
    pub fn unpack_into(&self, tree: &mut Tree) -> Result<Newest, Error> {
        self.merge(tree, None)
    }

    /// As [`Unpack::unpack_into`], and writes the database of a dpkg of architecture `native` for packages that
    /// are unpacked and not configured.
    pub fn with_database(&self, tree: &mut Tree, native: &str) -> Result<Newest, Error> {
        let mut database = database::Database::default();
        let newest = self.merge(tree, Some(&mut database))?;
        database.write(tree, architectures("", native, self.packages), newest.0)?;
        Ok(newest)
    }

    fn merge(&self, tree: &mut Tree, mut database: Option<&mut database::Database>) -> Result<Newest, Error> {
        let mut newest = 0;
        self.in_order(|package, unpacked| {
            let failed = |damage| Error::Package {
                package: package.to_string(),
                damage,
            };
            let mut paths = Vec::with_capacity(unpacked.entries.len());
            for (entry, content) in unpacked.entries {
                newest = newest.max(entry.mtime);
                if let Some(path) = merge_entry(tree, self.filter, entry, content).map_err(failed)? {
                    paths.push(path);
                }
            }
            if let Some(database) = &mut database {
                database.add(unpacked.control, paths);
            }
            self.step.advance(1);
            Ok(())
        })?;
        Ok(Newest(newest))
    }

    /// Reads packages on all processors and hands them over in order.
    fn in_order(&self, mut take: impl FnMut(&Package, Unpacked) -> Result<(), Error>) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let (send, receive) = mpsc::sync_channel(2);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(self.packages.len()) {
                let (send, next) = (send.clone(), &next);
                scope.spawn(move || self.work(next, &send));
            }
            drop(send);
            let mut waiting = BTreeMap::new();
            let mut due = 0;
            for (index, unpacked) in receive {
                waiting.insert(index, unpacked?);
                while let Some(unpacked) = waiting.remove(&due) {
                    take(&self.packages[due], unpacked)?;
                    due += 1;
                }
            }
            Ok(())
        })
    }

    fn work(&self, next: &AtomicUsize, send: &mpsc::SyncSender<(usize, Result<Unpacked, Error>)>) {
        let mut spool = None;
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(package) = self.packages.get(index) else {
                return;
            };
            // The receiver is dropped on the first error.
            if send.send((index, self.unpack(package, &mut spool))).is_err() {
                return;
            }
        }
    }

    fn unpack(&self, package: &Package, spool: &mut Option<Spool>) -> Result<Unpacked, Error> {
        let scratch = |source| Error::Scratch {
            path: self.scratch.to_owned(),
            source,
        };
        let spool = match spool {
            Some(spool) => spool,
            None => spool.insert(Spool::new_in(self.scratch).map_err(scratch)?),
        };
        let bytes = (self.load)(package)?;
        read_deb(&bytes, spool).map_err(|damage| match damage {
            Damage::Archive(archive::Damage::Read(source)) if source.kind() == io::ErrorKind::StorageFull => {
                scratch(source)
            }
            damage => Error::Package {
                package: package.to_string(),
                damage,
            },
        })
    }
}

fn read_deb(bytes: &[u8], spool: &mut Spool) -> Result<Unpacked, Damage> {
    let deb = Deb::parse(bytes)?;
    let control = deb.control()?;
    let mut entries = Vec::new();
    archive::visit(deb.data()?, |entry, mut reader| {
        let content = match entry.kind {
            EntryKind::File(size) => {
                let content = match &entry.pieces {
                    Some(pieces) => spool.add_pieces(&mut reader, pieces),
                    None => spool.add(&mut reader, size),
                };
                Some(content.map_err(Damage::io)?)
            }
            _ => None,
        };
        entries.push((entry.clone(), content));
        Ok::<_, Damage>(())
    })?;
    Ok(Unpacked { control, entries })
}

/// Puts one entry into the tree. Returns its path as the archive names it, unless the filter leaves it out.
fn merge_entry(
    tree: &mut Tree,
    filter: &Filter,
    entry: Entry,
    content: Option<Content>,
) -> Result<Option<Vec<u8>>, Damage> {
    let path = TreePath::parse(&entry.path)?;
    let absolute = [b"/", path.as_bytes()].concat();
    let may_lead = matches!(entry.kind, EntryKind::Dir | EntryKind::Symlink(_));
    if !filter.keeps(&absolute, may_lead) {
        return Ok(None);
    }
    let existing = tree.find_followed(&absolute)?;
    if entry.kind == EntryKind::Dir && existing.is_some_and(|id| tree.node(id).is_dir()) {
        return Ok(Some(entry.path));
    }
    if let Some((parent, _)) = path.split_last() {
        tree.create_dirs(parent.as_bytes(), &Meta::new(0o755, 0, 0, entry.mtime))?;
    }
    let kind = match entry.kind {
        EntryKind::File(_) => Kind::File(content.unwrap_or_else(|| Content::bytes(Vec::new()))),
        EntryKind::Dir => Kind::Dir,
        EntryKind::Symlink(target) => Kind::Symlink(target),
        EntryKind::Char(major, minor) => Kind::Char(major, minor),
        EntryKind::Block(major, minor) => Kind::Block(major, minor),
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Hardlink(target) => {
            let show = crate::tree::show;
            let missing = || archive::Damage::Hardlink(show(&absolute), show(&target));
            let id = tree.find(&target)?.ok_or_else(missing)?;
            tree.link(&absolute, id)?;
            return Ok(Some(entry.path));
        }
    };
    tree.insert(
        &absolute,
        kind,
        Meta::new(entry.mode, entry.uid, entry.gid, entry.mtime),
    )?;
    Ok(Some(entry.path))
}

#[cfg(test)]
mod tests;
