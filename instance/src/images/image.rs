//! An AMI as a launch sees it: opened, its parts ready to be mapped, what boots verified.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ami::{Ami, AmiId, Manifest, PartName, Region};

use crate::store::home::{Home, base_link, create_private};
use crate::store::record::Record;
use crate::{Error, Result};
use machine::block::volume::Base;
use machine::memory::{self, Part};

/// Bytes of the longest seal: five numbers of 20 digits at most, and what stands between them.
const SEAL_MAX: usize = 128;

/// An open AMI.
pub struct Image {
    ami: Ami,
    path: PathBuf,
    /// Partition tables, kernel and initramfs are known to be what the manifest says.
    verified: AtomicBool,
}

impl Image {
    /// Opens the AMI at `path` and checks all but the content of its parts.
    pub fn open(path: &Path) -> Result<Image> {
        Image::opened(path, |_, _| false)
    }

    /// The same to run it: a file that has not been touched since it was [verified](Image::verify_boot) is not
    /// looked through again, and is not to be verified again. That would cost most of the time of a launch.
    pub fn open_to_run(path: &Path, home: &Home) -> Result<Image> {
        Image::opened(path, |id, seal| is_remembered(&home.seal(id.as_str()), seal))
    }

    /// `is_known` is asked whether the image of this id was verified in a file with this seal.
    fn opened(path: &Path, is_known: impl FnOnce(&AmiId, &str) -> bool) -> Result<Image> {
        let file = fs::File::open(path).map_err(Error::file("opening", path))?;
        let path = real_path(&file, path).map_err(Error::file("opening", path))?;
        let seal = seal(&file, &path)?;
        let mut verified = false;
        let ami = Ami::from_known_file(file, &path, |id| {
            verified = is_known(id, &seal);
            verified
        })?;
        Ok(Image {
            ami,
            path,
            verified: AtomicBool::new(verified),
        })
    }

    /// The image of the instance kept in `directory`: its own link to it, or the file that it was launched
    /// from.
    ///
    /// # Errors
    /// When the file is gone or is another image now.
    pub fn of_instance(record: &Record, directory: &Path) -> Result<Image> {
        Image::open(&image_path(record, directory))?.expected_by(record)
    }

    /// The same [to run it](Image::open_to_run).
    ///
    /// # Errors
    /// The same.
    pub fn of_instance_to_run(record: &Record, directory: &Path, home: &Home) -> Result<Image> {
        Image::open_to_run(&image_path(record, directory), home)?.expected_by(record)
    }

    /// This image, if it is the one that `record` was launched from.
    fn expected_by(self, record: &Record) -> Result<Image> {
        if self.id() == record.image.id {
            return Ok(self);
        }
        Err(Error::ImageChanged {
            now: self.id().to_owned(),
            then: record.image.id.clone(),
            path: self.path,
        })
    }

    /// `ami-` and 17 hexadecimal digits.
    pub fn id(&self) -> &str {
        self.ami.id().as_str()
    }

    /// The name that the recipe gave it.
    pub fn name(&self) -> &str {
        &self.manifest().name
    }

    /// The file, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image's manifest.
    pub fn manifest(&self) -> &Manifest {
        self.ami.manifest()
    }

    /// Size of the root volume in bytes, unless a launch asks for another.
    pub fn root_size(&self) -> u64 {
        self.manifest().root_volume_size()
    }

    /// The root partition, each chunk verified before its first byte is used.
    pub fn root(&self) -> Result<Base> {
        let part = self.ami.part(PartName::Root)?;
        let chunks = self.ami.root_chunks()?;
        Base::new(
            Arc::clone(self.ami.file()),
            part.offset,
            part.length,
            part.blake3.0,
        )
        .verified_by(
            ami::CHUNK_SIZE,
            Box::new(move |index, content| chunks.verify_from(index, content)),
        )
        .map_err(Error::file("opening", &self.path))
    }

    /// The kernel, to be mapped.
    pub fn kernel(&self) -> Result<memory::Part> {
        self.part(PartName::Kernel)
    }

    /// The initramfs, to be mapped.
    pub fn initramfs(&self) -> Result<memory::Part> {
        self.part(PartName::Initramfs)
    }

    /// The open file.
    pub fn file(&self) -> &fs::File {
        self.ami.file()
    }

    /// Offset and length of a part in the file, in bytes.
    pub fn range(&self, name: PartName) -> Result<(u64, u64)> {
        let part = self.ami.part(name)?;
        Ok((part.offset, part.length))
    }

    fn part(&self, name: PartName) -> Result<memory::Part> {
        let part = self.ami.part(name)?;
        let file = Arc::clone(self.ami.file());
        let (start, length) = (part.offset, part.length);
        Ok(memory::Part::new(
            file,
            self.ami.length(),
            &self.path,
            start,
            length,
        )?)
    }

    /// State and memory of the guest that a warm image holds: the memory to be mapped. `max` bytes of state at
    /// most.
    ///
    /// # Errors
    /// When the image holds none, or its state is longer.
    pub fn warm(&self, max: u64) -> Result<(Vec<u8>, memory::Part)> {
        let memory = self.part(PartName::Memory)?;
        let length = self.ami.part(PartName::State)?.length;
        if length > max {
            return Err(Error::StateTooLong { length, max });
        }
        let mut state = vec![0; length as usize];
        self.ami.read_at(PartName::State, 0, &mut state)?;
        Ok((state, memory))
    }

    /// Verifies every byte of the file.
    pub fn verify(&self) -> Result<()> {
        Ok(self.ami.verify_all(&|_: Region, _| {})?)
    }

