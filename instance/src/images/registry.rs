//! The image store: AMI files by id, and names for them.
//!
//! ```text
//! images/
//!   ami-0123456789abcdef0.ami   complete from the moment it has this name
//!   names.json                  `name:tag` -> id
//!   .lock                       held while either changes
//!   .capture-i-…-PID            made of an instance and not adopted yet; locked by its maker
//!   .new-ami-…                  being copied by the holder of `.lock`
//! ```
//!
//! What a killed command has left of the last two is removed by the next one that changes the store.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::images::image::Image;
use crate::images::sparse_copy;
use crate::store::home::{Home, create_private};
use crate::store::id::valid_name;
use crate::store::lock::Lock;
use crate::store::record::VolumeKind;
use crate::store::replace::{Durable, replace};
use crate::store::{Entry, Store};
use crate::{Error, InstanceId, Result};
use machine::block::volume;

/// How long a change waits for another command's: copying an image into the store may take its time.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The tag of a name without one.
const LATEST: &str = "latest";
const EXTENSION: &str = "ami";
/// Begins the name of an image that is being copied.
const NEW: &str = ".new-";
/// Begins the name of an image that is made of an instance.
const CAPTURE: &str = ".capture-";

/// The image store of a user.
#[derive(Debug, Clone)]
pub struct Images {
    directory: PathBuf,
}

/// An image in the store.
#[derive(Debug)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// Its names, each `name:tag`, in order.
    pub names: Vec<String>,
    /// Its file.
    pub path: PathBuf,
    /// Length of the file in bytes, holes included.
    pub size: u64,
    /// What it takes on disk, in bytes.
    pub allocated: u64,
    /// What it says of itself, or why it cannot be read.
    pub image: Result<Image>,
}

type Names = BTreeMap<String, String>;

impl Images {
    /// The store below `home`.
    pub fn new(home: &Home) -> Images {
        Images {
            directory: home.images(),
        }
    }

    /// The file that a person means by `text`: a path, an id or the beginning of one, or a name.
    pub fn resolve(&self, text: &str) -> Result<PathBuf> {
        let path = Path::new(text);
        if path.is_file() {
            return Ok(path.to_path_buf());
        }
        match self.lookup(text) {
            Err(Error::NoImage(_)) if text.contains('/') => {
                fs::metadata(path).map_err(Error::file("opening", path))?;
                Err(Error::NotAFile(path.to_path_buf()))
            }
            Ok(id) => Ok(self.file(&id)),
            Err(error) => Err(error),
        }
    }

    /// The id that a person means by `text`.
    fn lookup(&self, text: &str) -> Result<String> {
        let ids = self.ids()?;
        if ids.iter().any(|id| id == text) {
            return Ok(text.into());
        }
        if let Some(id) = self.names()?.get(&full_name(text)) {
            return Ok(id.clone());
        }
        // Two digits at least, so that a slip of the finger does not pick an image.
        let begun: Vec<_> = ids
            .iter()
            .filter(|id| text.len() >= 6 && id.starts_with(text))
            .collect();
        match begun.as_slice() {
            [] => Err(Error::NoImage(text.into())),
            [id] => Ok(id.to_string()),
            several => {
                let candidates = several
                    .iter()
                    .map(|id| id.as_str())
                    .collect::<Vec<_>>()
                    .join(", ");
                Err(Error::Ambiguous {
                    text: text.into(),
                    candidates,
                    image: true,
                })
            }
        }
    }

