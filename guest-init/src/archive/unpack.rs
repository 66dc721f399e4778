//! Unpacking an archive that is not trusted to stay in its folder.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use tar::{Entry, EntryType};

use super::sparse::{self, CopyError};
use super::{Error, Report, at};

/// Most bytes of headers before an entry: a name and a link's target of 4 KiB each, and the map of a sparse
/// file. The tar crate keeps all of them in memory, and they come from a guest.
const HEADERS: u64 = 4 << 20;
/// Largest file: ext4's. Longer ones are holes, which cost the sender nothing and the receiver time.
const LARGEST: u64 = 16 << 40;
/// Symbolic links followed to where a copy is to go: as many as the kernel follows.
const LINKS: usize = 40;

/// The user that unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// A host, from a guest that it does not trust: no devices, and no set-user-id, set-group-id and sticky
    /// bits.
    Host,
    /// A guest, from its host. The files are root's: set-user-id and set-group-id stay on what was root's
    /// before, and would give what was another's to root.
    Guest,
}

/// Unpacks into the folder `to`. Where there is no such folder, the one file or folder that comes is named
/// `to` instead, as cp(1) does; it appears there whole or not at all. A folder that is there keeps its own
/// mode and time.
///
/// The archive cannot leave the folder: entries with `..` and those below links that lead out of it are
/// refused.
///
/// # Errors
/// When neither `to` nor its parent is a folder, `to` is a device, FIFO or socket, or the archive is
/// malformed or cannot be written. The message names the file.
pub fn unpack(from: impl Read, to: &Path, receiver: Receiver) -> Result<Report, Error> {
    let to = &follow(to);
    if to.is_dir() {
        let mut unpacker = Unpacker::new(to, Shown::Inside(to), receiver)?;
        unpacker.run(from)?;
        let outermost = unpacker.open.first().map(|folder| to.join(&folder.path));
        return unpacker.complete(outermost.as_deref().unwrap_or(to));
    }
    if to.exists() && !to.is_file() {
        let why = "is neither a file nor a folder, and a copy does not replace it";
        let path = to.clone().into();
        return Err(Error::Refused { path, why });
    }
    let parent = match to.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    if !parent.is_dir() {
        let source = io::Error::new(io::ErrorKind::NotFound, "is not a folder");
        return Err(at(parent)(source));
    }
    let aside = Aside::new(parent).map_err(at(to))?;
    let mut unpacker = Unpacker::new(&aside.0, Shown::As(to), receiver)?;
    unpacker.run(from)?;
    let mut entries = fs::read_dir(&aside.0).map_err(at(to))?;
    match (entries.next().transpose().map_err(at(to))?, entries.next()) {
        (Some(only), None) => fs::rename(only.path(), to).map_err(at(to))?,
        _ => return Err(Error::NotOne(to.clone().into())),
    }
    unpacker.complete(to)
}

/// Where `to` leads to, if it is a symbolic link: a copy goes where a program that opens it would write.
fn follow(to: &Path) -> PathBuf {
    let mut path = to.to_owned();
    for _ in 0..LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    path
}

/// How the files of an archive are called in messages.
#[derive(Debug, Clone, Copy)]
enum Shown<'a> {
    /// By their names in this folder.
    Inside(&'a Path),
    /// The first name is replaced by this one.
    As(&'a Path),
}

/// A folder whose content is not complete yet.
struct Open {
    /// Its path in the archive.
    path: PathBuf,
    mode: u32,
    mtime: i64,
}

struct Unpacker<'a> {
    /// The folder that nothing may leave, without links.
    base: PathBuf,
    shown: Shown<'a>,
    receiver: Receiver,
    report: Report,
    /// The folders that lead to the last entry and were made here. They get their modes and times when the
    /// archive has left them: files in them need the one and change the other.
    open: Vec<Open>,
    /// Nothing has been unpacked yet: what is left out now is what was asked for.
    first: bool,
}

impl<'a> Unpacker<'a> {
    fn new(base: &Path, shown: Shown<'a>, receiver: Receiver) -> Result<Self, Error> {
        Ok(Unpacker {
            base: base.canonicalize().map_err(at(base))?,
            shown,
            receiver,
            report: Report::default(),
            open: Vec::new(),
            first: true,
        })
    }

    /// Unpacks everything. The outermost folder stays open.
    fn run(&mut self, from: impl Read) -> Result<(), Error> {
        let left = Rc::new(Cell::new(HEADERS));
        let mut archive = tar::Archive::new(Metered {
            from,
            left: Rc::clone(&left),
        });
        for entry in archive.entries().map_err(Error::Archive)? {
            let mut entry = entry.map_err(Error::Archive)?;
            left.set(u64::MAX);
            self.entry(&mut entry)?;
            // Of what is left out as well.
            io::copy(&mut entry, &mut io::sink()).map_err(Error::Archive)?;
            left.set(HEADERS);
            self.first = false;
        }
        while self.open.len() > 1 {
            self.close_last()?;
        }
        Ok(())
    }

