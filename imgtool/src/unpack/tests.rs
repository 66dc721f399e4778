use std::io::Write;

use tar::{EntryType, Header};

use super::*;
use crate::progress::{Progress, Quiet, Unit};
use crate::store::Sha256;

/// An entry of a data archive: its path, what it is, the link's target or the content.
type Item<'a> = (&'a str, EntryType, &'a str);

fn archive(items: &[Item<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, text) in items {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if *kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_mtime(1000 + path.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        // Written as it stands: `tar` itself refuses the paths that are to be refused here.
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        match kind {
            EntryType::Regular => header.set_size(text.len() as u64),
            EntryType::Link | EntryType::Symlink => header.set_link_name_literal(text).unwrap(),
            _ => {}
        }
        header.set_cksum();
        let content = if *kind == EntryType::Regular { *text } else { "" };
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn deb(control: &str, items: &[Item<'_>]) -> Vec<u8> {
    let control = archive(&[("./control", EntryType::Regular, control)]);
    let data = archive(items);
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, content) in [
        ("debian-binary", &b"2.0\n"[..]),
        ("control.tar", &control),
        ("data.tar", &data),
    ] {
        writeln!(
            bytes,
            "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`",
            0,
            0,
            0,
            "100644",
            content.len()
        )
        .unwrap();
        bytes.extend_from_slice(content);
        if content.len() % 2 == 1 {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn package(name: &str) -> Package {
    Package {
        name: name.into(),
        version: "1".into(),
        architecture: "amd64".into(),
        sha256: Sha256::of(name.as_bytes()),
        size: 1,
        url: String::new(),
        kernel: false,
    }
}

/// Unpacks packages, each given by its data, over a root with merged directories.
fn unpack(packages: &[&[Item<'_>]], filter: &Filter) -> Result<(Tree, Newest), Error> {
    let names: Vec<Package> = (0..packages.len()).map(|i| package(&format!("p{i}"))).collect();
    let load = |package: &Package| {
        let i: usize = package.name[1..].parse().unwrap();
        let control = format!(
            "Package: {}\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n",
            package.name
        );
        Ok(deb(&control, packages[i]))
    };
    let scratch = tempfile::tempdir().unwrap();
    let step = Quiet.start("unpack", None, Unit::Items);
    let mut tree = Tree::new();
    merge_usr(&mut tree, "amd64", 0).unwrap();
    let newest = Unpack {
        load: &load,
        packages: &names,
        filter,
        scratch: scratch.path(),
        step: &*step,
    }
    .with_database(&mut tree, "amd64")?;
    Ok((tree, newest))
}

fn text(tree: &Tree, path: &str) -> Option<String> {
    let node = tree.node(tree.find_followed(path.as_bytes()).unwrap()?);
    match &node.kind {
        Kind::File(content) => Some(String::from_utf8(content.read(1 << 20).unwrap()).unwrap()),
        other => Some(format!("{other:?}")),
    }
}

const DIR: EntryType = EntryType::Directory;
const FILE: EntryType = EntryType::Regular;

#[test]
fn packages_merge_in_order_and_old_paths_reach_usr() {
    let first: &[Item<'_>] = &[
        ("./", DIR, ""),
        ("./bin/", DIR, ""),
        ("./bin/tool", FILE, "one"),
        ("./usr/share/x/", DIR, ""),
        ("./usr/share/x/a", FILE, "a"),
        ("./usr/share/x/again", EntryType::Link, "./usr/share/x/a"),
    ];
    let second: &[Item<'_>] = &[
        ("./usr/bin/tool", FILE, "two"),
        ("./usr/share/x/link", EntryType::Symlink, "a"),
    ];
    let (tree, newest) = unpack(&[first, second], &Filter::default()).unwrap();
    assert_eq!(
        text(&tree, "bin/tool").as_deref(),
        Some("two"),
        "the later package counts"
    );
    assert_eq!(text(&tree, "usr/share/x/link").as_deref(), Some("a"));
    let find = |path: &[u8]| tree.find(path).unwrap().unwrap();
    assert_eq!(find(b"usr/share/x/a"), find(b"usr/share/x/again"));
    assert_eq!(tree.node(find(b"usr/share/x/a")).links, 2);
    assert_eq!(newest.0, 1000 + "./usr/share/x/again".len() as i64);
    let status = text(&tree, "var/lib/dpkg/status").unwrap();
    assert!(
        status.contains("Package: p0\nStatus: install ok unpacked\n"),
        "{status}"
    );
    let list = text(&tree, "var/lib/dpkg/info/p1.list").unwrap();
    assert!(list.lines().any(|line| line == "/usr/share/x/link"), "{list}");
}

#[test]
fn excluded_paths_stay_out_and_included_ones_come_back() {
    let items: &[Item<'_>] = &[
        ("./usr/share/doc/p/", DIR, ""),
        ("./usr/share/doc/p/copyright", FILE, "free"),
        ("./usr/share/doc/p/changelog", FILE, "long"),
        ("./usr/share/man/man1/p.1", FILE, "man"),
    ];
    let filter = Filter::new(
        &["/usr/share/doc/*".into(), "/usr/share/man/*".into()],
        &["/usr/share/doc/*/copyright".into()],
    );
    let (tree, _) = unpack(&[items], &filter).unwrap();
    assert_eq!(text(&tree, "usr/share/doc/p/copyright").as_deref(), Some("free"));
    assert_eq!(text(&tree, "usr/share/doc/p/changelog"), None);
    assert_eq!(text(&tree, "usr/share/man/man1/p.1"), None);
}

#[test]
fn malicious_packages_are_refused_by_name() {
    let cases: &[(&[Item<'_>], &str)] = &[
        (&[("../etc/passwd", FILE, "x")], "may not contain `..`"),
        (&[("./a/../../b", FILE, "x")], "may not contain `..`"),
        (&[("./a", EntryType::Link, "./none")], "hard link"),
        (&[("./a", EntryType::new(b'Z'), "")], "unknown kind"),
    ];
    for (items, word) in cases {
        let error = unpack(&[items], &Filter::default())
            .map(|_| ())
            .unwrap_err()
            .report();
        assert!(
            error.contains("p0") && error.contains(word) && error.contains("try:"),
            "{items:?}: {error}"
        );
    }
}

#[test]
fn damaged_files_are_refused_wherever_they_are_cut() {
    let whole = deb("Package: x\nVersion: 1\n", &[("./a", FILE, "content")]);
    assert!(Deb::parse(&whole).and_then(|deb| deb.control()).is_ok());
    for length in 0..whole.len() {
        let cut = &whole[..length];
        let read = Deb::parse(cut).and_then(|deb| {
            deb.control()?;
            archive::visit(deb.data()?, |_, _| Ok(()))
        });
        // Tar ends with zeros: a file that lacks only some of those is read.
        assert!(read.is_err() || length > whole.len() - 1024, "{length}");
    }
}
