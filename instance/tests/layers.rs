//! Holds the code to the order of its layers, and to what the crate may not know.

use std::fs;
use std::path::{Path, PathBuf};

/// The folders, lowest first; the same list as in `src/lib.rs`.
const LAYERS: &[&str] = &["store", "images", "process", "guest", "api", "service"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file of a layer with what is not a test or a comment in it.
fn code(layer: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&source().join(layer), &mut found);
    found.retain(|path| !path.file_stem().unwrap().to_str().unwrap().ends_with("tests"));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let lines = without_tests(&text)
            .lines()
            .map(|line| line.split_once("//").map_or(line, |(code, _)| code));
        let code = lines.collect::<Vec<_>>().join("\n");
        (path, code)
    };
    found.into_iter().map(read).collect()
}

/// Tests are the last thing in a file, and may use what they like.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default()
}

/// The layers that `code` names behind `crate::`: `store` for `crate::store::Store`, and each of
/// `crate::{images, store}`.
fn imports(code: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let group = match rest.strip_prefix('{') {
            Some(group) => group.split(';').next().unwrap_or_default(),
            None => rest
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap_or_default(),
        };
        let words = group.split(|c: char| !c.is_alphanumeric() && c != '_');
        let words: Vec<_> = words.collect();
        found.extend(LAYERS.iter().filter(|layer| words.contains(*layer)));
    }
    found
}

#[test]
fn no_layer_imports_a_higher_one() {
    let mut wrong = Vec::new();
    for (own, layer) in LAYERS.iter().enumerate() {
        for (path, code) in code(layer) {
            for import in imports(&code) {
                if LAYERS.iter().position(|other| *other == import) > Some(own) {
                    wrong.push(format!("{} imports {import}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_folder_is_a_layer_and_in_the_documentation() {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    for entry in fs::read_dir(source()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() && name != "error" {
            assert!(LAYERS.contains(&name.as_str()), "{name} has no layer");
        }
    }
    let places: Vec<_> = LAYERS
        .iter()
        .map(|layer| {
            text.find(&format!("| `{layer}` |"))
                .unwrap_or_else(|| panic!("{layer}"))
        })
        .collect();
    assert!(places.is_sorted(), "lib.rs has another order");
}

/// What is for a person is returned. The process that runs an instance is given a few variables by name
/// (`process/detach.rs`), and no decision depends on one.
#[test]
fn nothing_is_printed_and_no_command_line_is_known() {
    for layer in LAYERS {
        for (path, code) in code(layer) {
            for word in [
                "println!",
                "eprintln!",
                "print!(",
                "clap",
                "env::var(",
                "stderr()",
                "is_terminal",
                "`vmm ",
            ] {
                assert!(!code.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::store::Store;
use crate::{
    Error,
    images::{self, Image},
};
\
                crate::api::serve(crate::State::ALL)";
    assert_eq!(imports(code), ["store", "images", "api"]);
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\nb"), "a\n");
}
