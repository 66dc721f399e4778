//! Copying a file with its holes, sharing blocks where the file system can.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

/// Copies the data of `from` to `to`, which must not exist, and makes it durable. What could not be completed
/// is removed.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(to)?;
    copy_data(&source, &target).inspect_err(|_| {
        let _ = std::fs::remove_file(to);
    })
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let mut at = 0;
    while let Some((start, end)) = next_data(source, at, len)? {
        copy_range(source, target, start, end)?;
        at = end;
    }
    target.sync_all()
}

/// The next range of data at or after `from`.
fn next_data(file: &File, from: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= len {
        return Ok(None);
    }
    let start = match lseek(file, from as i64, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start as u64, (end as u64).min(len))))
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start as i64, start as i64);
    while (from as u64) < end {
        let left = (end - from as u64).min(1 << 30) as usize;
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), left) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // Across file systems on an old kernel, or a file system that does not take part.
            Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EINVAL) => {
                return copy_by_hand(source, target, from as u64, end);
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 1 << 20];
    let mut at = start;
    while at < end {
        let part = (end - at).min(buffer.len() as u64) as usize;
        source.read_exact_at(&mut buffer[..part], at)?;
        target.write_all_at(&buffer[..part], at)?;
        at += part as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn content_and_holes_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[7; 5000], 1 << 20).unwrap();
        file.write_all_at(&[9; 10], (64 << 20) - 10).unwrap();
        copy(&from, &to).unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        let copied = std::fs::metadata(&to).unwrap();
        assert!(copied.blocks() * 512 <= 1 << 20, "{} blocks", copied.blocks());
        assert!(copy(&from, &to).is_err(), "an existing file is not overwritten");
        assert!(to.exists());
    }

    #[test]
    fn a_hole_to_the_end_and_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1 << 20] {
            let (from, to) = (
                dir.path().join(format!("from{len}")),
                dir.path().join(format!("to{len}")),
            );
            File::create(&from).unwrap().set_len(len).unwrap();
            copy(&from, &to).unwrap();
            assert_eq!(std::fs::metadata(&to).unwrap().len(), len);
        }
    }
}
