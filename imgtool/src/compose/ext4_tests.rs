use std::collections::BTreeMap;
use std::process::Command;

use super::*;
use crate::advice::Advice as _;
use crate::progress::Quiet;
use crate::tree::Content;
use crate::tree::Meta;

fn meta(mode: u16) -> Meta {
    Meta::new(mode, 0, 0, 1_700_000_000)
}

/// `setfacl -m u:1000:rw` on a file of mode 0644, as getxattr gives it.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 6, 1000),
        (4, 4, u32::MAX),
        (0x10, 6, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// One of everything that a root file system can hold.
fn everything() -> Tree {
    let mut tree = Tree::new();
    tree.create_dirs(b"usr/bin", &meta(0o755)).unwrap();
    tree.create_dirs(b"dev", &meta(0o755)).unwrap();
    tree.create_dirs(b"tmp", &meta(0o1777)).unwrap();
    let mut caps = meta(0o4755);
    caps.xattrs.insert(
        b"security.capability".to_vec(),
        vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    let ping = tree
        .insert(b"usr/bin/ping", Kind::File(Content::bytes(vec![9; 70_000])), caps)
        .unwrap();
    tree.link(b"usr/bin/ping4", ping).unwrap();
    let mut with_acl = Meta::new(0o664, 1000, 2000, -5);
    with_acl.xattrs.insert(b"system.posix_acl_access".to_vec(), acl());
    with_acl.xattrs.insert(b"user.note".to_vec(), b"hello".to_vec());
    tree.insert(b"acl", Kind::File(Content::bytes("x")), with_acl)
        .unwrap();
    tree.insert(b"empty", Kind::File(Content::bytes("")), meta(0o600))
        .unwrap();
    let mut sparse = vec![0; 3 << 20];
    sparse[(1 << 20) + 7] = 1;
    tree.insert(b"sparse", Kind::File(Content::bytes(sparse)), meta(0o644))
        .unwrap();
    tree.insert(b"hole", Kind::File(Content::bytes(vec![0; 2 << 20])), meta(0o644))
        .unwrap();
    tree.insert(b"bin", Kind::Symlink(b"usr/bin".to_vec()), meta(0o777))
        .unwrap();
    tree.insert(b"long", Kind::Symlink(vec![b'y'; 300]), meta(0o777))
        .unwrap();
    tree.insert(b"dev/null", Kind::Char(1, 3), meta(0o666)).unwrap();
    tree.insert(b"dev/vda", Kind::Block(254, 0), meta(0o660)).unwrap();
    tree.insert(b"dev/pipe", Kind::Fifo, meta(0o600)).unwrap();
    tree.create_dirs("ünïcode/many".as_bytes(), &meta(0o700)).unwrap();
    for i in 0..700 {
        let path = format!("ünïcode/many/file-with-a-rather-long-name-{i}");
        tree.insert(
            path.as_bytes(),
            Kind::File(Content::bytes(format!("{i}"))),
            meta(0o644),
        )
        .unwrap();
    }
    tree
}

fn image(tree: &Tree, size: Option<u64>) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("root.ext4");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    let plan = plan(
        tree,
        Settings {
            size,
            epoch: 1_700_000_000,
        },
    )
    .unwrap();
    file.set_len(plan.length()).unwrap();
    plan.write(&file, 0, &Quiet).unwrap();
    (dir, path)
}

fn run(program: &str, arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[test]
fn e2fsck_reports_nothing() {
    let tree = everything();
    for size in [None, Some(32 << 20), Some(3 << 30)] {
        let (_dir, path) = image(&tree, size);
        match run("e2fsck", &["-fn", path.to_str().unwrap()]) {
            Some((clean, text)) => assert!(clean, "{text}"),
            None => eprintln!("skipped: e2fsck is not installed"),
        }
    }
}

#[test]
fn the_same_tree_is_the_same_image() {
    let (_a, a) = image(&everything(), None);
    let (_b, b) = image(&everything(), None);
    assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap());
}

#[test]
fn every_attribute_is_read_back() {
    let tree = everything();
    let (_dir, path) = image(&tree, None);
    let fs = mkext4::reader::Fs::open(File::open(&path).unwrap()).unwrap();
    assert!(fs.verify().unwrap().is_empty());
    for (path, id) in tree.walk() {
        let text = std::str::from_utf8(&path).unwrap();
        let node = tree.node(id);
        let number = fs.resolve(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        let inode = fs.inode(number).unwrap();
        assert_eq!(
            (inode.mode & 0o7777, inode.uid, inode.gid),
            (node.meta.mode, node.meta.uid, node.meta.gid),
            "{text}"
        );
        match &node.kind {
            Kind::File(content) => assert!(
                fs.read_file(number).unwrap() == content.read(1 << 30).unwrap(),
                "{text}"
            ),
            Kind::Symlink(target) => assert_eq!(fs.symlink_target(number).unwrap(), *target, "{text}"),
            _ => {}
        }
    }
    assert_eq!(
        fs.resolve("usr/bin/ping").unwrap(),
        fs.resolve("usr/bin/ping4").unwrap()
    );
}

#[test]
fn holes_take_no_blocks() {
    let tree = everything();
    let (_dir, path) = image(&tree, None);
    let fs = mkext4::reader::Fs::open(File::open(path).unwrap()).unwrap();
    let blocks = |name: &str| {
        let number = fs.resolve(name).unwrap();
        let extents = fs.extents(number, &fs.inode(number).unwrap()).unwrap();
        extents.iter().map(|e| u64::from(e.len)).sum::<u64>()
    };
    assert_eq!(blocks("sparse"), HOLE / BLOCK);
    assert_eq!(blocks("hole"), 0);
    assert_eq!(blocks("usr/bin/ping"), 18);
}

#[test]
fn debugfs_reads_the_acl_and_the_capability() {
    let (_dir, path) = image(&everything(), None);
    let path = path.to_str().unwrap();
    let Some((_, text)) = run("debugfs", &["-R", "ea_list /acl", path]) else {
        eprintln!("skipped: debugfs is not installed");
        return;
    };
    assert!(
        text.contains("user.note") && text.contains("system.posix_acl_access"),
        "{text}"
    );
    let (_, text) = run("debugfs", &["-R", "ea_list /usr/bin/ping", path]).unwrap();
    assert!(text.contains("security.capability"), "{text}");
    let (_, text) = run("debugfs", &["-R", "stat /dev/vda", path]).unwrap();
    assert!(
        text.contains("254:00") || text.contains("major/minor device number: 254:00"),
        "{text}"
    );
}

/// The names, modes, owners and sizes in an image, as debugfs lists them.
fn listing(path: &str, directories: &[&str]) -> Option<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for directory in directories {
        let (_, text) = run("debugfs", &["-R", &format!("ls -p {directory}"), path])?;
        for line in text.lines().filter(|line| line.starts_with('/')) {
            let fields: Vec<&str> = line.split('/').collect();
            let [_, _inode, mode, uid, gid, name, size, ..] = fields[..] else {
                continue;
            };
            if !matches!(name, "." | ".." | "lost+found" | "") {
                out.insert(
                    format!("{directory}/{name}"),
                    format!("{mode} {uid}:{gid} {size}"),
                );
            }
        }
    }
    Some(out)
}

#[test]
fn mke2fs_makes_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    let mut tree = Tree::new();
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let mine = |mode| Meta::new(mode, uid, gid, 0);
    std::fs::create_dir_all(source.join("d")).unwrap();
    tree.create_dirs(b"d", &mine(0o755)).unwrap();
    for i in 0..300usize {
        use std::os::unix::fs::PermissionsExt;
        let content = vec![i as u8; i * 97];
        let path = source.join(format!("d/f{i}"));
        std::fs::write(&path, &content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        tree.insert(
            format!("d/f{i}").as_bytes(),
            Kind::File(Content::bytes(content)),
            mine(0o640),
        )
        .unwrap();
    }
    std::os::unix::fs::symlink("d/f1", source.join("link")).unwrap();
    tree.insert(b"link", Kind::Symlink(b"d/f1".to_vec()), mine(0o777))
        .unwrap();
    let theirs = dir.path().join("theirs.ext4");
    let arguments = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-d",
        source.to_str().unwrap(),
        theirs.to_str().unwrap(),
        "64M",
    ];
    let Some((made, text)) = run("mke2fs", &arguments) else {
        eprintln!("skipped: mke2fs is not installed");
        return;
    };
    assert!(made, "{text}");
    let (_ours, ours) = image(&tree, Some(64 << 20));
    let directories = ["/", "/d"];
    let expected = listing(theirs.to_str().unwrap(), &directories).unwrap();
    assert_eq!(expected.len(), 302);
    let mut found = listing(ours.to_str().unwrap(), &directories).unwrap();
    // The host's umask decides the mode of a directory that is made on it.
    found.insert("//d".into(), expected["//d"].clone());
    assert_eq!(found, expected);
}

