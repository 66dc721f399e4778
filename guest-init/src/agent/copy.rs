//! Files and folders between host and guest, as tar archives in frames.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::failed;
use crate::archive;
use crate::proto::frame::PAYLOAD_CAP;
use crate::proto::{Failure, Kind, read_frame, write_frame};

/// Makes output frames of what is written.
struct Frames<'a>(&'a mut File);

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PAYLOAD_CAP);
        write_frame(self.0, Kind::Output, &bytes[..n]).map_err(io::Error::other)?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the bytes of input frames.
struct Input<'a> {
    connection: &'a mut File,
    held: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.held.read(buffer)?;
            if n > 0 || self.ended || buffer.is_empty() {
                return Ok(n);
            }
            match read_frame(self.connection).map_err(io::Error::other)? {
                Some(frame) if frame.kind == Kind::Input => self.held = io::Cursor::new(frame.payload),
                Some(frame) if frame.kind == Kind::InputEnd => self.ended = true,
                Some(_) | None => return Err(io::Error::other("the archive ended in the middle")),
            }
        }
    }
}

/// Sends `path` under its last name.
pub fn send(path: &Path, connection: &mut File) -> Result<(), Failure> {
    let frames = io::BufWriter::with_capacity(PAYLOAD_CAP, Frames(connection));
    archive::pack(path, frames).map_err(|error| failed(path.display(), error))
}

/// Unpacks what comes into the folder `path`, or as `path`.
pub fn receive(path: &Path, connection: &mut File) -> Result<(), Failure> {
    let mut input = Input {
        connection,
        held: io::Cursor::default(),
        ended: false,
    };
    let unpacked = archive::unpack(&mut input, path, 0);
    // The rest (padding, or all after a failure) is read, so that the host does not wait for us while we wait for it.
    let rest = io::copy(&mut input, &mut io::sink());
    unpacked
        .and(rest.map(drop))
        .map_err(|error| failed(path.display(), error))
}
