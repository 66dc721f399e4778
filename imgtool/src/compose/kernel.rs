//! The kernel in the form that a direct boot wants: x86 an uncompressed ELF, arm64 an `Image`.
//!
//! Distributions ship it compressed in a wrapper: x86's bzImage (Documentation/arch/x86/boot.rst), arm64's
//! gzip or EFI zboot (drivers/firmware/efi/libstub/zboot-header.S). Decompressing once at build time saves it
//! at every launch.

use std::io::Read;

use ami::Architecture;

use super::Error;
use crate::decompress;
use crate::target::Target;
use crate::tree::{Kind, Tree};

/// Largest compressed kernel taken, and largest decompressed: distribution kernels have 15 and 65 MB.
const MAX_COMPRESSED: u64 = 256 << 20;
const MAX_KERNEL: u64 = 512 << 20;

const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// The "legacy" frame of `lz4 -l`, which kernels use.
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const ELF: &[u8] = b"\x7fELF";

/// A kernel ready to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, as `uname -r` prints it; nothing when the file does not say.
    pub release: Option<String>,
    /// The ELF or Image.
    pub bytes: Vec<u8>,
}

impl Kernel {
    /// What programs besides it must be built for, in an image of `architecture`.
    pub fn target(&self, architecture: Architecture) -> Target {
        match is_elf32(&self.bytes) {
            true => Target::I686,
            false => Target::of(architecture),
        }
    }
}

/// Find the kernel in the files of its packages and extract it. Before Debian's 6.19 it is
/// `/boot/vmlinuz-RELEASE`, since then `/usr/lib/modules/RELEASE/vmlinuz`.
pub fn from_tree(tree: &Tree, architecture: Architecture) -> Result<Kernel, Error> {
    let mut found = Vec::new();
    if let Some(boot) = tree.find_followed(b"boot")? {
        for (name, id) in tree.children(boot) {
            if let Some(release) = name.strip_prefix(b"vmlinuz-") {
                found.push((String::from_utf8_lossy(release).into_owned(), id));
            }
        }
    }
    if found.is_empty()
        && let Some(modules) = tree.find_followed(b"usr/lib/modules")?
    {
        for (release, dir) in tree.children(modules) {
            if let Some(id) = tree
                .node(dir)
                .is_dir()
                .then(|| tree.child(dir, b"vmlinuz"))
                .flatten()
            {
                found.push((String::from_utf8_lossy(release).into_owned(), id));
            }
        }
    }
    let [(release, id)] = &found[..] else {
        let names: Vec<_> = found.into_iter().map(|(release, _)| release).collect();
        return Err(if names.is_empty() {
            Error::NoKernel
        } else {
            Error::SeveralKernels(names.join(", "))
        });
    };
    let name = format!("vmlinuz-{release}");
    let Kind::File(content) = &tree.node(*id).kind else {
        return Err(Error::Kernel {
            name,
            why: "it is not a regular file".into(),
        });
    };
    let image = content.read(MAX_COMPRESSED).map_err(|source| Error::Read {
        what: name.clone(),
        source,
    })?;
    Ok(Kernel {
        release: Some(release.clone()),
        bytes: extract(&name, &image, architecture)?,
    })
}

/// Extract a kernel image given as a file; its release is taken from the image where it says.
pub fn from_bytes(name: &str, image: &[u8], architecture: Architecture) -> Result<Kernel, Error> {
    Ok(Kernel {
        release: bzimage_release(image),
        bytes: extract(name, image, architecture)?,
    })
}

/// An uncompressed kernel from any of the wrappers.
pub fn extract(name: &str, image: &[u8], architecture: Architecture) -> Result<Vec<u8>, Error> {
    let plain = match architecture {
        Architecture::X86_64 | Architecture::I386 => extract_x86(image, architecture),
        Architecture::Arm64 => extract_arm64(image),
    };
    plain.map_err(|why| Error::Kernel {
        name: name.to_owned(),
        why,
    })
}

fn extract_x86(image: &[u8], architecture: Architecture) -> Result<Vec<u8>, String> {
    let elf = if image.starts_with(ELF) {
        image.to_vec()
    } else {
        decompress(bzimage_payload(image)?)?
    };
    if is_elf32(&elf) {
        return match architecture {
            Architecture::I386 => Ok(elf),
            _ => Err(format!(
                "it is a 32-bit kernel, which runs no {architecture} programs"
            )),
        };
    }
    // e_ident: 64-bit, little-endian; e_machine: 62 is x86-64.
    if elf.len() < 64 || !elf.starts_with(ELF) || elf[4..6] != [2, 1] || elf[18..20] != [62, 0] {
        return Err("it does not contain an x86 ELF".into());
    }
    Ok(elf)
}

