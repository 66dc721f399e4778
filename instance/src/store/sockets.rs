//! Unix sockets in a state directory, however long its path is.
//!
//! A socket address holds 107 bytes. A longer path is reached through `/proc/self/fd/N/name`, where N is the
//! directory, opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The control socket's name.
pub const CONTROL: &str = "control.sock";
/// The vsock device's socket: connect, say `CONNECT port`, talk to the guest.
pub const VSOCK: &str = "vsock.sock";

/// Longest path in a socket address, without the closing zero (`sun_path`, unix(7)).
const MAX_PATH: usize = 107;

/// Binds `name` in `directory`. What is there under this name is replaced: the caller owns the directory.
pub fn bind(directory: &Path, name: &str) -> Result<UnixListener> {
    let path = directory.join(name);
    let bound = match reach(directory, name, UnixListener::bind) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            std::fs::remove_file(&path).map_err(Error::file("removing", &path))?;
            reach(directory, name, UnixListener::bind)
        }
        other => other,
    };
    bound.map_err(Error::file("binding", &path))
}

/// Connects to `name` in `directory`.
pub fn connect(directory: &Path, name: &str) -> Result<UnixStream> {
    reach(directory, name, UnixStream::connect).map_err(Error::file("connecting to", directory.join(name)))
}

/// The path of `name` in `directory`, in a form that fits into a socket address with a few bytes to spare.
/// Where the real one does not, the directory stays open for as long as this process lives.
pub fn lasting_path(directory: &Path, name: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    if path.as_os_str().len() + 8 <= MAX_PATH {
        return Ok(path);
    }
    let opened = File::open(directory).map_err(Error::file("opening", directory))?;
    Ok(PathBuf::from(format!(
        "/proc/self/fd/{}/{name}",
        opened.into_raw_fd()
    )))
}

fn reach<T>(directory: &Path, name: &str, step: impl FnOnce(PathBuf) -> io::Result<T>) -> io::Result<T> {
    let path = directory.join(name);
    if path.as_os_str().len() <= MAX_PATH {
        return step(path);
    }
    let opened = File::open(directory)?;
    step(PathBuf::from(format!(
        "/proc/self/fd/{}/{name}",
        opened.as_raw_fd()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_any_length_work() {
        let dir = tempfile::tempdir().unwrap();
        for depth in [0, 1, 4] {
            let directory = (0..depth).fold(dir.path().to_path_buf(), |d, _| d.join("x".repeat(60)));
            std::fs::create_dir_all(&directory).unwrap();
            let listener = bind(&directory, CONTROL).unwrap();
            connect(&directory, CONTROL).unwrap();
            listener.accept().unwrap();
            // A socket left over by a killed process does no harm.
            drop(listener);
            assert!(connect(&directory, CONTROL).is_err());
            bind(&directory, CONTROL).unwrap();
        }
    }
}
