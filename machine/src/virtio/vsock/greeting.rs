//! The first line that a host process sends on the device's socket, to be connected to a port of the guest:
//! `CONNECT <port>`.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// Longest greeting, `CONNECT 4294967295\n`, with some room.
const MAX_LINE: usize = 32;

/// A host process that has not said yet to which port it wants.
#[derive(Debug)]
pub struct Greeting {
    /// The host process's end. It does not block.
    pub stream: UnixStream,
    line: Vec<u8>,
}

/// What a host process has said so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Not a whole line.
    TooLittle,
    /// The port of the guest.
    Port(u32),
    /// Something else, or it went away.
    Nonsense,
}

impl Greeting {
    pub fn new(stream: UnixStream) -> Self {
        let line = Vec::new();
        Greeting { stream, line }
    }

    /// Reads on, byte by byte, because what follows the line belongs to the stream.
    pub fn read(&mut self) -> Said {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => return parse(&self.line).map_or(Said::Nonsense, Said::Port),
                Ok(1) if self.line.len() < MAX_LINE => self.line.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Said::TooLittle,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return Said::Nonsense,
            }
        }
    }
}

/// The port of `CONNECT <port>`.
fn parse(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?;
    std::str::from_utf8(port.strip_suffix(b"\r").unwrap_or(port))
        .ok()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_greeting_may_come_in_pieces_and_what_follows_is_the_streams() {
        let (host, device) = UnixStream::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        let mut greeting = Greeting::new(device);
        (&host).write_all(b"CONNECT 10").unwrap();
        assert_eq!(greeting.read(), Said::TooLittle);
        (&host).write_all(b"24\nhello").unwrap();
        assert_eq!(greeting.read(), Said::Port(1024));
        let mut rest = [0; 5];
        greeting.stream.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn malformed_and_overlong_greetings_are_refused() {
        for said in [
            "CONNECT \n",
            "CONNECT 4294967296\n",
            "connect 1\n",
            &"1".repeat(MAX_LINE + 1),
        ] {
            let (host, device) = UnixStream::pair().unwrap();
            (&host).write_all(said.as_bytes()).unwrap();
            assert_eq!(Greeting::new(device).read(), Said::Nonsense, "{said}");
        }
        let (host, device) = UnixStream::pair().unwrap();
        drop(host);
        assert_eq!(Greeting::new(device).read(), Said::Nonsense);
    }
}
