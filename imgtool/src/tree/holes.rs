//! Holes of a file, found in its content: a tree unpacked on a file system without holes has the same.

use std::io::{self, Read};

use super::Content;
use super::content::PiecesReader;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// This many bytes that are not all zero.
    Data(u64),
    /// This many zeros.
    Hole(u64),
}

/// The parts of a file, from its beginning to its end. Zeros are a hole where they fill units of `unit`
/// bytes.
pub fn runs(content: &Content, unit: u64) -> io::Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut add = |run| match (runs.last_mut(), run) {
        (Some(Run::Hole(total)), Run::Hole(length)) | (Some(Run::Data(total)), Run::Data(length)) => {
            *total += length
        }
        _ => runs.push(run),
    };
    let mut buffer = vec![0; unit as usize];
    let mut source = Source::of(content)?;
    let mut left = content.len();
    while left > 0 {
        let known = source.skip_hole(unit);
        if known > 0 {
            add(Run::Hole(known));
            left -= known;
            continue;
        }
        let piece = &mut buffer[..unit.min(left) as usize];
        source.read_exact(piece)?;
        let length = piece.len() as u64;
        let hole = length == unit && piece.iter().all(|byte| *byte == 0);
        add(if hole {
            Run::Hole(length)
        } else {
            Run::Data(length)
        });
        left -= length;
    }
    Ok(runs)
}

/// The data of a file, its holes passed over.
pub struct DataReader<'a> {
    source: Source<'a>,
    runs: &'a [Run],
    index: usize,
    /// Bytes of the current run already read.
    done: u64,
}

impl<'a> DataReader<'a> {
    /// Reads the data among the `runs` of a file; all of it, when there are no runs.
    pub fn new(content: &'a Content, runs: &'a [Run]) -> io::Result<Self> {
        Ok(Self {
            source: Source::of(content)?,
            runs,
            index: 0,
            done: 0,
        })
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.runs.is_empty() {
            return self.source.read(buffer);
        }
        loop {
            match self.runs.get(self.index) {
                None => return Ok(0),
                Some(Run::Hole(length)) => {
                    self.source.pass(*length)?;
                    self.index += 1;
                }
                Some(Run::Data(length)) if self.done == *length => {
                    (self.index, self.done) = (self.index + 1, 0);
                }
                Some(Run::Data(length)) => {
                    let left = usize::try_from(length - self.done).unwrap_or(usize::MAX);
                    let want = buffer.len().min(left);
                    let got = self.source.read(&mut buffer[..want])?;
                    self.done += got as u64;
                    return Ok(got);
                }
            }
        }
    }
}

/// A file's bytes. Holes that are known need not be read: an archive may name one of a terabyte.
enum Source<'a> {
    Plain(Box<dyn Read + 'a>),
    Pieces(PiecesReader),
}

impl<'a> Source<'a> {
    fn of(content: &'a Content) -> io::Result<Self> {
        Ok(match content.open_pieces() {
            Some(reader) => Source::Pieces(reader),
            None => Source::Plain(content.open()?),
        })
    }

    /// Passes over whole units of a hole that begins here, and says how many bytes that was.
    fn skip_hole(&mut self, unit: u64) -> u64 {
        match self {
            Source::Plain(_) => 0,
            Source::Pieces(reader) => {
                let length = reader.hole() / unit * unit;
                reader.pass(length);
                length
            }
        }
    }

    fn pass(&mut self, length: u64) -> io::Result<()> {
        match self {
            Source::Plain(reader) => {
                io::copy(&mut reader.take(length), &mut io::sink())?;
            }
            Source::Pieces(reader) => reader.pass(length),
        }
        Ok(())
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Source::Plain(reader) => reader.read(buffer),
            Source::Pieces(reader) => reader.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Piece;

    #[test]
    fn known_holes_are_the_same_as_zeros() {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[vec![1; 700], vec![0; 300], vec![2; 24]].concat())
            .unwrap();
        let pieces = vec![
            Piece::Data {
                offset: 0,
                length: 1000,
            },
            Piece::Hole(5000),
            Piece::Data {
                offset: 1000,
                length: 24,
            },
            Piece::Hole(3000),
        ];
        let content = Content::pieces(file.into(), pieces);
        let bytes = content.read(1 << 20).unwrap();
        let plain = Content::bytes(bytes.clone());
        for unit in [1, 64, 512, 4096] {
            let found = runs(&content, unit).unwrap();
            assert_eq!(found, runs(&plain, unit).unwrap(), "{unit}");
            let mut data = Vec::new();
            DataReader::new(&content, &found)
                .unwrap()
                .read_to_end(&mut data)
                .unwrap();
            let (mut at, mut expected) = (0, Vec::new());
            for run in &found {
                let (Run::Data(length) | Run::Hole(length)) = run;
                let part = &bytes[at..at + *length as usize];
                if matches!(run, Run::Data(_)) {
                    expected.extend_from_slice(part);
                }
                at += part.len();
            }
            assert_eq!((at, data), (bytes.len(), expected), "{unit}");
        }
    }

    #[test]
    fn a_hole_of_a_terabyte_is_not_read() {
        let pieces = vec![Piece::Hole((1 << 40) - 1)];
        let content = Content::pieces(tempfile::tempfile().unwrap().into(), pieces);
        let unit = 1 << 16;
        assert_eq!(
            runs(&content, unit).unwrap(),
            [Run::Hole((1 << 40) - unit), Run::Data(unit - 1)]
        );
    }
}
