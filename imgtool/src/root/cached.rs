//! Results of stages in the cache. Each is an archive named by the digest of everything that it depends on; a
//! file next to it holds the BLAKE3 digest of its bytes, as `b3sum` writes it. An archive without that file,
//! or with another digest, is made again.

use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use super::stage_dir::StageDir;
use crate::archive::{self, Damage};
use crate::store::{self, Sha256, Store};
use crate::tree::Tree;
use crate::unpack;

/// Where the store keeps results.
const ROOTS: &str = "roots";

/// Where a stage works, and where its result goes.
pub struct Place {
    /// A directory for it alone.
    pub work: StageDir,
    /// The archive to write.
    pub output: PathBuf,
}

/// The result of a stage: from the cache, or made and put there. A cache that cannot be written to costs the
/// time again at the next build.
pub fn cached(
    store: &Store,
    key: &impl serde::Serialize,
    make: impl FnOnce(&Place) -> Result<(), Error>,
) -> Result<Tree, Error> {
    // Serializing plain data to memory does not fail.
    let name = Sha256::of(&serde_json::to_vec(key).unwrap_or_default());
    let entry = Entry {
        store,
        archive: format!("{name}.tar"),
        digest: format!("{ROOTS}/{name}.tar.b3"),
    };
    if let Some(tree) = entry.read() {
        return Ok(tree);
    }
    let scratch = scratch(store);
    let failed = |source| unpack::Error::Scratch {
        path: scratch.clone(),
        source,
    };
    let work = StageDir::new(&scratch).map_err(failed)?;
    let output = work.path().join("output.tar");
    let place = Place { work, output };
    make(&place)?;
    let (tree, digest) = archive::read_with_digest(&place.output).map_err(|damage| {
        let path = place.output.clone();
        Error::Result { path, damage }
    })?;
    // The tree keeps the file open: it may change its name, or lose it.
    entry.keep(&place.output, &digest);
    Ok(tree)
}

/// A result in the cache.
struct Entry<'a> {
    store: &'a Store,
    archive: String,
    digest: String,
}

impl Entry<'_> {
    fn path(&self) -> PathBuf {
        self.store.root().join(ROOTS).join(&self.archive)
    }

    /// The tree, if every byte of the archive is as it was written.
    fn read(&self) -> Option<Tree> {
        let line = String::from_utf8(self.store.read_named(&self.digest).ok()??).ok()?;
        let expected = blake3::Hash::from_hex(line.split_ascii_whitespace().next()?).ok()?;
        let read: Result<_, Damage> = archive::read_with_digest(&self.path());
        let (tree, found) = read.ok()?;
        (found == expected).then_some(tree)
    }

    /// Puts an archive into the cache if that is possible. Between the two steps the digest is of another
    /// archive, and a reader makes the result again.
    fn keep(&self, archive: &Path, digest: &blake3::Hash) {
        let line = format!("{}  {}\n", digest.to_hex(), self.archive);
        if store::make_dir(&self.store.root().join(ROOTS)).is_ok() && fs::rename(archive, self.path()).is_ok()
        {
            // Losing it costs the time again.
            let _ = self.store.write_named(&self.digest, line.as_bytes());
        }
    }
}

/// A directory for temporary files: next to the cache, where there is space, or where the system keeps them
/// if the cache is read-only.
pub fn scratch(store: &Store) -> PathBuf {
    let dir = store.root().join("tmp");
    match store::make_dir(&dir).is_ok() && tempfile::tempfile_in(&dir).is_ok() {
        true => dir,
        false => std::env::temp_dir(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::tree::{Content, Kind, Meta};

    /// A file that stays in the archive until it is read.
    const LONG: usize = 100_000;

    fn write_result(place: &Place) -> Result<(), Error> {
        let mut tree = Tree::new();
        let content = Kind::File(Content::bytes(vec![7; LONG]));
        tree.insert(b"library", content, Meta::new(0o644, 0, 0, 5))
            .unwrap();
        archive::write(&tree, fs::File::create(&place.output).unwrap()).unwrap();
        Ok(())
    }

    /// Builds, and returns whether the result was made again. It is intact in any case.
    fn made(store: &Store) -> bool {
        let made = Cell::new(false);
        let tree = cached(store, &"key", |place| {
            made.set(true);
            write_result(place)
        })
        .unwrap();
        let id = tree.find(b"library").unwrap().unwrap();
        let Kind::File(content) = &tree.node(id).kind else {
            panic!("not a file")
        };
        assert_eq!(content.read(1 << 20).unwrap(), vec![7; LONG]);
        made.get()
    }

    fn file(store: &Store, suffix: &str) -> PathBuf {
        let mut found: Vec<_> = fs::read_dir(store.root().join(ROOTS))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().ends_with(suffix))
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    #[test]
    fn a_result_is_used_while_every_byte_of_it_is_right() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        assert!(made(&store));
        assert!(!made(&store));
        let (archive, digest) = (file(&store, ".tar"), file(&store, ".b3"));
        let damages: [&dyn Fn(); 5] = [
            &|| {
                let file = fs::OpenOptions::new().write(true).open(&archive).unwrap();
                file.write_all_at(b"xyz", 60_000).unwrap();
            },
            &|| {
                let file = fs::OpenOptions::new().write(true).open(&archive).unwrap();
                let length = file.metadata().unwrap().len();
                // What comes after the end of a tar's entries is damage as well.
                file.write_all_at(b"x", length - 1).unwrap();
            },
            &|| {
                let file = fs::OpenOptions::new().write(true).open(&archive).unwrap();
                file.set_len(50_000).unwrap();
            },
            &|| fs::remove_file(&digest).unwrap(),
            &|| fs::write(&digest, b"rubbish\xff").unwrap(),
        ];
        for (number, damage) in damages.iter().enumerate() {
            damage();
            assert!(made(&store), "damage {number} is used");
            assert!(!made(&store), "damage {number} is not replaced");
        }
    }

    #[test]
    fn the_digest_is_in_the_form_of_b3sum() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        made(&store);
        let archive = file(&store, ".tar");
        let line = format!(
            "{}  {}\n",
            blake3::hash(&fs::read(&archive).unwrap()).to_hex(),
            archive.file_name().unwrap().to_str().unwrap()
        );
        assert_eq!(fs::read_to_string(file(&store, ".b3")).unwrap(), line);
    }
}
