//! Packing: a walk over a tree that may change meanwhile. Files change while they are read, and devices,
//! FIFOs and sockets have no content.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::sparse::{self, Segment};
use super::{Error, Report, at};

/// A file up to this size is read before its header is written, so that the header says what was read: sizes
/// in /proc and /sys are not those of the content, and logs grow.
const READ_FIRST: u64 = 1 << 20;
/// Most content of a file that says it is empty, which those of /proc do: above the largest of them that end.
const UNSIZED: u64 = 16 << 20;
/// Segments in a header, and in each header that extends it.
const IN_HEADER: usize = 4;
const IN_EXTENSION: usize = 21;

/// Packs `path` under its last name; a folder with all that is in it. Symbolic links stay links, hard links
/// stay together, holes stay holes, FIFOs and devices are named and not read.
///
/// A file that vanishes meanwhile is not in the archive, one that grows is there as long as it was. The
/// report names sockets, which are left out, and what could not be read, or not as far as it was when it was
/// opened.
///
/// # Errors
/// When `path` itself cannot be packed, or `to` fails.
pub fn pack(path: &Path, to: impl Write) -> Result<Report, Error> {
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut packer = Packer {
        archive: tar::Builder::new(to),
        linked: HashMap::new(),
        report: Report::default(),
        pending: Vec::new(),
    };
    // What was asked for by name is not left out in silence.
    match packer.add(path, &name)? {
        Added::Yes => {}
        Added::Socket => {
            let why = "is a socket, and a socket has no content to copy";
            let path = path.to_owned().into();
            return Err(Error::Refused { path, why });
        }
        Added::Failed(source) => return Err(at(path)(source)),
    }
    while let Some((path, name)) = packer.pending.pop() {
        match packer.add(&path, &name)? {
            Added::Yes => {}
            Added::Socket => packer.report.left_out(&path, "is a socket"),
            Added::Failed(error) if error.kind() == io::ErrorKind::NotFound => {}
            Added::Failed(error) => packer.report.failed(&path, error),
        }
    }
    let mut to = packer.archive.into_inner().map_err(Error::Archive)?;
    to.flush().map_err(Error::Archive)?;
    Ok(packer.report)
}

/// What became of one file.
enum Added {
    /// It is in the archive; what it lacks is in the report.
    Yes,
    /// It is a socket.
    Socket,
    /// It could not be read, and nothing of it is in the archive.
    Failed(io::Error),
}

struct Packer<W: Write> {
    archive: tar::Builder<W>,
    /// The first name of each file that has several.
    linked: HashMap<(u64, u64), PathBuf>,
    report: Report,
    /// What is still to be packed, the next one last: a file and its name in the archive.
    pending: Vec<(PathBuf, PathBuf)>,
}

/// Leaves the function with what became of the file, if the operating system has refused something.
macro_rules! get {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Ok(Added::Failed(error)),
        }
    };
}

impl<W: Write> Packer<W> {
    /// Packs one file. An error is the archive's.
    fn add(&mut self, path: &Path, name: &Path) -> Result<Added, Error> {
        let metadata = get!(path.symlink_metadata());
        let kind = metadata.file_type();
        let mut header = header_of(&metadata);
        if kind.is_file() {
            return self.file(path, name);
        }
        if kind.is_dir() {
            self.folder(path, name);
        } else if kind.is_symlink() {
            let target = get!(path.read_link());
            let linked = self.archive.append_link(&mut header, name, target);
            return linked.map(|()| Added::Yes).map_err(Error::Archive);
        } else if kind.is_char_device() || kind.is_block_device() {
            let number = metadata.rdev();
            get!(header.set_device_major(libc::major(number)));
            get!(header.set_device_minor(libc::minor(number)));
        } else if !kind.is_fifo() {
            return Ok(Added::Socket);
        }
        let added = self.archive.append_data(&mut header, name, io::empty());
        added.map(|()| Added::Yes).map_err(Error::Archive)
    }

