//! The `.deb` format, deb(5): an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*`.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::Damage;
use crate::archive::{self, EntryKind};
use crate::decompress::{self, Capped};

/// The control part holds a few scripts and lists of paths; the largest in Debian is below 20 MiB.
const MAX_CONTROL: u64 = 64 << 20;
/// No package of Debian unpacks to half of this; a decompression bomb ends here.
pub const MAX_DATA: u64 = 16 << 30;
/// zstd windows up to 128 MiB, which `zstd --ultra -22` uses.
const MAX_ZSTD_WINDOW_LOG: u32 = 27;

const AR_MAGIC: &[u8] = b"!<arch>\n";
const AR_HEADER: usize = 60;

/// How a member is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Xz,
    Zstd,
}

/// A `.deb` in memory, split into its members.
#[derive(Debug, Clone, Copy)]
pub struct Deb<'a> {
    control: (&'a [u8], Form),
    data: (&'a [u8], Form),
}

/// The control part: the paragraph that describes the package, and the other files by name.
#[derive(Debug, Clone, Default)]
pub struct Control {
    /// The text of `control`.
    pub paragraph: String,
    /// `postinst`, `conffiles`, `md5sums`, …, with their permissions.
    pub files: BTreeMap<String, (u16, Vec<u8>)>,
}

impl<'a> Deb<'a> {
    /// Finds the members.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Damage> {
        let mut members = Members {
            rest: bytes.strip_prefix(AR_MAGIC).ok_or(Damage::NoDeb)?,
        };
        match members.next()? {
            Some((b"debian-binary", version)) if version.starts_with(b"2.") => {}
            _ => return Err(Damage::NoDeb),
        }
        let (mut control, mut data) = (None, None);
        while let Some((name, content)) = members.next()? {
            let (slot, suffix) = match (name.strip_prefix(b"control.tar"), name.strip_prefix(b"data.tar")) {
                (Some(suffix), _) => (&mut control, suffix),
                (_, Some(suffix)) => (&mut data, suffix),
                // deb(5): members that begin with an underscore may be passed over.
                (None, None) if name.starts_with(b"_") => continue,
                (None, None) => return Err(Damage::Member(crate::tree::show(name))),
            };
            let form = match suffix {
                b"" => Form::Plain,
                b".gz" => Form::Gzip,
                b".xz" => Form::Xz,
                b".zst" => Form::Zstd,
                _ => return Err(Damage::Compression(crate::tree::show(name))),
            };
            if slot.replace((content, form)).is_some() {
                return Err(Damage::Member(crate::tree::show(name)));
            }
        }
        let control = control.ok_or(Damage::Lacks("control.tar"))?;
        Ok(Self {
            control,
            data: data.ok_or(Damage::Lacks("data.tar"))?,
        })
    }

    /// The tar stream of files, decompressed on the way and cut off at [`MAX_DATA`].
    pub fn data(&self) -> Result<impl Read + 'a, Damage> {
        Ok(Capped::new(decompressor(self.data)?, MAX_DATA))
    }

    /// The tar stream of control files.
    fn control_stream(&self) -> Result<impl Read + 'a, Damage> {
        Ok(Capped::new(decompressor(self.control)?, MAX_CONTROL))
    }

    /// Reads the control part.
    pub fn control(&self) -> Result<Control, Damage> {
        let mut control = Control::default();
        archive::visit(self.control_stream()?, |entry, reader| {
            let EntryKind::File(_) = entry.kind else {
                return Ok(());
            };
            let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
            let name = str::from_utf8(name)
                .ok()
                .filter(|name| !name.is_empty() && !name.contains('/'));
            let name = name.ok_or_else(|| archive::Damage::Path(crate::tree::show(&entry.path)))?;
            if entry.pieces.is_some() {
                return Err(Damage::Member(name.to_owned()));
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map_err(Damage::io)?;
            if name == "control" {
                control.paragraph = String::from_utf8(content).map_err(|_| Damage::Lacks("control"))?;
            } else {
                control.files.insert(name.to_owned(), (entry.mode, content));
            }
            Ok(())
        })?;
        match control.paragraph.is_empty() {
            true => Err(Damage::Lacks("control")),
            false => Ok(control),
        }
    }
}

