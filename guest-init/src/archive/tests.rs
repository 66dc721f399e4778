use super::*;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

fn packed(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let report = pack(path, &mut bytes).unwrap();
    assert!(report.is_empty(), "{report:?}");
    bytes
}

fn lines(report: &Report) -> Vec<String> {
    report.lines().collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn a_copy_goes_into_an_existing_folder_or_takes_the_given_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("from/deep")).unwrap();
    fs::write(at("from/deep/file"), "text").unwrap();
    symlink("deep/file", at("from/link")).unwrap();
    fs::create_dir(at("to")).unwrap();
    let archive = packed(&at("from"));
    unpack(archive.as_slice(), &at("to"), Receiver::Guest).unwrap();
    assert_eq!(fs::read_to_string(at("to/from/link")).unwrap(), "text");
    unpack(archive.as_slice(), &at("to/named"), Receiver::Guest).unwrap();
    assert_eq!(fs::read_to_string(at("to/named/deep/file")).unwrap(), "text");

    let file = packed(&at("from/deep/file"));
    fs::write(at("to/old"), "before").unwrap();
    unpack(file.as_slice(), &at("to/old"), Receiver::Guest).unwrap();
    assert_eq!(fs::read_to_string(at("to/old")).unwrap(), "text");
    assert!(unpack(file.as_slice(), &at("nowhere/file"), Receiver::Guest).is_err());
    assert!(
        unpack([0; 10].as_slice(), &at("to/half"), Receiver::Guest).is_err(),
        "a damaged archive"
    );
    assert_eq!(fs::read_dir(at("to")).unwrap().count(), 3, "nothing is left over");
}

#[test]
fn an_archive_cannot_leave_its_folder_nor_bring_masked_bits() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o4755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    // set_path would refuse it.
    header.as_gnu_mut().unwrap().name[..9].copy_from_slice(b"../escape");
    header.set_cksum();
    archive.append(&header, b"x".as_slice()).unwrap();
    header.set_path("tool").unwrap();
    header.set_cksum();
    archive.append(&header, b"x".as_slice()).unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let archive = archive.into_inner().unwrap();
    let report = unpack(archive.as_slice(), &folder, Receiver::Host).unwrap();
    assert_eq!(lines(&report), ["left out: ../escape would leave its folder"]);
    assert!(!dir.path().join("escape").exists());
    assert_eq!(mode(&folder.join("tool")), 0o755);
}

/// Links that an archive brings lead out of the folder; a file below them would be written there.
#[test]
fn nothing_is_written_through_a_link_that_leads_out() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    for field in [tar::Header::set_uid, tar::Header::set_gid, tar::Header::set_mtime] {
        field(&mut header, 0);
    }
    header.set_mode(0o644);
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Symlink);
    archive.append_link(&mut header, "out", "..").unwrap();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_size(1);
    archive
        .append_data(&mut header, "out/escape", b"x".as_slice())
        .unwrap();
    let archive = archive.into_inner().unwrap();
    let error = unpack(archive.as_slice(), &folder, Receiver::Host).unwrap_err();
    assert!(error.to_string().contains("link to somewhere else"), "{error}");
    assert!(!dir.path().join("escape").exists());
}

/// A writer appends while the file is packed again and again: each archive is whole, and holds a beginning of
/// the file.
#[test]
fn a_growing_file_is_copied_as_long_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    for begin in [10, 3 << 20] {
        let path = dir.path().join(format!("log-{begin}"));
        fs::write(&path, vec![b'x'; begin]).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut log = fs::OpenOptions::new().append(true).open(&path).unwrap();
                // With a timeout, should the other side fail.
                for _ in 0..20_000 {
                    log.write_all(b"another line\n").unwrap();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for round in 0..10 {
                let archive = packed(&path);
                let to = dir.path().join(format!("copy-{begin}-{round}"));
                unpack(archive.as_slice(), &to, Receiver::Host).unwrap();
                let copy = fs::read(&to).unwrap();
                assert!(copy.len() >= begin && copy[..begin].iter().all(|&byte| byte == b'x'));
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}

#[test]
fn files_that_say_they_are_empty_are_copied_with_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("version");
    let archive = packed(Path::new("/proc/sys/kernel/ostype"));
    unpack(archive.as_slice(), &to, Receiver::Host).unwrap();
    assert_eq!(fs::read_to_string(&to).unwrap(), "Linux\n");
    // And those whose size is a page and whose content is not.
    let size = "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size";
    if let Ok(content) = fs::read(size) {
        let archive = packed(Path::new(size));
        let to = dir.path().join("size");
        unpack(archive.as_slice(), &to, Receiver::Host).unwrap();
        assert_eq!(fs::read(&to).unwrap(), content);
    }
}

/// Truncates a file under the reader's hands: what is missing is zeros, the rest of the tree is there, and
/// the report says so.
#[test]
fn a_file_that_becomes_shorter_is_reported() {
    struct Cutter<'a> {
        bytes: Vec<u8>,
        file: &'a Path,
    }
    impl Write for Cutter<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.bytes.len() > 1 << 20 {
                File::options().write(true).open(self.file)?.set_len(100)?;
            }
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("long"), vec![7; 4 << 20]).unwrap();
    fs::write(from.join("other"), "whole").unwrap();
    let mut cutter = Cutter {
        bytes: Vec::new(),
        file: &from.join("long"),
    };
    let report = pack(&from, &mut cutter).unwrap();
    assert_eq!(report.failures(), 1);
    assert!(
        lines(&report)[0].contains("from/long: it became shorter"),
        "{report:?}"
    );
    let to = dir.path().join("to");
    unpack(cutter.bytes.as_slice(), &to, Receiver::Host).unwrap();
    assert_eq!(fs::metadata(to.join("long")).unwrap().len(), 4 << 20);
    assert_eq!(fs::read_to_string(to.join("other")).unwrap(), "whole");
}

