//! Archives that the host's GNU tar writes, and that it reads.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use super::*;
use crate::import::tests::{names, text};
use crate::tree::{Content, Kind, Meta, NodeId};

const MACHINE: ami::Architecture = ami::Architecture::X86_64;

/// Runs a shell command in a directory.
fn sh(dir: &Path, line: &str) {
    let status = Command::new("sh").args(["-ec", line]).current_dir(dir).status();
    assert!(status.unwrap().success(), "{line}");
}

fn load_from(dir: &Path, name: &str) -> Result<Tree, Error> {
    load(&dir.join(name), MACHINE, dir).map(|imported| imported.tree)
}

fn node<'a>(tree: &'a Tree, path: &str) -> &'a crate::tree::Node {
    let id: NodeId = tree.find(path.as_bytes()).unwrap().unwrap();
    tree.node(id)
}

fn content<'a>(tree: &'a Tree, path: &str) -> &'a Content {
    match &node(tree, path).kind {
        Kind::File(content) => content,
        other => panic!("{path}: {other:?}"),
    }
}

/// Files with holes at the beginning, in the middle and at the end, with few pieces and with many.
fn write_sparse(dir: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let block = |bytes: &mut Vec<u8>, at: usize, value: u8| bytes[at..at + 4096].fill(value);
    let mut ends = vec![0; (2 << 20) + 100];
    block(&mut ends, 0, 1);
    ends[(2 << 20) + 50] = 2;
    let mut middle = vec![0; 3 << 20];
    block(&mut middle, 1 << 20, 3);
    let mut many = vec![0; 8 << 20];
    for piece in 0..60 {
        block(&mut many, (2 * piece + 1) << 16, 4);
    }
    let files = vec![
        ("ends", ends),
        ("middle", middle),
        ("many", many),
        ("hole", vec![0; 1 << 20]),
        ("plain", vec![5; 5000]),
    ];
    std::fs::create_dir(dir.join("in")).unwrap();
    for (name, bytes) in &files {
        let file = File::create(dir.join("in").join(name)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (number, block) in bytes.chunks(4096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, number as u64 * 4096).unwrap();
            }
        }
    }
    files
}

#[test]
fn files_with_holes_are_read_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_sparse(dir.path());
    for form in [
        "gnu",
        "pax --sparse-version=0.0",
        "pax --sparse-version=0.1",
        "pax --sparse-version=1.0",
    ] {
        // By their content: not every file system says where its holes are.
        sh(
            dir.path(),
            &format!("tar --sparse --hole-detection=raw --format={form} -cf s.tar -C in ."),
        );
        assert!(
            std::fs::metadata(dir.path().join("s.tar")).unwrap().len() < 1 << 20,
            "{form}"
        );
        let tree = load_from(dir.path(), "s.tar").unwrap();
        assert_eq!(
            names(&tree),
            ["ends", "hole", "many", "middle", "plain"],
            "{form}"
        );
        for (name, bytes) in &files {
            let content = content(&tree, name);
            assert!(content.read(1 << 30).unwrap() == *bytes, "{form}: {name}");
            assert_eq!(
                matches!(content, Content::Pieces { .. }),
                *name != "plain",
                "{form}: {name}"
            );
        }
    }
}

#[test]
fn holes_are_written_as_gnu_tar_reads_them() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_sparse(dir.path());
    let mut tree = Tree::new();
    let mut meta = Meta::new(0o600, 0, 0, 1_000_000);
    meta.xattrs.insert(b"user.note".to_vec(), b"kept".to_vec());
    for (name, bytes) in &files {
        let path = format!("d/{name}");
        tree.create_dirs(b"d", &Meta::new(0o755, 0, 0, 0)).unwrap();
        tree.insert(
            path.as_bytes(),
            Kind::File(Content::bytes(bytes.clone())),
            meta.clone(),
        )
        .unwrap();
    }
    // Longer than a header holds.
    let long = format!("d/{}/{}", "n".repeat(200), "m".repeat(200));
    tree.create_dirs(
        format!("d/{}", "n".repeat(200)).as_bytes(),
        &Meta::new(0o755, 0, 0, 0),
    )
    .unwrap();
    tree.insert(
        long.as_bytes(),
        Kind::File(Content::bytes(vec![0; 1 << 20])),
        meta.clone(),
    )
    .unwrap();
    let id = tree.find(b"d/many").unwrap().unwrap();
    tree.link(b"second", id).unwrap();
    let path = dir.path().join("ours.tar");
    crate::archive::write(&tree, File::create(&path).unwrap()).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 5 << 20);
    sh(
        dir.path(),
        "mkdir out; tar --no-same-owner -xf ours.tar -C out; cmp out/second out/d/many; cmp -n 1048576 out/d/n*/m* /dev/zero",
    );
    for (name, bytes) in &files {
        let out = dir.path().join("out/d").join(name);
        assert!(std::fs::read(&out).unwrap() == *bytes, "{name}");
        assert_eq!(std::fs::metadata(&out).unwrap().mtime(), 1_000_000);
    }
    let ours = load_from(dir.path(), "ours.tar").unwrap();
    let again = crate::archive::read(&path).unwrap();
    for tree in [&ours, &again] {
        for (name, bytes) in &files {
            let path = format!("d/{name}");
            assert!(content(tree, &path).read(1 << 30).unwrap() == *bytes, "{name}");
            assert_eq!(node(tree, &path).meta, meta, "{name}");
        }
        assert_eq!(tree.find(b"second").unwrap(), tree.find(b"d/many").unwrap());
        assert_eq!(content(tree, &long).len(), 1 << 20);
    }
}