#[test]
fn acls_are_converted_both_ways() {
    let disk = acl_on_disk(&acl()).unwrap();
    assert_eq!(disk.len(), 4 + 4 * 4 + 8);
    assert_eq!(disk[..4], 1u32.to_le_bytes());
    assert_eq!(acl_from_disk(&disk).unwrap(), acl());
    assert!(acl_on_disk(&acl()[..11]).is_none());
    assert!(acl_from_disk(&disk[..disk.len() - 1]).is_none());
}

#[test]
fn what_cannot_be_stored_is_named() {
    let mut tree = Tree::new();
    tree.insert(b"bad\xff", Kind::Fifo, meta(0o600)).unwrap();
    let error = plan(&tree, Settings { size: None, epoch: 0 })
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("bad\\xff") && error.contains("UTF-8"), "{error}");
    let mut tree = Tree::new();
    tree.insert(b"big", Kind::File(Content::bytes(vec![1; 30 << 20])), meta(0o600))
        .unwrap();
    let error = plan(
        &tree,
        Settings {
            size: Some(16 << 20),
            epoch: 0,
        },
    )
    .err()
    .unwrap()
    .report();
    assert!(
        error.contains("too small") && error.contains("root-size"),
        "{error}"
    );
}

#[test]
fn an_impossible_size_is_reported_as_too_large() {
    let settings = Settings {
        size: Some(20 << 40),
        epoch: 0,
    };
    let error = plan(&Tree::new(), settings).map(drop).unwrap_err().report();
    assert!(error.contains("too large") && error.contains("try:"), "{error}");
}