#[test]
fn a_socket_is_left_out_of_a_tree_and_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    fs::write(from.join("file"), "text").unwrap();
    let mut bytes = Vec::new();
    let report = pack(&from, &mut bytes).unwrap();
    assert!(
        lines(&report)[0].ends_with("from/socket is a socket"),
        "{report:?}"
    );
    assert_eq!(report.failures(), 0);
    let to = dir.path().join("to");
    unpack(bytes.as_slice(), &to, Receiver::Host).unwrap();
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "text");
    let error = pack(&from.join("socket"), io::sink()).unwrap_err();
    assert!(error.to_string().contains("socket is a socket"), "{error}");
}

#[test]
fn a_fifo_is_copied_without_being_opened() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("fifo");
    nix::unistd::mkfifo(&from, nix::sys::stat::Mode::from_bits_truncate(0o640)).unwrap();
    fs::set_permissions(&from, fs::Permissions::from_mode(0o640)).unwrap();
    let to = dir.path().join("copy");
    unpack(packed(&from).as_slice(), &to, Receiver::Host).unwrap();
    let metadata = fs::symlink_metadata(&to).unwrap();
    assert!(metadata.file_type().is_fifo());
    assert_eq!(mode(&to), 0o640);
}

#[test]
fn a_guests_device_is_not_made_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let archive = packed(Path::new("/dev/null"));
    let to = dir.path().join("null");
    let error = unpack(archive.as_slice(), &to, Receiver::Host).unwrap_err();
    assert!(error.to_string().contains("null is a device"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    if is_root() && unpack(archive.as_slice(), &to, Receiver::Guest).is_ok() {
        let made = fs::symlink_metadata(&to).unwrap();
        assert!(made.file_type().is_char_device());
        assert_eq!(made.rdev(), fs::metadata("/dev/null").unwrap().rdev());
    }
}

/// Renaming a finished copy to `/dev/null` would replace the device, which root may do.
#[test]
fn a_device_is_not_replaced_by_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("file");
    fs::write(&from, "text").unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("fifo", dir.path().join("link")).unwrap();
    for to in ["fifo", "link"] {
        let error = unpack(packed(&from).as_slice(), &dir.path().join(to), Receiver::Host).unwrap_err();
        assert!(
            error.to_string().contains("fifo is neither a file nor a folder"),
            "{error}"
        );
    }
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    // A link to a file, or to where one may be, leads there.
    for target in ["file", "new"] {
        let link = dir.path().join(format!("to-{target}"));
        symlink(target, &link).unwrap();
        unpack(packed(&from).as_slice(), &link, Receiver::Host).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(dir.path().join(target)).unwrap(), "text");
    }
}

#[test]
fn hard_links_stay_together() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("a")).unwrap();
    fs::write(from.join("a/first"), "text").unwrap();
    let long = "x".repeat(150);
    fs::hard_link(from.join("a/first"), from.join(&long)).unwrap();
    let to = dir.path().join("to");
    unpack(packed(&from).as_slice(), &to, Receiver::Host).unwrap();
    let [first, second] = [to.join("a/first"), to.join(&long)].map(|path| fs::metadata(path).unwrap());
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
}

#[test]
fn holes_are_neither_sent_nor_filled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let mut file = File::create(&path).unwrap();
    let size = 1 << 30;
    // More segments than a header and an extension hold.
    for part in 0..40 {
        file.seek(SeekFrom::Start(part * 4_000_000)).unwrap();
        write!(file, "part {part}").unwrap();
    }
    file.set_len(size).unwrap();
    if fs::metadata(&path).unwrap().blocks() * 512 > 1 << 25 {
        return; // This file system has no holes.
    }
    let archive = packed(&path);
    assert!(archive.len() < 1 << 23, "{} bytes", archive.len());
    let to = dir.path().join("copy");
    unpack(archive.as_slice(), &to, Receiver::Host).unwrap();
    let copy = fs::metadata(&to).unwrap();
    assert_eq!(copy.len(), size);
    assert!(copy.blocks() * 512 < 1 << 23, "{} blocks", copy.blocks());
    let mut file = File::open(&to).unwrap();
    for part in 0..40 {
        file.seek(SeekFrom::Start(part * 4_000_000)).unwrap();
        let expected = format!("part {part}");
        let mut found = vec![0; expected.len() + 1];
        io::Read::read_exact(&mut file, &mut found).unwrap();
        assert_eq!(found, [expected.as_bytes(), b"\0"].concat());
    }
    // One hole, and a file of the size that is read at once.
    for length in [5 << 20, 5 << 10] {
        let path = dir.path().join(format!("hole-{length}"));
        File::create(&path).unwrap().set_len(length).unwrap();
        let to = dir.path().join(format!("copy-{length}"));
        unpack(packed(&path).as_slice(), &to, Receiver::Host).unwrap();
        let copy = fs::metadata(&to).unwrap();
        assert_eq!((copy.len(), copy.blocks()), (length, 0));
    }
}