#[test]
fn numbers_beyond_a_header_and_bzip2_are_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "text").unwrap();
    for form in ["pax", "gnu"] {
        let owner = "--owner=someone:3000000000 --group=some:4000000000 --mtime=@-1000.5";
        sh(
            dir.path(),
            &format!("tar --format={form} {owner} -cf big.tar file; bzip2 -kf big.tar"),
        );
        for name in ["big.tar", "big.tar.bz2"] {
            let tree = load_from(dir.path(), name).unwrap();
            let meta = &node(&tree, "file").meta;
            assert_eq!((meta.uid, meta.gid), (3_000_000_000, 4_000_000_000), "{form}");
            assert_eq!(meta.mtime, -1001, "{form}");
            assert_eq!(text(&tree, "file"), "text");
        }
    }
}

type Records<'a> = &'a [(&'a str, &'a [u8])];

/// An entry with these pax records, the size of whose header says nothing.
fn with_records(records: Records<'_>, data: &[u8]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_path("file").unwrap();
    for number in [
        ::tar::Header::set_uid,
        ::tar::Header::set_gid,
        ::tar::Header::set_mtime,
    ] {
        number(&mut header, 0);
    }
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, data).unwrap();
    let mut after = ::tar::Header::new_ustar();
    after.set_path("after").unwrap();
    for number in [
        ::tar::Header::set_uid,
        ::tar::Header::set_gid,
        ::tar::Header::set_mtime,
    ] {
        number(&mut after, 0);
    }
    after.set_mode(0o644);
    after.set_size(5);
    after.set_cksum();
    builder.append(&after, &b"after"[..]).unwrap();
    builder.into_inner().unwrap()
}

fn import(bytes: &[u8]) -> Result<Tree, Error> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("source"), bytes).unwrap();
    load_from(dir.path(), "source")
}

#[test]
fn pax_records_come_before_the_header() {
    let acl = b"user::rw-,user:1000:r--,group::r--,mask::r--,other::---";
    let records: [(&str, &[u8]); 7] = [
        ("size", b"600"),
        ("uid", b"70000"),
        ("mtime", b"12.999"),
        ("SCHILY.acl.access", acl),
        ("SCHILY.xattr.user.a", b"1\n2"),
        ("LIBARCHIVE.xattr.user.b%25c", b"Yg"),
        ("LIBARCHIVE.xattr.user.a", b"b3RoZXI"),
    ];
    let tree = import(&with_records(&records, &[b'x'; 600])).unwrap();
    assert_eq!(text(&tree, "file"), "x".repeat(600));
    assert_eq!(text(&tree, "after"), "after");
    let meta = &node(&tree, "file").meta;
    assert_eq!((meta.uid, meta.mtime), (70_000, 12));
    let attribute = |name: &[u8]| meta.xattrs.get(name).cloned().unwrap_or_default();
    assert_eq!(attribute(b"user.a"), b"1\n2");
    assert_eq!(attribute(b"user.b%c"), b"b");
    let list = attribute(b"system.posix_acl_access");
    assert_eq!(
        (list.len(), list[12], list[16..20].to_vec()),
        (44, 2, 1000_u32.to_le_bytes().to_vec())
    );
}

#[test]
fn sizes_that_an_archive_names_have_caps() {
    let huge = (1_u64 << 41).to_string();
    let cases: [(Records<'_>, &str); 8] = [
        (&[("size", b"99999999999999")], "longer than"),
        (&[("size", b"60000")], "unexpected end of file"),
        (&[("size", b"-1")], "malformed"),
        (&[("uid", b"4294967296")], "32 bits"),
        (
            &[("GNU.sparse.size", huge.as_bytes()), ("GNU.sparse.map", b"")],
            "longer than",
        ),
        (
            &[
                ("GNU.sparse.size", b"10"),
                ("GNU.sparse.map", b"0,20"),
                ("size", b"20"),
            ],
            "holes",
        ),
        (
            &[
                ("GNU.sparse.size", b"10"),
                ("GNU.sparse.map", b"4,2,3,1"),
                ("size", b"3"),
            ],
            "holes",
        ),
        (
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.realsize", b"10"),
                ("size", b"512"),
            ],
            "malformed",
        ),
    ];
    for (records, words) in cases {
        let error = import(&with_records(records, &[b'9'; 40])).unwrap_err().report();
        assert!(
            error.contains(words) && error.contains("try:"),
            "{records:?}: {error}"
        );
    }
    // A terabyte of holes costs neither time nor space.
    let length = ((1_u64 << 40) - 1).to_string();
    let records: [(&str, &[u8]); 2] = [("GNU.sparse.size", length.as_bytes()), ("GNU.sparse.map", b"")];
    let tree = import(&with_records(&records, b"")).unwrap();
    assert_eq!(content(&tree, "file").len(), (1 << 40) - 1);
}

#[test]
fn an_archive_without_files_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("zeros")).unwrap();
    file.set_len(1 << 20).unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    sh(dir.path(), "tar -cf none.tar -T /dev/null; gzip -k none.tar");
    for (name, words) in [
        ("empty", "it is empty"),
        ("zeros", "no files"),
        ("none.tar", "no files"),
        ("none.tar.gz", "no files"),
    ] {
        let error = load_from(dir.path(), name).unwrap_err().report();
        assert!(
            error.contains(words) && error.contains(name) && error.contains("try:"),
            "{error}"
        );
    }
    file.write_all_at(b"not zero", 4096).unwrap();
    assert!(load_from(dir.path(), "zeros").is_err());
}