    /// Completes the outermost folder, which is at `to` by now.
    fn complete(self, to: &Path) -> Result<Report, Error> {
        if let Some(outermost) = self.open.first() {
            finish(to, outermost.mode, outermost.mtime).map_err(at(to))?;
        }
        Ok(self.report)
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), Error> {
        let bytes = entry.path_bytes().into_owned();
        let path = Path::new(OsStr::from_bytes(&bytes));
        let Some(path) = inside(path) else {
            self.report.left_out(path, "would leave its folder");
            return Ok(());
        };
        let Some(parent) = path.parent() else {
            // The folder itself, which is there.
            return Ok(());
        };
        self.close(&path)?;
        self.make_parents(parent)?;
        let kind = entry.header().entry_type();
        match kind {
            EntryType::Directory => self.folder(&path, entry),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => self.file(&path, entry),
            EntryType::Symlink => self.symlink(&path, entry),
            EntryType::Link => self.hard_link(&path, entry),
            EntryType::Fifo => self.special(&path, SFlag::S_IFIFO, entry),
            EntryType::Char | EntryType::Block if self.receiver == Receiver::Host => {
                self.leave_out(&path, "is a device, which is not made on this host")
            }
            EntryType::Char => self.special(&path, SFlag::S_IFCHR, entry),
            EntryType::Block => self.special(&path, SFlag::S_IFBLK, entry),
            _ => self.leave_out(&path, "is of a kind that no file system has"),
        }
    }

    fn leave_out(&mut self, path: &Path, why: &'static str) -> Result<(), Error> {
        let path = self.name(path);
        if self.first {
            let path = path.into();
            return Err(Error::Refused { path, why });
        }
        self.report.left_out(&path, why);
        Ok(())
    }

    /// A path in the archive as the person knows it.
    fn name(&self, path: &Path) -> PathBuf {
        match self.shown {
            Shown::Inside(folder) => folder.join(path),
            Shown::As(name) => path
                .components()
                .skip(1)
                .fold(name.to_owned(), |name, component| name.join(component)),
        }
    }

    /// Names the file that an operating system's error is about.
    fn at(&self, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
        let path = self.name(path).into();
        move |source| Error::File { path, source }
    }

    /// Completes the folders that do not lead to `next`.
    fn close(&mut self, next: &Path) -> Result<(), Error> {
        while self.open.last().is_some_and(|last| !next.starts_with(&last.path)) {
            self.close_last()?;
        }
        Ok(())
    }

    fn close_last(&mut self) -> Result<(), Error> {
        if let Some(last) = self.open.pop() {
            let to = self.base.join(&last.path);
            finish(&to, last.mode, last.mtime).map_err(self.at(&last.path))?;
        }
        Ok(())
    }