#[test]
fn names_of_any_bytes_and_lengths_are_copied() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let long = [b"\xfe".repeat(120), b"\n \t".to_vec()].concat();
    let names: [&[u8]; 4] = [b"\xff\x1b[2J", b"new\nline", b" ", &long];
    for name in names {
        fs::write(from.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let to = dir.path().join("to");
    unpack(packed(&from).as_slice(), &to, Receiver::Host).unwrap();
    for name in names {
        assert_eq!(
            fs::read(to.join(std::ffi::OsStr::from_bytes(name))).unwrap(),
            name
        );
    }
    assert_eq!(printable(Path::new("a\x1b[2J\n")), "a\\u{1b}[2J\\n");
}

#[test]
fn modes_and_times_are_kept_and_a_folder_that_is_there_keeps_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("closed")).unwrap();
    fs::write(from.join("closed/file"), "text").unwrap();
    for (path, mode) in [("closed/file", 0o400), ("closed", 0o555), ("", 0o555)] {
        fs::set_permissions(from.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let old = nix::sys::time::TimeSpec::new(1_000_000_000, 0);
    nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        &from.join("closed"),
        &old,
        &old,
        nix::sys::stat::UtimensatFlags::FollowSymlink,
    )
    .unwrap();
    let archive = packed(&from);
    let to = dir.path().join("to");
    unpack(archive.as_slice(), &to, Receiver::Host).unwrap();
    assert_eq!((mode(&to), mode(&to.join("closed"))), (0o555, 0o555));
    assert_eq!(mode(&to.join("closed/file")), 0o400);
    assert_eq!(fs::metadata(to.join("closed")).unwrap().mtime(), 1_000_000_000);
    let into = dir.path().join("into");
    fs::create_dir_all(into.join("from")).unwrap();
    fs::set_permissions(into.join("from"), fs::Permissions::from_mode(0o770)).unwrap();
    unpack(archive.as_slice(), &into, Receiver::Host).unwrap();
    assert_eq!(
        (mode(&into.join("from")), mode(&into.join("from/closed"))),
        (0o770, 0o555)
    );
    for path in [&from, &to] {
        // So that an ordinary user can remove them.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(path.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(into.join("from/closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// What was root's and gives its caller root's rights does so in the guest as well; what was another's must
/// not begin to.
#[test]
fn set_user_id_stays_with_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    for (uid, receiver, expected) in [
        (0, Receiver::Guest, 0o4755),
        (1000, Receiver::Guest, 0o755),
        (0, Receiver::Host, 0o755),
    ] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o4755);
        header.set_uid(uid);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, "tool", b"x".as_slice()).unwrap();
        let to = dir.path().join(format!("tool-{uid}-{receiver:?}"));
        unpack(archive.into_inner().unwrap().as_slice(), &to, receiver).unwrap();
        assert_eq!(mode(&to), expected, "{uid} {receiver:?}");
    }
}

#[test]
fn an_unreadable_file_is_reported_and_the_rest_copied() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "text").unwrap();
    fs::write(from.join("secret"), "text").unwrap();
    fs::set_permissions(from.join("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut bytes = Vec::new();
    let report = pack(&from, &mut bytes).unwrap();
    // Root reads everything.
    assert_eq!(report.failures(), u64::from(!is_root()), "{report:?}");
    let to = dir.path().join("to");
    unpack(bytes.as_slice(), &to, Receiver::Host).unwrap();
    assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "text");
    // Reading the first bytes of a process's memory is an error.
    let error = pack(Path::new("/proc/self/mem"), io::sink()).unwrap_err();
    assert!(error.to_string().starts_with("/proc/self/mem: "), "{error}");
}

#[test]
fn errors_name_the_file_by_the_path_that_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "text").unwrap();
    let to = dir.path().join("to");
    fs::create_dir_all(to.join("from/file")).unwrap();
    let error = unpack(packed(&from).as_slice(), &to, Receiver::Host).unwrap_err();
    let expected = format!("{} is a folder", to.join("from/file").display());
    assert!(error.to_string().starts_with(&expected), "{error}");
}

/// A guest that sends headers without end is stopped before they fill the host's memory.
#[test]
fn headers_without_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let stream = io::Read::chain(header.as_bytes().as_slice(), io::repeat(b'x'));
    let error = unpack(stream, &dir.path().join("x"), Receiver::Host).unwrap_err();
    assert!(error.to_string().contains("do not end"), "{error}");
}