/// Writes the package again with its members uncompressed, so that the dpkg that unpacks it has nothing to
/// compute. Returns the newest time of its files, in seconds since 1970.
pub fn repack(deb: &Deb<'_>, out: &mut (impl Write + Seek)) -> Result<i64, Damage> {
    out.write_all(AR_MAGIC).map_err(Damage::io)?;
    write_member(out, "debian-binary", &mut &b"2.0\n"[..])?;
    write_member(out, "control.tar", &mut deb.control_stream()?)?;
    let newest = write_member(out, "data.tar", &mut deb.data()?)?;
    out.flush().map_err(Damage::io)?;
    Ok(newest)
}

/// Streams a member and fills in its size afterwards; the newest time of a tar stream is taken on the way.
fn write_member(out: &mut (impl Write + Seek), name: &str, content: &mut impl Read) -> Result<i64, Damage> {
    let header = |size: u64| format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{size:<10}`\n", 0, 0, 0, "100644");
    let start = out.stream_position().map_err(Damage::io)?;
    out.write_all(header(0).as_bytes()).map_err(Damage::io)?;
    let mut newest = 0;
    let mut tee = Tee {
        from: content,
        to: out,
        copied: 0,
    };
    if name.ends_with(".tar") {
        archive::visit(&mut tee, |entry, _| {
            newest = newest.max(entry.mtime);
            Ok::<_, Damage>(())
        })?;
    }
    io::copy(&mut tee, &mut io::sink()).map_err(Damage::io)?;
    let size = tee.copied;
    // The field has ten digits.
    if size > 9_999_999_999 {
        return Err(Damage::Member(name.to_owned()));
    }
    if size % 2 == 1 {
        out.write_all(b"\n").map_err(Damage::io)?;
    }
    let end = out.stream_position().map_err(Damage::io)?;
    out.seek(SeekFrom::Start(start)).map_err(Damage::io)?;
    out.write_all(header(size).as_bytes()).map_err(Damage::io)?;
    out.seek(SeekFrom::Start(end)).map_err(Damage::io)?;
    Ok(newest)
}

/// Writes what is read.
struct Tee<'a, R, W> {
    from: &'a mut R,
    to: &'a mut W,
    copied: u64,
}

impl<R: Read, W: Write> Read for Tee<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.to.write_all(&buffer[..n])?;
        self.copied += n as u64;
        Ok(n)
    }
}

/// Name and content.
type Member<'a> = (&'a [u8], &'a [u8]);

/// The members of an `ar` archive.
struct Members<'a> {
    rest: &'a [u8],
}

impl<'a> Members<'a> {
    fn next(&mut self) -> Result<Option<Member<'a>>, Damage> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (header, rest) = self.rest.split_at_checked(AR_HEADER).ok_or(Damage::Truncated)?;
        if &header[58..] != b"`\n" {
            return Err(Damage::NoDeb);
        }
        let name = header[..16].trim_ascii_end();
        let name = name.strip_suffix(b"/").unwrap_or(name);
        let size = str::from_utf8(&header[48..58])
            .ok()
            .and_then(|s| s.trim_end().parse::<usize>().ok());
        let (content, rest) = rest
            .split_at_checked(size.ok_or(Damage::NoDeb)?)
            .ok_or(Damage::Truncated)?;
        // Members begin at even offsets.
        self.rest = if content.len() % 2 == 1 {
            rest.get(1..).unwrap_or_default()
        } else {
            rest
        };
        Ok(Some((name, content)))
    }
}

fn decompressor<'a>((data, form): (&'a [u8], Form)) -> Result<Box<dyn Read + 'a>, Damage> {
    Ok(match form {
        Form::Plain => Box::new(data),
        Form::Gzip => Box::new(flate2::read::MultiGzDecoder::new(data)),
        Form::Xz => {
            let decoder = decompress::xz_streams(data).map_err(Damage::io)?;
            Box::new(io::BufReader::with_capacity(1 << 18, decoder))
        }
        Form::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(data).map_err(Damage::io)?;
            decoder.window_log_max(MAX_ZSTD_WINDOW_LOG).map_err(Damage::io)?;
            Box::new(decoder)
        }
    })
}
