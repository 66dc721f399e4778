use super::*;

fn dir() -> Meta {
    Meta::new(0o755, 0, 0, 1)
}

fn file(text: &str) -> Kind {
    Kind::File(Content::bytes(text))
}

fn text(tree: &Tree, path: &str) -> String {
    let id = tree.find_followed(path.as_bytes()).unwrap().unwrap();
    let Kind::File(content) = &tree.node(id).kind else {
        panic!("{path} is not a file")
    };
    String::from_utf8(content.read(1 << 20).unwrap()).unwrap()
}

#[test]
fn a_merged_usr_takes_old_paths() {
    let mut tree = Tree::new();
    tree.create_dirs(b"usr/bin", &dir()).unwrap();
    tree.insert(b"bin", Kind::Symlink(b"usr/bin".to_vec()), dir())
        .unwrap();
    tree.insert(b"./bin/sh", file("shell"), dir()).unwrap();
    assert_eq!(text(&tree, "/usr/bin/sh"), "shell");
    assert!(matches!(
        tree.node(tree.find(b"bin").unwrap().unwrap()).kind,
        Kind::Symlink(_)
    ));
}

#[test]
fn no_path_leaves_the_tree() {
    let mut tree = Tree::new();
    tree.create_dirs(b"etc", &dir()).unwrap();
    assert!(matches!(
        tree.insert(b"../etc/passwd", file("x"), dir()),
        Err(TreeError::Traversal(_))
    ));
    assert!(matches!(
        tree.insert(b"etc/../../x", file("x"), dir()),
        Err(TreeError::Traversal(_))
    ));
    // An absolute link and a link with many `..` both end inside.
    tree.insert(b"abs", Kind::Symlink(b"/etc".to_vec()), dir())
        .unwrap();
    tree.insert(b"up", Kind::Symlink(b"../../../etc".to_vec()), dir())
        .unwrap();
    tree.insert(b"abs/a", file("a"), dir()).unwrap();
    tree.insert(b"up/b", file("b"), dir()).unwrap();
    assert_eq!(
        (text(&tree, "etc/a"), text(&tree, "etc/b")),
        ("a".into(), "b".into())
    );
}

#[test]
fn directories_are_made_where_a_link_leads() {
    let link = |tree: &mut Tree, path: &[u8], target: &[u8]| {
        let kind = Kind::Symlink(target.to_vec());
        tree.insert(path, kind, Meta::new(0o777, 0, 0, 0)).unwrap();
    };
    let mut tree = Tree::new();
    tree.create_dirs(b"var", &dir()).unwrap();
    link(&mut tree, b"var/run", b"../run/./now");
    assert_eq!(tree.real_path(b"var/run/a/b").unwrap(), b"run/now/a/b");
    assert_eq!(tree.real_path(b"var/run").unwrap(), b"var/run");
    tree.create_dirs(b"var/run/a", &dir()).unwrap();
    assert!(tree.find(b"run/now/a").unwrap().is_some());
    link(&mut tree, b"long", &b"x".repeat(300));
    assert!(tree.create_dirs(b"long/a", &dir()).is_err());
}

#[test]
fn circular_links_are_refused() {
    let mut tree = Tree::new();
    tree.insert(b"a", Kind::Symlink(b"b".to_vec()), dir()).unwrap();
    tree.insert(b"b", Kind::Symlink(b"a".to_vec()), dir()).unwrap();
    assert!(matches!(
        tree.insert(b"a/x", file(""), dir()),
        Err(TreeError::TooManyLinks(_))
    ));
    assert!(matches!(
        tree.find_followed(b"a"),
        Err(TreeError::TooManyLinks(_))
    ));
}

#[test]
fn hard_links_share_an_inode_until_the_last_name_goes() {
    let mut tree = Tree::new();
    let id = tree.insert(b"one", file("x"), dir()).unwrap();
    tree.link(b"two", id).unwrap();
    assert_eq!(tree.node(id).links, 2);
    assert_eq!(tree.len(), 2);
    tree.link(b"two", id).unwrap();
    assert_eq!(tree.node(id).links, 2, "the same link twice is one link");
    assert!(tree.remove(b"one").unwrap());
    assert_eq!(text(&tree, "two"), "x");
    assert!(tree.remove(b"two").unwrap());
    assert!(tree.is_empty());
}