    /// Sees to it that `parent` is a folder in ours, through whatever links.
    fn make_parents(&self, parent: &Path) -> Result<(), Error> {
        let mut path = PathBuf::new();
        for component in parent {
            path.push(component);
            let to = self.base.join(&path);
            match to.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(metadata) if metadata.is_symlink() => {
                    let target = to.canonicalize().map_err(self.at(&path))?;
                    if !target.starts_with(&self.base) || !target.is_dir() {
                        let why = "is a link to somewhere else, not a folder";
                        let path = self.name(&path).into();
                        return Err(Error::Refused { path, why });
                    }
                }
                Ok(_) => return Err(self.at(&path)(io::ErrorKind::NotADirectory.into())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(&to).map_err(self.at(&path))?;
                }
                Err(error) => return Err(self.at(&path)(error)),
            }
        }
        Ok(())
    }

    fn folder(&mut self, path: &Path, entry: &Entry<'_, impl Read>) -> Result<(), Error> {
        let to = self.base.join(path);
        match fs::DirBuilder::new().mode(0o700).create(&to) {
            Ok(()) => self.open.push(Open {
                path: path.to_owned(),
                mode: self.mode(entry)?,
                mtime: mtime(entry)?,
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.make_parents(path)?,
            Err(error) => return Err(self.at(path)(error)),
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, entry: &mut Entry<'_, impl Read>) -> Result<(), Error> {
        let (mode, mtime) = (self.mode(entry)?, mtime(entry)?);
        if entry.size() > LARGEST {
            return Err(self.at(path)(io::ErrorKind::FileTooLarge.into()));
        }
        let to = self.make_room(path)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&to)
            .map_err(self.at(path))?;
        let copied = write(entry, &mut file, &to, (mode, mtime));
        copied.map_err(|error| {
            // Half a file looks like one.
            let _ = fs::remove_file(&to);
            match error {
                CopyError::Read(source) => Error::Archive(source),
                CopyError::Write(source) => self.at(path)(source),
            }
        })
    }

    fn symlink(&mut self, path: &Path, entry: &Entry<'_, impl Read>) -> Result<(), Error> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let to = self.make_room(path)?;
        std::os::unix::fs::symlink(OsStr::from_bytes(&target), &to).map_err(self.at(path))?;
        touch(&to, mtime(entry)?).map_err(self.at(path))
    }

    fn hard_link(&mut self, path: &Path, entry: &Entry<'_, impl Read>) -> Result<(), Error> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let target = inside(Path::new(OsStr::from_bytes(&target)))
            .filter(|target| target != path && target.parent().is_some());
        let Some(target) = target else {
            return self.leave_out(path, "is a link to outside of its folder");
        };
        self.make_parents(target.parent().unwrap_or(Path::new("")))?;
        let to = self.make_room(path)?;
        fs::hard_link(self.base.join(&target), &to).map_err(self.at(path))
    }

    /// A FIFO or a device.
    fn special(&mut self, path: &Path, kind: SFlag, entry: &Entry<'_, impl Read>) -> Result<(), Error> {
        let number = |part: io::Result<Option<u32>>| part.map(|n| n.unwrap_or(0).into());
        let major = number(entry.header().device_major()).map_err(Error::Archive)?;
        let minor = number(entry.header().device_minor()).map_err(Error::Archive)?;
        let to = self.make_room(path)?;
        let made = mknod(&to, kind, Mode::from_bits_truncate(0o600), makedev(major, minor));
        made.map_err(|error| self.at(path)(error.into()))?;
        finish(&to, self.mode(entry)?, mtime(entry)?).map_err(self.at(path))
    }

    /// Where `path` goes. What is there is removed, so that nothing is written through it, unless it is a
    /// folder.
    fn make_room(&self, path: &Path) -> Result<PathBuf, Error> {
        let to = self.base.join(path);
        match to.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => {
                let why = "is a folder, which a file does not replace";
                let path = self.name(path).into();
                Err(Error::Refused { path, why })
            }
            Ok(_) => fs::remove_file(&to).map(|()| to).map_err(self.at(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(to),
            Err(error) => Err(self.at(path)(error)),
        }
    }

    /// The mode that an entry gets here.
    fn mode(&self, entry: &Entry<'_, impl Read>) -> Result<u32, Error> {
        let header = entry.header();
        let mode = header.mode().map_err(Error::Archive)?;
        if self.receiver == Receiver::Host {
            return Ok(mode & 0o777);
        }
        let mut mask = 0o7777;
        if header.uid().map_err(Error::Archive)? != 0 {
            mask &= !libc::S_ISUID;
        }
        if header.gid().map_err(Error::Archive)? != 0 {
            mask &= !libc::S_ISGID;
        }
        Ok(mode & mask)
    }
}

fn mtime(entry: &Entry<'_, impl Read>) -> Result<i64, Error> {
    let mtime = entry.header().mtime().map_err(Error::Archive)?;
    Ok(i64::try_from(mtime).unwrap_or(0))
}

/// Writes a new file's content, mode and time.
fn write(
    from: &mut impl Read,
    file: &mut File,
    to: &Path,
    (mode, mtime): (u32, i64),
) -> Result<(), CopyError> {
    sparse::copy(from, file)?;
    finish(to, mode, mtime).map_err(CopyError::Write)
}

/// Gives a file that is not a link its mode and time.
fn finish(to: &Path, mode: u32, mtime: i64) -> io::Result<()> {
    fs::set_permissions(to, Permissions::from_mode(mode))?;
    touch(to, mtime)
}

fn touch(to: &Path, mtime: i64) -> io::Result<()> {
    // A 32-bit program's times end in 2038.
    let seconds = mtime.min(libc::time_t::MAX as i64) as libc::time_t;
    let time = TimeSpec::new(seconds, 0);
    utimensat(AT_FDCWD, to, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// A path of an archive as one that stays below its folder; `None` where it has `..`. Empty for the folder
/// itself.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => return None,
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

/// An archive of which only so much may be read for now.
struct Metered<R> {
    from: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        let left = self.left.get().checked_sub(n as u64);
        self.left
            .set(left.ok_or_else(|| io::Error::other("the headers of a file do not end"))?);
        Ok(n)
    }
}

/// A folder that is gone when this is dropped.
struct Aside(PathBuf);

impl Aside {
    fn new(parent: &Path) -> io::Result<Aside> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".kiln-copy-{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Aside(path))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
