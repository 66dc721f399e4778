//! Services that were installed in the running system: one file each in `/etc/kiln/services`, in the form
//! that `boot.json` has for those of the image. `kill -HUP 1` takes in what is new.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mounts;
use crate::config::Service;

/// Where they are.
const FOLDER: &str = "/etc/kiln/services";

/// More files than this are a mistake; each would be a process.
const FILES_CAP: usize = 256;

/// Largest file in bytes; a service with arguments and environment is far below.
const FILE_CAP: u64 = 64 * 1024;

/// All services there, by the names of their files. One that cannot be read is said and left out.
pub fn load() -> Vec<Service> {
    load_from(Path::new(FOLDER))
}

fn load_from(folder: &Path) -> Vec<Service> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .take(FILES_CAP)
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        parse(&path)
            .inspect_err(|error| mounts::say(&format!("guest-init: {}: {error}", path.display())))
            .ok()
    };
    files.into_iter().filter_map(read).collect()
}

fn parse(path: &Path) -> io::Result<Service> {
    if fs::metadata(path)?.len() > FILE_CAP {
        return Err(io::Error::other("the file is longer than 64 KiB"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "b.json",
            r#"{"name":"b","command":["/bin/b"],"restart":"always"}"#,
        );
        write("a.json", r#"{"name":"a","command":["/bin/a"]}"#);
        write("bad.json", "{");
        write("a.json.old", r#"{"name":"old","command":["/bin/a"]}"#);
        write("huge.json", &" ".repeat(1 << 17));
        let names: Vec<String> = load_from(folder.path())
            .into_iter()
            .map(|service| service.name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        assert!(load_from(Path::new("/nowhere")).is_empty());
    }
}
