//! Bounds for compressed streams: what they may ask for, and how much may come out of them.

use std::io::{self, BufRead, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

/// Dictionaries of `xz -9` need 65 MiB; a header may ask for 4 GiB.
const MAX_XZ_MEMORY: u64 = 512 << 20;

/// A decoder of one xz stream, with bounded memory. What follows the stream is left alone.
pub fn xz<R: BufRead>(stream: R) -> io::Result<XzDecoder<R>> {
    let decoder = Stream::new_stream_decoder(MAX_XZ_MEMORY, 0)?;
    Ok(XzDecoder::new_stream(stream, decoder))
}

/// A decoder of one xz stream after the other, with bounded memory.
pub fn xz_streams<R: BufRead>(streams: R) -> io::Result<XzDecoder<R>> {
    let decoder = Stream::new_stream_decoder(MAX_XZ_MEMORY, CONCATENATED)?;
    Ok(XzDecoder::new_stream(streams, decoder))
}

/// Fails, instead of ending, when a stream is longer than allowed.
pub struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Capped<R> {
    /// Lets `cap` bytes pass.
    pub fn new(inner: R, cap: u64) -> Self {
        Capped { inner, left: cap }
    }
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::FileTooLarge, "it unpacks to more than is allowed")
        })?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of an xz stream with one block whose LZMA2 dictionary has this size code (xz file format
    /// 5.3.1).
    fn with_dictionary(code: u8) -> Vec<u8> {
        let mut stream = b"\xfd7zXZ\0\0\0\xff\x12\xd9A".to_vec();
        let mut block = vec![2, 0, 0x21, 1, code, 0, 0, 0];
        block.extend(crc32fast::hash(&block).to_le_bytes());
        stream.extend(block);
        stream.extend([1, 0, 0, b'x', 0]);
        stream
    }

    #[test]
    fn a_dictionary_of_gigabytes_is_refused() {
        let mut out = Vec::new();
        let sound = with_dictionary(20);
        // The one byte of the block comes before the stream turns out to be cut short.
        let error = xz(&sound[..]).unwrap().read_to_end(&mut out).unwrap_err();
        assert_eq!(
            (&out[..], error.kind()),
            (&b"x"[..], io::ErrorKind::UnexpectedEof)
        );
        out.clear();
        let huge = with_dictionary(40);
        let error = xz_streams(&huge[..]).unwrap().read_to_end(&mut out).unwrap_err();
        assert!(out.is_empty() && error.to_string().contains("memory"), "{error}");
    }

    #[test]
    fn a_bomb_ends_at_its_cap() {
        let mut out = Vec::new();
        Capped::new(io::repeat(0).take(100), 100)
            .read_to_end(&mut out)
            .unwrap();
        let error = Capped::new(io::repeat(0).take(101), 100)
            .read_to_end(&mut out)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
