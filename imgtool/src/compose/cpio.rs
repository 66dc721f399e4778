//! The cpio format that the kernel unpacks an initramfs from: "newc"
//! (Documentation/driver-api/early-userspace/ buffer-format.rst). Every field is fixed, so that the same
//! entries are the same bytes.

/// A newc archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    out: Vec<u8>,
    next_inode: u32,
}

/// Bits of a mode that say what an entry is.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self {
            out: Vec::new(),
            next_inode: 1,
        }
    }

    /// Add a directory, mode 0755, owned by root. Parents must come first.
    pub fn directory(&mut self, name: &str) {
        self.entry(&Entry {
            name,
            mode: DIRECTORY | 0o755,
            links: 2,
            device: (0, 0),
            content: &[],
        });
    }

    /// Add a regular file owned by root with these permission bits.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        let mode = REGULAR | (permissions & 0o7777);
        self.entry(&Entry {
            name,
            mode,
            links: 1,
            device: (0, 0),
            content,
        });
    }

    /// Add a character device, mode 0600, owned by root.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) {
        let device = (major, minor);
        self.entry(&Entry {
            name,
            mode: CHARACTER | 0o600,
            links: 1,
            device,
            content: &[],
        });
    }

    /// End the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.next_inode = 0;
        self.entry(&Entry {
            name: "TRAILER!!!",
            mode: 0,
            links: 1,
            device: (0, 0),
            content: &[],
        });
        self.out
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        let (size, name_size) = (entry.content.len() as u32, entry.name.len() as u32 + 1);
        let (major, minor) = entry.device;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize,
        // check
        let fields = [
            self.next_inode,
            entry.mode,
            0,
            0,
            entry.links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(entry.name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(entry.content);
        self.pad();
        self.next_inode += 1;
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

/// The regular files of a newc archive, by name.
///
/// # Errors
/// What is wrong with the archive, when it is damaged.
pub fn files(archive: &[u8]) -> Result<std::collections::BTreeMap<&str, &[u8]>, &'static str> {
    const CUT: &str = "its initramfs is cut short";
    let mut files = std::collections::BTreeMap::new();
    let mut at: usize = 0;
    loop {
        let header = archive
            .get(at..)
            .and_then(|rest| rest.first_chunk::<110>())
            .ok_or(CUT)?;
        let text = std::str::from_utf8(header)
            .ok()
            .and_then(|h| h.strip_prefix("070701"));
        let text = text.ok_or("its initramfs is not a newc archive")?;
        let field = |index: usize| {
            let digits = text.get(index * 8..index * 8 + 8);
            digits
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .ok_or("its initramfs has a damaged header")
        };
        let (mode, size, name_size) = (field(1)?, field(6)? as usize, field(11)? as usize);
        let name_end = at + 110 + name_size;
        let name = archive
            .get(at + 110..name_end)
            .and_then(|name| name.strip_suffix(b"\0"))
            .ok_or(CUT)?;
        if name == b"TRAILER!!!" {
            return Ok(files);
        }
        let start = name_end.next_multiple_of(4);
        let content = archive.get(start..start + size).ok_or(CUT)?;
        if mode & 0o170_000 == REGULAR
            && let Ok(name) = std::str::from_utf8(name)
        {
            files.insert(name, content);
        }
        at = (start + size).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_follow_the_newc_format() {
        let mut archive = Archive::new();
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        let header = "070701" // magic
            .to_owned() + "00000001" // ino
            + "000081ed" // mode
            + "00000000" + "00000000" // owner
            + "00000001" // links
            + "00000000" // time
            + "00000005" // size
            + "00000000" + "00000000" + "00000000" + "00000000" // devices
            + "00000005" + "00000000" // name with NUL, check
            + "init\0";
        assert!(bytes.starts_with(header.as_bytes()));
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|w| w == b"TRAILER!!!"));
    }

    #[test]
    fn files_are_read_back_and_damage_is_an_error() {
        let mut archive = Archive::new();
        archive.directory("lib");
        archive.file("lib/a.ko", 0o644, b"module");
        archive.file("init", 0o755, b"");
        let bytes = archive.finish();
        let found = files(&bytes).unwrap();
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("init", &b""[..]), ("lib/a.ko", b"module")]
        );
        for length in 0..bytes.len() - 4 {
            assert!(files(&bytes[..length]).is_err());
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] = b'f';
            let _ = files(&changed);
        }
    }

    #[test]
    fn cpio_reads_it_back() {
        let mut archive = Archive::new();
        archive.directory("lib");
        archive.file("lib/a.ko", 0o644, &[7; 10_001]);
        archive.device("console", 5, 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.cpio");
        std::fs::write(&path, archive.finish()).unwrap();
        let Ok(output) = std::process::Command::new("cpio")
            .args(["-itv", "--quiet", "-F"])
            .arg(&path)
            .output()
        else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        let list = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = list.lines().collect();
        assert!(
            lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" lib"),
            "{list}"
        );
        assert!(
            lines[1].starts_with("-rw-r--r--") && lines[1].contains("10001"),
            "{list}"
        );
        assert!(
            lines[2].starts_with("crw-------") && lines[2].contains("5,   1"),
            "{list}"
        );
    }
}
