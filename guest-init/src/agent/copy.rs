//! Files and folders between host and guest, as tar archives in frames.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::{failed, reason};
use crate::archive::{self, Receiver};
use crate::proto::frame::PAYLOAD_CAP;
use crate::proto::{Failure, Kind, Reason, read_frame, write_frame};

/// Makes frames of what is written.
struct Frames<'a>(&'a mut File, Kind);

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(PAYLOAD_CAP);
        write_frame(self.0, self.1, &bytes[..n]).map_err(io::Error::other)?;
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

/// Sends `path` under its last name. With `notes`, what is left out and what could not be read is named in
/// frames of error output; a host that does not take them gets both as a failure.
pub fn send(path: &Path, notes: bool, connection: &mut File) -> Result<(), Failure> {
    let frames = Frames(connection, Kind::Output);
    let frames = io::BufWriter::with_capacity(PAYLOAD_CAP, frames);
    let report = archive::pack(path, frames).map_err(failure)?;
    let other = |message: String| Failure {
        reason: Reason::Other,
        message,
    };
    if notes {
        let text: String = report.lines().flat_map(|line| [line, "\n".to_owned()]).collect();
        let sent = Frames(connection, Kind::ErrorOutput).write_all(text.as_bytes());
        sent.map_err(|error| other(error.to_string()))?;
    } else if let Some(line) = report.lines().next() {
        return Err(other(line));
    }
    match report.failures() {
        0 => Ok(()),
        failures => Err(other(format!("{failures} of its files could not be copied"))),
    }
}

/// Unpacks what comes into the folder `path`, or as `path`.
pub fn receive(path: &Path, connection: &mut File) -> Result<(), Failure> {
    let mut input = Input {
        connection,
        held: io::Cursor::default(),
        ended: false,
    };
    let unpacked = archive::unpack(&mut input, path, Receiver::Guest);
    // The rest (padding, or all after a failure) is read, so that the host does not wait for us while we wait
    // for it.
    let rest = io::copy(&mut input, &mut io::sink());
    let report = unpacked.map_err(failure)?;
    rest.map_err(|error| failed(path.display(), error))?;
    match report.lines().next() {
        None => Ok(()),
        Some(message) => Err(Failure {
            reason: Reason::Other,
            message,
        }),
    }
}

fn failure(error: archive::Error) -> Failure {
    Failure {
        reason: reason(error.kind()),
        message: error.to_string(),
    }
}