/// Whether it is a 32-bit x86 ELF: e_ident has class and byte order; e_machine 3 is 386.
fn is_elf32(elf: &[u8]) -> bool {
    elf.len() >= 52 && elf.starts_with(b"\x7fELF\x01\x01") && elf[18..20] == [3, 0]
}

fn extract_arm64(image: &[u8]) -> Result<Vec<u8>, String> {
    let plain = if image.starts_with(GZIP) {
        decompress(image)?
    } else if image.starts_with(b"MZ") && image.get(4..8) == Some(b"zimg") {
        let (offset, length) = (le32(image, 8)? as usize, le32(image, 12)? as usize);
        let end = offset
            .checked_add(length)
            .ok_or("its payload does not fit in it")?;
        decompress(image.get(offset..end).ok_or("its payload lies outside of it")?)?
    } else {
        image.to_vec()
    };
    // Documentation/arch/arm64/booting.rst: the magic "ARM\x64" at 56.
    if plain.get(56..60) != Some(b"ARM\x64") {
        return Err("it does not contain an arm64 Image".into());
    }
    Ok(plain)
}

/// The compressed kernel in a bzImage: boot protocol 2.08 and later give its place.
fn bzimage_payload(image: &[u8]) -> Result<&[u8], String> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("it is neither an ELF nor a bzImage".into());
    }
    let version = le32(image, 0x206)? & 0xffff;
    if version < 0x208 {
        return Err(format!(
            "its boot protocol {}.{:02} is too old",
            version >> 8,
            version & 0xff
        ));
    }
    // 0 setup sectors means 4, for the sake of history.
    let sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + le32(image, 0x248)? as usize;
    let end = start + le32(image, 0x24c)? as usize;
    image
        .get(start..end)
        .ok_or_else(|| "its payload lies outside of it: the file is cut short".into())
}

/// The release in a bzImage's version string, which is "RELEASE (builder) …".
fn bzimage_release(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return None;
    }
    let offset = usize::from(u16::from_le_bytes([*image.get(0x20e)?, *image.get(0x20f)?])) + 0x200;
    let text = image.get(offset..)?.split(|b| *b == 0 || *b == b' ').next()?;
    let sound = !text.is_empty() && text.len() < 100 && text.iter().all(u8::is_ascii_graphic);
    sound.then(|| String::from_utf8_lossy(text).into_owned())
}

/// Decompress by magic. All but gzip payloads have the plain size appended (scripts/Makefile.lib,
/// `size_append`), which ends the input of streams that know their own end.
fn decompress(payload: &[u8]) -> Result<Vec<u8>, String> {
    let context = |what: &'static str| move |e: std::io::Error| format!("its {what} payload is damaged: {e}");
    if payload.starts_with(GZIP) {
        limited(flate2::bufread::GzDecoder::new(payload)).map_err(context("gzip"))
    } else if payload.starts_with(XZ) {
        decompress::xz(payload).and_then(limited).map_err(context("xz"))
    } else if payload.starts_with(ZSTD) {
        let decoder = zstd::stream::read::Decoder::with_buffer(payload).map_err(context("zstd"))?;
        limited(decoder.single_frame()).map_err(context("zstd"))
    } else if payload.starts_with(LZ4_LEGACY) {
        lz4_legacy(payload).map_err(|why| format!("its LZ4 payload is damaged: {why}"))
    } else {
        Err("its payload is compressed in a way that is not known here (gzip, xz, zstd and LZ4 are)".into())
    }
}

fn limited(reader: impl Read) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    reader.take(MAX_KERNEL + 1).read_to_end(&mut out)?;
    if out.len() as u64 > MAX_KERNEL {
        return Err(std::io::Error::other("it decompresses to more than 512 MiB"));
    }
    Ok(out)
}

/// The legacy LZ4 frame: magic, then blocks of a 32-bit compressed size and data, each at most 8 MiB
/// decompressed.
fn lz4_legacy(payload: &[u8]) -> Result<Vec<u8>, String> {
    const BLOCK: usize = 8 << 20;
    let mut rest = &payload[4..];
    let mut out = Vec::new();
    // The last four bytes are the appended size.
    while rest.len() > 4 {
        let size = le32(rest, 0)? as usize;
        let block = rest
            .get(4..)
            .and_then(|r| r.get(..size))
            .ok_or("a block runs past its end")?;
        out.extend(lz4_flex::block::decompress(block, BLOCK).map_err(|e| e.to_string())?);
        if out.len() as u64 > MAX_KERNEL {
            return Err("it decompresses to more than 512 MiB".into());
        }
        rest = &rest[4 + size..];
    }
    let expected = le32(rest, 0)? as usize;
    if out.len() == expected {
        Ok(out)
    } else {
        Err(format!("{} bytes, {expected} expected", out.len()))
    }
}

