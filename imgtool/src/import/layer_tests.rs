use super::*;
use crate::advice::Advice as _;
use crate::import::tests::{docker, import, names, tar, text};

/// Entries of an upper layer in every order.
fn permutations(entries: &[(&'static str, &'static str)]) -> Vec<Vec<(&'static str, &'static str)>> {
    if entries.is_empty() {
        return vec![Vec::new()];
    }
    let mut found = Vec::new();
    for first in 0..entries.len() {
        let mut rest = entries.to_vec();
        let entry = rest.remove(first);
        for mut order in permutations(&rest) {
            order.insert(0, entry);
            found.push(order);
        }
    }
    found
}

fn overlaid(lower: &[u8], upper: &[(&str, &str)]) -> Result<Tree, Error> {
    import(&docker(&[lower, &tar(upper)])).map(|imported| imported.tree)
}

/// An archive with links of a kind after its files: names and targets.
fn with_links(files: &[(&str, &str)], kind: ::tar::EntryType, links: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar(files);
    // Without its end.
    archive.truncate(archive.len() - 1024);
    let mut builder = ::tar::Builder::new(archive);
    for (path, target) in links {
        let mut header = ::tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_whiteout_hides_lower_layers_only_wherever_it_is_in_the_archive() {
    let lower = tar(&[
        ("dir/", ""),
        ("dir/old", "lower"),
        ("dir/kept", "lower"),
        ("dir/sub/", ""),
        ("dir/sub/deep", "lower"),
        ("other", "lower"),
    ]);
    let upper = [
        ("dir/old", "upper"),
        ("dir/.wh.old", ""),
        ("dir/sub/new", "upper"),
        ("dir/.wh.sub", ""),
        (".wh.other", ""),
    ];
    for order in permutations(&upper) {
        let tree = overlaid(&lower, &order).unwrap();
        let expected = ["dir", "dir/kept", "dir/old", "dir/sub", "dir/sub/new"];
        assert_eq!(names(&tree), expected, "{order:?}");
        assert_eq!(text(&tree, "dir/old"), "upper", "{order:?}");
    }
}

#[test]
fn an_opaque_directory_keeps_what_its_own_layer_brings() {
    let lower = tar(&[
        ("dir/", ""),
        ("dir/old", "lower"),
        ("dir/sub/", ""),
        ("dir/sub/deep", "lower"),
    ]);
    let upper = [
        ("dir/", ""),
        ("dir/.wh..wh..opq", ""),
        ("dir/new", "upper"),
        ("dir/sub/new", "upper"),
    ];
    for order in permutations(&upper) {
        let tree = overlaid(&lower, &order).unwrap();
        let expected = ["dir", "dir/new", "dir/sub", "dir/sub/new"];
        assert_eq!(names(&tree), expected, "{order:?}");
    }
}

/// Names of one file by way of a link and without: what a layer brings is known by its real path.
#[test]
fn a_link_on_the_way_changes_nothing() {
    let files = [("usr/lib/", ""), ("usr/lib/old", "lower")];
    let lower = with_links(&files, ::tar::EntryType::Symlink, &[("lib", "usr/lib")]);
    let upper = [
        ("lib/old", "upper"),
        ("usr/lib/.wh.old", ""),
        ("lib/.wh..wh..opq", ""),
        ("usr/lib/new", "upper"),
    ];
    for order in permutations(&upper) {
        let tree = overlaid(&lower, &order).unwrap();
        let expected = ["lib", "usr", "usr/lib", "usr/lib/new", "usr/lib/old"];
        assert_eq!(names(&tree), expected, "{order:?}");
        assert_eq!(text(&tree, "lib/old"), "upper");
    }
}

#[test]
fn a_whiteout_of_an_absent_file_is_ignored_and_one_without_a_name_is_refused() {
    let lower = tar(&[("dir/", ""), ("file", "x")]);
    let upper = [
        ("dir/.wh.absent", ""),
        ("absent/.wh..wh..opq", ""),
        ("file/.wh.x", ""),
    ];
    assert_eq!(names(&overlaid(&lower, &upper).unwrap()), ["dir", "file"]);
    for name in ["dir/.wh.", "dir/.wh..", "dir/.wh..."] {
        let error = overlaid(&lower, &[(name, "")]).unwrap_err().report();
        assert!(error.contains("whiteout of no name"), "{error}");
    }
}

/// A hard link takes the place of a directory as any other file does, and its parents are made.
#[test]
fn a_hard_link_covers_what_a_lower_layer_has() {
    let lower = tar(&[("dir/", ""), ("dir/old", "lower")]);
    let links = [("dir", "file"), ("new/name", "file")];
    let upper = with_links(&[("file", "x")], ::tar::EntryType::Link, &links);
    let tree = import(&docker(&[&lower, &upper])).unwrap().tree;
    assert_eq!(names(&tree), ["dir", "file", "new", "new/name"]);
    assert_eq!(text(&tree, "dir"), "x");
}