    /// Verifies kernel and initramfs, which are placed and not looked at again. A file that has not been
    /// touched since it was verified is not read again.
    pub fn verify_boot(&self, home: &Home) -> Result<()> {
        if !self.verified.load(Relaxed) {
            self.verify_once(&home.seal(self.id()), &[PartName::Kernel, PartName::Initramfs])?;
            self.verified.store(true, Relaxed);
        }
        Ok(())
    }

    /// The same for memory and state of the guest that a warm image holds.
    pub fn verify_warm(&self, home: &Home) -> Result<()> {
        self.verify_once(&home.warm_seal(self.id()), &[PartName::Memory, PartName::State])
    }

    /// Notes that both need no verification: this process has written the image, and has read what is in the
    /// file for its digests.
    pub fn note_verified(&self, home: &Home) {
        let noted = seal(self.ami.file(), &self.path).and_then(|seal| {
            remember(&home.seal(self.id()), &seal)?;
            remember(&home.warm_seal(self.id()), &seal)
        });
        if let Err(error) = noted {
            tracing::debug!(%error, "the verification is not remembered");
        }
    }

    fn verify_once(&self, record: &Path, parts: &[PartName]) -> Result<()> {
        let seal = seal(self.ami.file(), &self.path)?;
        if is_remembered(record, &seal) {
            return Ok(());
        }
        for &part in parts {
            self.ami.verify_part(part)?;
        }
        if let Err(error) = remember(record, &seal) {
            tracing::debug!(%error, "the verification is not remembered");
        }
        Ok(())
    }
}

/// What changes when the file does. The change time would say more, but the hard link that a launch makes
/// moves it.
fn seal(file: &fs::File, path: &Path) -> Result<String> {
    let m = file.metadata().map_err(Error::file("examining", path))?;
    Ok(format!(
        "{} {} {} {} {}\n",
        m.dev(),
        m.ino(),
        m.len(),
        m.mtime(),
        m.mtime_nsec()
    ))
}

/// The file of the instance kept in `directory`.
fn image_path(record: &Record, directory: &Path) -> PathBuf {
    if record.image.linked {
        base_link(directory)
    } else {
        record.image.path.clone()
    }
}

/// Where `file`, opened at `path`, really is: the kernel knows it whole, without a look at every folder on
/// the way.
fn real_path(file: &fs::File, path: &Path) -> io::Result<PathBuf> {
    match fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(real) if real.is_absolute() && !file_is_gone(&real) => Ok(real),
        _ => path.canonicalize(),
    }
}

/// The kernel marks the path of a file that was unlinked since.
fn file_is_gone(real: &Path) -> bool {
    real.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")
}

fn is_remembered(record: &Path, seal: &str) -> bool {
    let mut known = [0; SEAL_MAX];
    let read = fs::File::open(record).and_then(|file| file.read_at(&mut known, 0));
    read.is_ok_and(|len| &known[..len] == seal.as_bytes())
}

fn remember(record: &Path, seal: &str) -> Result<()> {
    let directory = record.parent().unwrap_or(record);
    create_private(directory)?;
    // A reader of half a line finds that it differs and verifies again.
    fs::write(record, seal).map_err(Error::file("writing", record))
}

/// The file at `path`, or the image's own part.
pub fn part_or(path: Option<&Path>, otherwise: impl FnOnce() -> Result<Part>) -> Result<Part> {
    match path {
        Some(path) => Ok(Part::open(path)?),
        None => otherwise(),
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.id(), self.path.display())
    }
}

/// Whether an image can run here: hardware runs kernels of its own kind, the processor in software runs
/// x86-64.
pub fn runnable(image: &Image) -> Result<()> {
    let architecture = image.manifest().architecture;
    if architecture.is_native() || architecture.of_kernel() == ami::Architecture::X86_64 {
        return Ok(());
    }
    Err(Error::ForeignImage {
        path: image.path.clone(),
        image: architecture,
        host: std::env::consts::ARCH,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::test_image;
    use ami::Architecture;

    #[test]
    fn an_image_is_looked_through_once_and_again_when_its_file_was_touched() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let path = test_image::write(directory.path(), "image", 1);
        let image = Image::open_to_run(&path, &home).unwrap();
        assert!(!image.verified.load(Relaxed));
        image.verify_boot(&home).unwrap();

        let file = fs::File::options().write(true).open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let touch = |time| file.set_modified(time).unwrap();
        // In the protective MBR, in a way that the time of the file does not show.
        file.write_all_at(&[0xff], 446).unwrap();
        touch(modified);
        assert!(Image::open_to_run(&path, &home).unwrap().verified.load(Relaxed));
        let damaged = |opened: Result<Image>| opened.unwrap_err().to_string();
        assert!(damaged(Image::open(&path)).contains("partition table"));
        touch(modified + std::time::Duration::from_nanos(1));
        assert!(damaged(Image::open_to_run(&path, &home)).contains("partition table"));
    }

    #[test]
    fn an_image_that_nothing_here_can_run_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for architecture in Architecture::ALL {
            let path = test_image::write_for(architecture, directory.path(), architecture.as_str(), 1);
            let image = Image::open(&path).unwrap();
            let possible =
                architecture != Architecture::Arm64 || Architecture::host() == Some(Architecture::Arm64);
            match runnable(&image) {
                Ok(()) => assert!(possible),
                Err(error) => {
                    let text = error.to_string();
                    assert!(!possible, "{text}");
                    assert_eq!(error.code(), Code::Unsupported);
                    for words in ["arm64.ami", "is for arm64", std::env::consts::ARCH] {
                        assert!(text.contains(words), "{text}");
                    }
                }
            }
        }
    }
}
