//! Standard output and standard error as commands write to them: unbuffered, and a failed write is an error.
//!
//! The standard library's handles treat a write to a closed descriptor as successful, and buffer part of a
//! line until the process ends, when errors are ignored.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// One of the two streams that a command writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// standard {stream} cannot be written: {source}
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub struct Unwritten {
    stream: Stream,
    source: io::Error,
}

impl Unwritten {
    /// For `map_err` where a writer stands between a stream and who writes to it.
    pub fn output(source: io::Error) -> Unwritten {
        Stream::Output.unwritten(source)
    }

    /// Whether the reader of the stream has closed it, as `head` does. That is not an error.
    pub fn is_closed_pipe(&self) -> bool {
        self.source.kind() == ErrorKind::BrokenPipe
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Output => "output",
            Stream::Error => "error",
        })
    }
}

impl Stream {
    fn unwritten(self, source: io::Error) -> Unwritten {
        Unwritten { stream: self, source }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// When part of them could not be written.
    pub fn put(mut self, bytes: &[u8]) -> Result<(), Unwritten> {
        self.write_all(bytes).map_err(|source| self.unwritten(source))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (output, error) = (io::stdout(), io::stderr());
        let descriptor = match self {
            Stream::Output => output.as_fd(),
            Stream::Error => error.as_fd(),
        };
        loop {
            match nix::unistd::write(descriptor, bytes) {
                Ok(written) => return Ok(written),
                // Somebody who shares the file has made it nonblocking.
                Err(Errno::EAGAIN) => {
                    poll(
                        &mut [PollFd::new(descriptor, PollFlags::POLLOUT)],
                        PollTimeout::NONE,
                    )?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Prints a line on standard output.
///
/// # Errors
/// When it could not be written.
pub fn line(text: impl fmt::Display) -> Result<(), Unwritten> {
    Stream::Output.put(format!("{text}\n").as_bytes())
}

/// Says something on standard error that is not the command's output. Where that cannot be written, nothing
/// is left to do; the library's own macro would end the process, and with it a guest.
pub fn note(text: impl fmt::Display) {
    let _ = Stream::Error.put(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_distinguished_from_a_full_disk() {
        let full = Unwritten::output(Errno::ENOSPC.into());
        assert!(!full.is_closed_pipe());
        assert!(
            full.to_string()
                .starts_with("standard output cannot be written: No space left")
        );
        assert!(Unwritten::output(Errno::EPIPE.into()).is_closed_pipe());
    }
}