    /// All images, by id.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let names = self.names()?;
        let mut stored = Vec::new();
        for id in self.ids()? {
            let path = self.file(&id);
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::file("examining", &path)(e)),
            };
            stored.push(Stored {
                names: names
                    .iter()
                    .filter(|(_, to)| **to == id)
                    .map(|(name, _)| name.clone())
                    .collect(),
                size: metadata.len(),
                allocated: metadata.blocks() * 512,
                image: Image::open(&path),
                path,
                id,
            });
        }
        Ok(stored)
    }

    /// Where an image that is made of `instance` gets its name first; [`adopt`](Images::adopt) takes it from
    /// there. It must be locked before it has the name.
    pub fn draft_of(&self, instance: &InstanceId) -> Result<PathBuf> {
        create_private(&self.directory)?;
        let name = format!("{CAPTURE}{instance}-{}", std::process::id());
        Ok(self.directory.join(name))
    }

    /// Removes what killed commands have left. The caller holds the store's lock, so nobody is copying.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = name.starts_with(NEW) || name.starts_with(CAPTURE);
            if ours && let Ok(Some(_lock)) = Lock::try_take(&path) {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Copies the AMI at `path` into the store, after every byte of it has been verified, and returns its id.
    pub fn import(&self, path: &Path, name: Option<&str>) -> Result<String> {
        name.map_or(Ok(()), check_name)?;
        let image = Image::open(path)?;
        image.verify()?;
        self.add(&image, name, |to| {
            sparse_copy::copy(path, to).map_err(Error::file("copying", path))?;
            durable(to)
        })
    }

    /// Moves the finished AMI at `path`, which this process has written and which must be on the store's file
    /// system, into the store. Its digests are those of what is in the file: its writer has read it for them.
    pub fn adopt(&self, path: &Path, name: &str) -> Result<String> {
        check_name(name)?;
        let image = Image::open(path)?;
        self.add(&image, Some(name), |to| {
            fs::rename(path, to).map_err(Error::file("moving", path))?;
            durable(to)
        })
    }

    /// The same without a name, for one that is needed at once: it is not durable before the file that is
    /// returned was synced. After a power failure before that, it may be refused as damaged.
    pub fn adopt_at_once(&self, path: &Path) -> Result<(String, File)> {
        let image = Image::open(path)?;
        let file = image.file().try_clone().map_err(Error::file("opening", path))?;
        let id = self.add(&image, None, |to| {
            fs::rename(path, to).map_err(Error::file("moving", path))
        })?;
        Ok((id, file))
    }

    /// `put` brings the image to a path that is not its name yet; `name` was checked.
    fn add(
        &self,
        image: &Image,
        name: Option<&str>,
        put: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<String> {
        let id = image.id().to_owned();
        let _lock = self.lock()?;
        self.sweep();
        let to = self.file(&id);
        if !to.exists() {
            let draft = self.directory.join(format!("{NEW}{id}"));
            put(&draft)?;
            fs::rename(&draft, &to).map_err(Error::file("storing", &to))?;
        }
        if let Some(name) = name {
            let mut names = self.names()?;
            names.insert(full_name(name), id.clone());
            self.write_names(&names)?;
        }
        Ok(id)
    }

    /// Gives an image a further name. The name may have been another image's.
    pub fn tag(&self, text: &str, name: &str) -> Result<String> {
        check_name(name)?;
        let _lock = self.lock()?;
        let id = self.lookup(text)?;
        let mut names = self.names()?;
        names.insert(full_name(name), id.clone());
        self.write_names(&names)?;
        Ok(id)
    }

    /// Takes the name `text` away from its image, or, given an id or the last name, removes the image. An
    /// image that a root volume still reads from stays, unless `force` has those volumes completed first.
    pub fn remove(&self, text: &str, force: bool, store: &Store) -> Result<Removed> {
        let _lock = self.lock()?;
        self.sweep();
        let id = self.lookup(text)?;
        let mut names = self.names()?;
        let mine = names.values().filter(|to| **to == id).count();
        if names.get(&full_name(text)) == Some(&id) && mine > 1 {
            names.remove(&full_name(text));
            self.write_names(&names)?;
            return Ok(Removed::Name(full_name(text)));
        }
        self.release(&id, force, store)?;
        names.retain(|_, to| *to != id);
        self.write_names(&names)?;
        let path = self.file(&id);
        fs::remove_file(&path).map_err(Error::file("removing", &path))?;
        Ok(Removed::Image(id))
    }

    /// Makes sure that nobody needs the file of `id` any more.
    fn release(&self, id: &str, force: bool, store: &Store) -> Result<()> {
        let path = self.file(id);
        let mut users = Vec::new();
        for entry in store.list()? {
            let Entry::Known(record) = entry else { continue };
            // One with a link of its own keeps the file alive under that name.
            if record.image.linked || record.image.path != path {
                continue;
            }
            for root in record.volumes.iter().filter(|v| v.kind == VolumeKind::Lazy) {
                if !volume::Volume::needs_base(&root.path)? {
                    continue;
                }
                if force && !record.state.has_process() {
                    complete(&root.path, &path)?;
                } else {
                    users.push(record.label().to_owned());
                }
            }
        }
        if users.is_empty() {
            return Ok(());
        }
        Err(Error::ImageInUse {
            image: id.into(),
            users: users.join(", "),
        })
    }

    /// Copies an image out of the store.
    pub fn export(&self, text: &str, to: &Path) -> Result<()> {
        let path = self.resolve(text)?;
        sparse_copy::copy(&path, to).map_err(Error::file("writing", to))
    }

    fn ids(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(Error::file("reading", &self.directory)(e)),
        };
        let id = |name: String| {
            let id = name.strip_suffix(".ami")?;
            id.starts_with("ami-").then(|| id.to_owned())
        };
        let mut ids: Vec<_> = entries
            .filter_map(|e| id(e.ok()?.file_name().into_string().ok()?))
            .collect();
        ids.sort();
        Ok(ids)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.{EXTENSION}"))
    }

    fn lock(&self) -> Result<Lock> {
        create_private(&self.directory)?;
        Lock::take(&self.directory.join(".lock"), TIMEOUT)?
            .ok_or_else(|| Error::Busy("the image store".into()))
    }

    fn names_file(&self) -> PathBuf {
        self.directory.join("names.json")
    }

    /// Names that lead nowhere are left out.
    fn names(&self) -> Result<Names> {
        let path = self.names_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Names::new()),
            Err(e) => return Err(Error::file("reading", &path)(e)),
        };
        let mut names: Names =
            serde_json::from_slice(&text).map_err(|e| Error::file("reading", &path)(io::Error::other(e)))?;
        names.retain(|_, id| self.file(id).exists());
        Ok(names)
    }

    fn write_names(&self, names: &Names) -> Result<()> {
        let path = self.names_file();
        let written = serde_json::to_vec_pretty(names)
            .map_err(io::Error::from)
            .and_then(|text| replace(&path, &text, Durable::Yes));
        written.map_err(Error::file("writing", &path))
    }
}

/// What [`Images::remove`] has removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// A name; the image has others.
    Name(String),
    /// The image.
    Image(String),
}

/// Copies what a stopped instance's root volume still lacks.
fn complete(root: &Path, image: &Path) -> Result<()> {
    let root_volume = volume::Volume::open(root, Some(Image::open(image)?.root()?))?;
    let mut at = 0;
    while let Some(next) = root_volume.hydrate(at).map_err(Error::file("completing", root))? {
        at = next;
    }
    Ok(())
}

fn full_name(name: &str) -> String {
    if name.contains(':') {
        name.into()
    } else {
        format!("{name}:{LATEST}")
    }
}

/// `name` or `name:tag`; not in the form of an id.
fn check_name(text: &str) -> Result<()> {
    let (name, tag) = text.split_once(':').unwrap_or((text, LATEST));
    if valid_name(name) && valid_name(tag) && !name.starts_with("ami-") {
        return Ok(());
    }
    Err(Error::Malformed(
        text.into(),
        "image name (NAME or NAME:TAG, each of 1 to 63 letters, digits, `.`, `_`, `-`; not in the form of an \
         id)",
    ))
}

/// What gets its name after this is complete after a power failure, too.
fn durable(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::file("storing", path))
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