#[test]
fn replacing_follows_the_rules_of_an_archive() {
    let mut tree = Tree::new();
    tree.create_dirs(b"d", &dir()).unwrap();
    tree.insert(b"d/f", file("old"), dir()).unwrap();
    tree.insert(b"d", Kind::Dir, Meta::new(0o700, 1, 2, 3)).unwrap();
    assert_eq!(tree.node(tree.find(b"d").unwrap().unwrap()).meta.mode, 0o700);
    assert_eq!(text(&tree, "d/f"), "old");
    assert!(matches!(
        tree.insert(b"d", file("x"), dir()),
        Err(TreeError::DirectoryInTheWay(_))
    ));
    tree.insert(b"d/f", file("new"), dir()).unwrap();
    assert_eq!(text(&tree, "d/f"), "new");
    assert!(matches!(
        tree.insert(b"d/f/x", file(""), dir()),
        Err(TreeError::NotADirectory(_))
    ));
    assert!(matches!(
        tree.insert(b"no/x", file(""), dir()),
        Err(TreeError::NotFound(_))
    ));
}

#[test]
fn removing_a_directory_frees_everything_below() {
    let mut tree = Tree::new();
    let mut path = String::new();
    for i in 0..500 {
        path.push_str(&format!("/{}", i % 10));
        tree.create_dirs(path.as_bytes(), &dir()).unwrap();
    }
    assert_eq!(tree.len(), 501);
    assert!(tree.remove(b"0").unwrap());
    assert!(tree.is_empty());
    assert!(!tree.remove(b"0").unwrap());
}

#[test]
fn a_walk_is_sorted_with_parents_first() {
    let mut tree = Tree::new();
    for path in ["b/z", "a", "b/a/c", "B"] {
        tree.create_dirs(path.as_bytes(), &dir()).unwrap();
    }
    let paths: Vec<String> = tree.walk().map(|(p, _)| String::from_utf8(p).unwrap()).collect();
    assert_eq!(paths, ["", "B", "a", "b", "b/a", "b/a/c", "b/z"]);
}

#[test]
fn a_rename_moves_the_subtree_but_never_into_itself() {
    let mut tree = Tree::new();
    tree.create_dirs(b"lib/x", &dir()).unwrap();
    tree.create_dirs(b"usr", &dir()).unwrap();
    tree.insert(b"lib/x/f", file("1"), dir()).unwrap();
    assert!(tree.rename(b"lib", b"lib/x/y").is_err());
    tree.rename(b"lib", b"usr/lib").unwrap();
    assert_eq!(text(&tree, "usr/lib/x/f"), "1");
    assert!(tree.find(b"lib").unwrap().is_none());
}

#[test]
fn limits_are_named() {
    let mut tree = Tree::new();
    let long = vec![b'n'; MAX_NAME + 1];
    assert!(matches!(
        tree.insert(&long, file(""), dir()),
        Err(TreeError::BadPath { .. })
    ));
    assert!(matches!(
        tree.insert(b"a\0b", file(""), dir()),
        Err(TreeError::BadPath { .. })
    ));
    let target = Kind::Symlink(vec![b't'; MAX_SYMLINK + 1]);
    assert!(matches!(
        tree.insert(b"l", target, dir()),
        Err(TreeError::BadTarget(_))
    ));
    let mut meta = dir();
    meta.xattrs.insert(b"user.big".to_vec(), vec![0; MAX_XATTRS]);
    assert!(matches!(
        tree.insert(b"x", file(""), meta),
        Err(TreeError::TooManyXattrs(_))
    ));
}

#[test]
fn a_spool_returns_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::new_in(dir.path()).unwrap();
    let big: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
    let small = spool.add(&mut &b"small"[..], 5).unwrap();
    let first = spool.add(&mut &big[..], big.len() as u64).unwrap();
    let second = spool.add(&mut &big[1..], big.len() as u64 - 1).unwrap();
    assert_eq!(small.read(10).unwrap(), b"small");
    assert_eq!(first.read(1 << 20).unwrap(), big);
    assert_eq!(second.read(1 << 20).unwrap(), big[1..]);
    assert!(
        spool.add(&mut &big[..10], 5000).is_err(),
        "a short source is an error"
    );
    assert!(first.read(10).is_err(), "the cap holds");
}

#[test]
fn a_file_that_changed_is_not_silently_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, "12345").unwrap();
    let content = Content::path(&path, 5);
    assert_eq!(content.read(10).unwrap(), b"12345");
    std::fs::write(&path, "123").unwrap();
    assert!(
        content
            .read(10)
            .unwrap_err()
            .to_string()
            .contains("changed while")
    );
}

#[test]
fn odd_paths_are_shown_readably() {
    assert_eq!(show(b"./a/\x1b[2J\xff"), "/a/\\u{1b}[2J\\xff");
}