fn le32(bytes: &[u8], at: usize) -> Result<u32, String> {
    let field = bytes.get(at..).and_then(|b| b.first_chunk::<4>());
    field
        .map(|b| u32::from_le_bytes(*b))
        .ok_or_else(|| "it is cut short".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn elf() -> Vec<u8> {
        let mut elf = vec![0; 300_000];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        elf.iter_mut()
            .enumerate()
            .skip(64)
            .for_each(|(i, b)| *b = (i / 1000) as u8);
        elf
    }

    fn with_size(mut payload: Vec<u8>, plain: &[u8]) -> Vec<u8> {
        payload.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        payload
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x20e..0x210].copy_from_slice(&0x180u16.to_le_bytes());
        image[0x380..0x38d].copy_from_slice(b"6.12.1-x (me)");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend([0xcc; 16]);
        image.extend_from_slice(payload);
        image.extend([0xcc; 512]);
        image
    }

    fn payloads() -> Vec<(&'static str, Vec<u8>)> {
        let elf = elf();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf).unwrap();
        // As the kernel's build does: the x86 branch filter before LZMA2.
        let mut filters = liblzma::stream::Filters::new();
        filters.x86();
        filters.lzma2(&liblzma::stream::LzmaOptions::new_preset(1).unwrap());
        let stream =
            liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32).unwrap();
        let mut xz = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        xz.write_all(&elf).unwrap();
        let mut lz4 = LZ4_LEGACY.to_vec();
        let block = lz4_flex::block::compress(&elf);
        lz4.extend((block.len() as u32).to_le_bytes());
        lz4.extend(block);
        vec![
            ("gzip", gzip.finish().unwrap()),
            ("xz", with_size(xz.finish().unwrap(), &elf)),
            ("zstd", with_size(zstd::encode_all(&elf[..], 3).unwrap(), &elf)),
            ("LZ4", with_size(lz4, &elf)),
        ]
    }

    #[test]
    fn every_compression_gives_the_same_elf() {
        for (name, payload) in payloads() {
            let kernel = from_bytes(name, &bzimage(&payload), Architecture::X86_64).unwrap();
            assert!(kernel.bytes == elf(), "{name}");
            assert_eq!(kernel.release.as_deref(), Some("6.12.1-x"));
        }
        assert!(extract("elf", &elf(), Architecture::X86_64).unwrap() == elf());
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        for (name, payload) in payloads() {
            let image = bzimage(&payload);
            for length in (0..image.len() - 512).step_by(97) {
                assert!(
                    extract(name, &image[..length], Architecture::X86_64).is_err(),
                    "{name} cut at {length}"
                );
            }
            for at in (0..image.len()).step_by(61) {
                let mut flipped = image.clone();
                flipped[at] ^= 0x40;
                let _ = extract(name, &flipped, Architecture::X86_64);
            }
        }
        let error = extract("x", b"hello", Architecture::X86_64).unwrap_err();
        assert!(
            error.to_string().contains("neither an ELF nor a bzImage"),
            "{error}"
        );
    }

    #[test]
    fn a_kernel_for_another_machine_is_refused() {
        let mut arm = elf();
        arm[18] = 183;
        assert!(extract("x", &arm, Architecture::X86_64).is_err());
        assert!(extract("x", &elf(), Architecture::Arm64).is_err());
        let mut narrow = elf();
        (narrow[4], narrow[18]) = (1, 3);
        let error = extract("x", &narrow, Architecture::X86_64).unwrap_err();
        assert!(error.to_string().contains("32-bit kernel"), "{error}");
    }

    #[test]
    fn thirty_two_bit_programs_run_on_kernels_of_both_kinds() {
        let mut narrow = elf();
        (narrow[4], narrow[18]) = (1, 3);
        for (bytes, target) in [(elf(), Target::X86_64), (narrow, Target::I686)] {
            let kernel = from_bytes("x", &bytes, Architecture::I386).unwrap();
            assert!(kernel.bytes == bytes);
            assert_eq!(kernel.target(Architecture::I386), target);
        }
    }

    #[test]
    fn arm64_images_come_plain_gzipped_or_in_zboot() {
        let mut image = vec![7; 5000];
        image[56..60].copy_from_slice(b"ARM\x64");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&image).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zboot = vec![0; 64];
        zboot[..2].copy_from_slice(b"MZ");
        zboot[4..8].copy_from_slice(b"zimg");
        zboot[8..12].copy_from_slice(&64u32.to_le_bytes());
        zboot[12..16].copy_from_slice(&(gzip.len() as u32).to_le_bytes());
        zboot.extend_from_slice(&gzip);
        for wrapped in [&image, &gzip, &zboot] {
            assert!(extract("x", wrapped, Architecture::Arm64).unwrap() == image);
        }
    }
}
