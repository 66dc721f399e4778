//! Holds the code to the table of layers in `src/lib.rs`: a folder imports what its row names, which is above
//! it, and the files of a folder do not import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The words of a text that stand in backquotes.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the table: a folder, and what it may import.
fn rows(front_page: &str) -> Vec<(String, BTreeSet<String>)> {
    let rows = front_page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("//! | [`")?.split(" | ");
        let name = cells.next()?.trim_end_matches("`]").to_owned();
        Some((name, quoted(cells.nth(1).unwrap_or_default())))
    });
    rows.collect()
}

fn table() -> Vec<(String, BTreeSet<String>)> {
    rows(&fs::read_to_string(source().join("lib.rs")).unwrap())
}

/// Every source file but those of tests, as its path below `src` without `.rs`.
fn files(directory: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
            continue;
        }
        let inside = path.strip_prefix(source()).unwrap().to_str().unwrap();
        let Some(name) = inside.strip_suffix(".rs") else {
            continue;
        };
        if !name.ends_with("tests") && !matches!(name, "lib" | "main") {
            found.push(name.to_owned());
        }
    }
}

fn all_files() -> Vec<String> {
    let mut found = Vec::new();
    files(&source(), &mut found);
    found.sort();
    found
}

/// The code of a file without line comments and without its tests.
fn code(file: &str) -> String {
    let text = fs::read_to_string(source().join(format!("{file}.rs"))).unwrap();
    let lines = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    let code = lines.collect::<Vec<_>>().join("\n");
    let tests = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    code[..tests].to_owned()
}

/// What `code` names behind `prefix`: `tree` for `crate::tree::Tree`, and each of `crate::{base, build}`.
fn imports(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => found.insert(first_word(rest)),
            Some(group) => {
                found.extend(group_items(group).into_iter().map(first_word));
                true
            }
        };
    }
    found
}

fn first_word(text: &str) -> String {
    let word = text
        .trim()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_');
    word.collect()
}

/// The items between braces, those of inner braces left with theirs.
fn group_items(group: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.retain(|item| !item.trim().is_empty());
    items
}

fn folder(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

/// What each folder imports, with the files that do.
fn edges() -> BTreeMap<(String, String), Vec<String>> {
    let mut edges: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for file in all_files() {
        let code = code(&file);
        assert!(
            !code.contains("super::super"),
            "{file} names a layer by its place"
        );
        for import in imports(&code, "crate::") {
            if import != folder(&file) {
                let edge = (folder(&file).to_owned(), import);
                edges.entry(edge).or_default().push(file.clone());
            }
        }
    }
    edges
}

#[test]
fn a_folder_imports_what_its_row_names_and_nothing_else() {
    let table: BTreeMap<_, _> = table().into_iter().collect();
    let edges = edges();
    let mut wrong = Vec::new();
    for ((from, to), files) in &edges {
        if !table.get(from).is_some_and(|allowed| allowed.contains(to)) {
            wrong.push(format!("{from} imports {to} in {}", files.join(", ")));
        }
    }
    for (from, allowed) in &table {
        for to in allowed {
            if !edges.contains_key(&(from.clone(), to.clone())) {
                wrong.push(format!("the row of {from} names {to}, which it does not import"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_row_names_only_what_is_above_it() {
    let mut above = BTreeSet::new();
    for (name, allowed) in table() {
        let upward: Vec<_> = allowed.difference(&above).collect();
        assert!(upward.is_empty(), "{name} may not import {upward:?}");
        above.insert(name);
    }
    let folders: BTreeSet<String> = all_files().iter().map(|file| folder(file).to_owned()).collect();
    assert_eq!(above, folders);
}

/// What a file needs of its folder's `mod.rs` does not count: it is the folder's public face.
#[test]
fn the_files_of_a_folder_do_not_import_each_other_in_a_circle() {
    let files = all_files();
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for file in &files {
        let Some((folder, name)) = file.rsplit_once('/').filter(|(_, name)| *name != "mod") else {
            continue;
        };
        let code = code(file);
        let mut found = imports(&code, "super::");
        found.extend(imports(&code, &format!("crate::{}::", folder.replace('/', "::"))));
        let siblings = files.iter().filter(|other| {
            other
                .rsplit_once('/')
                .is_some_and(|(place, sibling)| place == folder && sibling != name && found.contains(sibling))
        });
        graph.insert(file, siblings.map(String::as_str).collect());
    }
    // What imports nothing that is left cannot be in a circle.
    while let Some(done) = graph
        .iter()
        .find(|(_, imports)| !imports.iter().any(|import| graph.contains_key(import)))
        .map(|(file, _)| *file)
    {
        graph.remove(done);
    }
    assert!(graph.is_empty(), "{graph:?}");
}

#[test]
fn imports_and_rows_are_found_in_every_form() {
    let code = "use crate::store::{self, Store};\nuse crate::{\n    base,\n    tree::{Kind, Tree},\n};\nlet x = crate::boot::LINE;";
    let words = |list: &[&str]| {
        list.iter()
            .map(|word| (*word).to_owned())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(
        imports(code, "crate::"),
        words(&["base", "boot", "store", "tree"])
    );
    let table = "//! | folder | what | imports |\n//! |---|---|---|\n//! | [`a`] | it | |\n//! | [`b`] | uses `x` | `a`, `c` |\n";
    assert_eq!(
        rows(table),
        [("a".to_owned(), words(&[])), ("b".to_owned(), words(&["a", "c"]))]
    );
}