    /// Takes note of what is in a folder. A folder that may not be read is packed empty, and reported.
    fn folder(&mut self, path: &Path, name: &Path) {
        let names: io::Result<Vec<_>> = fs::read_dir(path).and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.file_name()))
                .collect()
        });
        match names {
            Ok(mut names) => {
                // The first name is to be popped first.
                names.sort_unstable_by(|a, b| b.cmp(a));
                let both = |child: std::ffi::OsString| (path.join(&child), name.join(&child));
                self.pending.extend(names.into_iter().map(both));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.report.failed(path, error),
        }
    }

    fn file(&mut self, path: &Path, name: &Path) -> Result<Added, Error> {
        // Should it have become a FIFO or a link meanwhile, opening it neither waits nor leads elsewhere.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = get!(opened);
        let metadata = get!(file.metadata());
        if !metadata.is_file() {
            return Ok(Added::Failed(io::Error::other("it was replaced meanwhile")));
        }
        let mut header = header_of(&metadata);
        let identity = (metadata.dev(), metadata.ino());
        if metadata.nlink() > 1
            && let Some(first) = self.linked.get(&identity)
        {
            header.set_entry_type(EntryType::Link);
            let linked = self.archive.append_link(&mut header, name, first);
            return linked.map(|()| Added::Yes).map_err(Error::Archive);
        }
        if metadata.len() <= READ_FIRST {
            let content = get!(read(&file, metadata.len()));
            header.set_size(content.len() as u64);
            let added = self.archive.append_data(&mut header, name, &content[..]);
            added.map_err(Error::Archive)?;
        } else {
            self.long_file(path, name, &file, &mut header, metadata.len())?;
        }
        if metadata.nlink() > 1 {
            self.linked.insert(identity, name.to_owned());
        }
        Ok(Added::Yes)
    }

    /// Packs a file whose header goes before its content is known. What it lacks in the end is zeros, and
    /// reported.
    fn long_file(
        &mut self,
        path: &Path,
        name: &Path,
        file: &File,
        header: &mut Header,
        size: u64,
    ) -> Result<(), Error> {
        let segments = sparse::segments(file, size);
        let whole = segments.first().is_some_and(|first| first.length == size);
        let extensions = match whole {
            true => Vec::new(),
            false => describe(header, &segments, size),
        };
        header.set_size(segments.iter().map(|segment| segment.length).sum());
        let mut content = Content {
            file,
            segments: &segments,
            done: 0,
            lacks: None,
        };
        let data = (&extensions[..]).chain(&mut content);
        let added = self.archive.append_data(header, name, data);
        added.map_err(Error::Archive)?;
        if let Some(why) = content.lacks {
            self.report.failed(path, why);
        }
        Ok(())
    }
}

/// The header of a file without its size and name.
fn header_of(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    header.set_size(0);
    // The format knows no time before 1970.
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header
}

/// Reads a file of `size` bytes; of one that says it has none, all that there is.
fn read(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    if size > 0 {
        file.take(size).read_to_end(&mut content)?;
        return Ok(content);
    }
    file.take(UNSIZED + 1).read_to_end(&mut content)?;
    if content.len() as u64 > UNSIZED {
        return Err(io::Error::other(
            "it says that it is empty and does not end within 16 MiB",
        ));
    }
    Ok(content)
}

/// Makes `header` that of a sparse file (GNU tar's manual, "Old GNU Format") and returns the headers that
/// extend it.
fn describe(header: &mut Header, segments: &[Segment], size: u64) -> Vec<u8> {
    // A segment of no bytes at the end says how long the file is.
    let end = Segment {
        offset: size,
        length: 0,
    };
    let all: Vec<Segment> = segments.iter().copied().chain([end]).collect();
    header.set_entry_type(EntryType::GNUSparse);
    let (first, rest) = all.split_at(all.len().min(IN_HEADER));
    // `Header::new_gnu` made it.
    if let Some(gnu) = header.as_gnu_mut() {
        gnu.set_real_size(size);
        gnu.set_is_extended(!rest.is_empty());
        for (place, segment) in gnu.sparse.iter_mut().zip(first) {
            place.set_offset(segment.offset);
            place.set_length(segment.length);
        }
    }
    let mut bytes = Vec::new();
    let mut extensions = rest.chunks(IN_EXTENSION).peekable();
    while let Some(segments) = extensions.next() {
        let mut extension = GnuExtSparseHeader::new();
        for (place, segment) in extension.sparse.iter_mut().zip(segments) {
            place.set_offset(segment.offset);
            place.set_length(segment.length);
        }
        extension.set_is_extended(extensions.peek().is_some());
        bytes.extend_from_slice(extension.as_bytes());
    }
    bytes
}

/// Reads exactly the segments of a file, whatever becomes of the file meanwhile.
struct Content<'a> {
    file: &'a File,
    segments: &'a [Segment],
    /// How much of the first of them is read.
    done: u64,
    /// Why there were zeros instead of content.
    lacks: Option<io::Error>,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self
            .segments
            .first()
            .is_some_and(|first| self.done == first.length)
        {
            self.segments = &self.segments[1..];
            self.done = 0;
        }
        let Some(first) = self.segments.first() else {
            return Ok(0);
        };
        let room = (first.length - self.done).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..room];
        let n = match self.file.read_at(buffer, first.offset + self.done) {
            Ok(0) if room > 0 => self.zeros(buffer, io::Error::other("it became shorter meanwhile")),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => self.zeros(buffer, error),
        };
        self.done += n as u64;
        Ok(n)
    }
}

impl Content<'_> {
    fn zeros(&mut self, buffer: &mut [u8], why: io::Error) -> usize {
        self.lacks.get_or_insert(why);
        buffer.fill(0);
        buffer.len()
    }
}
