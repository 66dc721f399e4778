//! A small process that removes an instance's directory when the instance process is done with it.
//!
//! The instance process is confined to the directory (`machine::sandbox`), so it cannot remove it: that is a
//! change of the directory above, where the other instances are. The janitor is made before, knows one
//! directory, takes one request and reads nothing from the instance process but that.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::store::remove_directory;
use crate::{Error, Result};
use machine::sandbox::start_helper;

/// The request.
const REMOVE: u8 = b'r';
/// Bytes of an answer that are read: a sentence.
const ANSWER_MAX: u64 = 1024;

/// The instance process's end.
#[derive(Debug)]
pub struct Janitor {
    socket: UnixStream,
}

impl Janitor {
    /// Starts the process for `directory`. The caller's process must have one thread only.
    pub fn start(directory: &Path) -> Result<Janitor> {
        start_helper(|socket| serve(&socket, directory))
            .map(|socket| Janitor { socket })
            .map_err(Error::os("starting the process that removes the instance"))
    }

    /// Has the directory removed, and returns when it is.
    pub fn remove(mut self) -> Result<()> {
        let mut answer = String::new();
        let asked = self.socket.write_all(&[REMOVE]).and_then(|()| {
            self.socket.shutdown(Shutdown::Write)?;
            self.socket.take(ANSWER_MAX).read_to_string(&mut answer)
        });
        match asked {
            Ok(_) if answer == "removed" => Ok(()),
            Ok(_) if answer.is_empty() => Err(Error::os("removing the instance")(
                io::ErrorKind::BrokenPipe.into(),
            )),
            Ok(_) => Err(Error::Removal(answer)),
            Err(error) => Err(Error::os("removing the instance")(error)),
        }
    }
}

/// In the new process: waits for the request, or for the instance process's end.
fn serve(mut socket: &UnixStream, directory: &Path) {
    let mut request = [0];
    if !matches!(socket.read(&mut request), Ok(1)) || request != [REMOVE] {
        return;
    }
    let answer = match remove_directory(directory) {
        Ok(()) => "removed".to_owned(),
        Err(error) => error.to_string(),
    };
    let _ = socket.write_all(answer.as_bytes());
}
