//! Frames: a length, a kind, and that many bytes. Neither side trusts the other.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest payload. Streams are cut to fit; a request with arguments and environment has to (Linux's own
/// limit for one argument is twice as much).
pub const PAYLOAD_CAP: usize = 64 * 1024;

/// Length (4 bytes, little endian) and kind.
const HEADER: usize = 5;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`Request`](super::Request) in JSON; the first frame of a connection.
    Request = 0,
    /// It is done; the payload is the answer in JSON, if there is one.
    Done = 1,
    /// It failed: a [`Failure`](super::Failure) in JSON.
    Failed = 2,
    /// Bytes of standard input, or of an archive to the guest.
    Input = 3,
    /// No more input.
    InputEnd = 4,
    /// Bytes of standard output, or of an archive from the guest.
    Output = 5,
    /// Bytes of standard error.
    ErrorOutput = 6,
    /// The command has ended: an [`Ended`](super::Ended) in JSON; the last frame.
    Ended = 7,
    /// The terminal has another [`Size`](super::Size) (JSON).
    Resize = 8,
    /// Send the command this signal (one byte).
    Signal = 9,
    /// The command runs.
    Started = 10,
}

const KINDS: [Kind; 11] = [
    Kind::Request,
    Kind::Done,
    Kind::Failed,
    Kind::Input,
    Kind::InputEnd,
    Kind::Output,
    Kind::ErrorOutput,
    Kind::Ended,
    Kind::Resize,
    Kind::Signal,
    Kind::Started,
];

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// At most [`PAYLOAD_CAP`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame with a message in JSON.
    pub fn json(kind: Kind, message: &impl Serialize) -> Result<Frame, Error> {
        let payload = serde_json::to_vec(message).map_err(Error::Message)?;
        if payload.len() > PAYLOAD_CAP {
            Err(Error::TooLong(payload.len()))
        } else {
            Ok(Frame { kind, payload })
        }
    }

    /// The message in its payload.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.payload).map_err(Error::Message)
    }
}

/// What is wrong with a connection.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// the connection to the guest agent broke: {0}
    Io(#[from] io::Error),
    /// a frame of {0} bytes is longer than the protocol allows (64 KiB)
    TooLong(usize),
    /// frame kind {0} is not known; are vmm and the image of the same release?
    Kind(u8),
    /// a message does not parse: {0}; are vmm and the image of the same release?
    Message(#[source] serde_json::Error),
    /// the other side sent {0:?} where the protocol has no such frame
    Unexpected(Kind),
}

/// Writes a frame with one call of `write`, so that threads may share a stream under a lock.
pub fn write_frame(to: &mut impl Write, kind: Kind, payload: &[u8]) -> Result<(), Error> {
    if payload.len() > PAYLOAD_CAP {
        return Err(Error::TooLong(payload.len()));
    }
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.push(kind as u8);
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)?;
    Ok(to.flush()?)
}

/// Reads the next frame; `None` at an orderly end of the stream.
pub fn read_frame(from: &mut impl Read) -> Result<Option<Frame>, Error> {
    let mut header = [0; HEADER];
    let mut filled = 0;
    while filled < HEADER {
        match from.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    let [a, b, c, d, kind] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > PAYLOAD_CAP {
        return Err(Error::TooLong(length));
    }
    let kind = *KINDS.get(usize::from(kind)).ok_or(Error::Kind(kind))?;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload)?;
    Ok(Some(Frame { kind, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_number() {
        for (number, kind) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, number);
        }
    }

    #[test]
    fn frames_round_trip() {
        let mut wire = Vec::new();
        write_frame(&mut wire, Kind::Output, b"some").unwrap();
        write_frame(&mut wire, Kind::InputEnd, b"").unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(
            read_frame(&mut wire).unwrap(),
            Some(Frame {
                kind: Kind::Output,
                payload: b"some".to_vec()
            })
        );
        assert_eq!(
            read_frame(&mut wire).unwrap().map(|frame| frame.kind),
            Some(Kind::InputEnd)
        );
        assert_eq!(read_frame(&mut wire).unwrap(), None);
    }

    #[test]
    fn an_untrusted_stream_is_refused_before_it_costs_memory() {
        assert!(matches!(
            read_frame(&mut [0xff, 0xff, 0xff, 0xff, 3].as_slice()),
            Err(Error::TooLong(_))
        ));
        assert!(matches!(
            read_frame(&mut [0, 0, 0, 0, 200].as_slice()),
            Err(Error::Kind(200))
        ));
        for cut in 1..9 {
            let bytes = &[4, 0, 0, 0, 3, 1, 2, 3, 4][..cut];
            assert!(
                matches!(read_frame(&mut &bytes[..]), Err(Error::Io(_))),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn too_long_a_payload_is_not_sent() {
        let mut wire = Vec::new();
        assert!(write_frame(&mut wire, Kind::Output, &vec![0; PAYLOAD_CAP + 1]).is_err());
        assert!(wire.is_empty());
    }
}
