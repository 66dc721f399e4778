//! Holds the crate to its layers: `core` never imports an instruction set, and no file is in a circle of
//! imports.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

type Module = Vec<String>;

/// Every file's module, and its code without comments and unit tests.
fn modules() -> BTreeMap<Module, String> {
    fn visit(directory: &Path, module: &Module, found: &mut BTreeMap<Module, String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let inner: Module = module.iter().cloned().chain([name.clone()]).collect();
            if path.is_dir() {
                visit(&path, &inner, found);
            } else if !["lib", "tests"].contains(&name.as_str()) {
                let this = if name == "mod" { module.clone() } else { inner };
                found.insert(this, code(&path));
            }
        }
    }
    let mut found = BTreeMap::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    visit(&source, &Vec::new(), &mut found);
    found
}

fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join(" ")
}

/// The paths that a `use` names: `a::{b, c::d}` names two.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, rest)) = tree.split_once('{') else {
        return vec![tree.trim().to_owned()];
    };
    let inside = &rest[..rest.rfind('}').unwrap()];
    let mut depth = 0;
    let parts = inside.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    parts
        .filter(|part| !part.trim().is_empty())
        .flat_map(|part| {
            expand(part)
                .into_iter()
                .map(|path| format!("{}{path}", before.trim()))
        })
        .collect()
}

/// What a file names of others: in `use` declarations, and by paths from the root or from above.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        if let Some((tree, _)) = code[at + 4..].split_once(';') {
            found.extend(expand(tree));
        }
    }
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let end = code[at..].find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
            found.push(code[at..at + end.unwrap_or(code.len() - at)].to_owned());
        }
    }
    found
}

/// The module of the longest part of `path` that is one, as `from` sees it.
fn resolve(from: &Module, path: &str, modules: &BTreeMap<Module, String>) -> Option<Module> {
    let mut parts = path.split("::").map(str::trim).peekable();
    let mut at = from.clone();
    match parts.peek() {
        Some(&"crate") => {
            parts.next();
            at.clear();
        }
        Some(&"self") => {
            parts.next();
        }
        _ => {}
    }
    while parts.next_if_eq(&"super").is_some() {
        at.pop();
    }
    let mut best = None;
    for part in parts {
        at.push(part.to_owned());
        if !modules.contains_key(&at) {
            break;
        }
        best = Some(at.clone());
    }
    best.filter(|module| module != from)
}

fn imports() -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    modules
        .iter()
        .map(|(module, code)| {
            let found = paths(code);
            let found = found.iter().filter_map(|path| resolve(module, path, &modules));
            (module.clone(), found.collect())
        })
        .collect()
}

#[test]
fn the_core_knows_no_instruction_set() {
    let imports = imports();
    let core = |module: &Module| module.first().is_some_and(|first| first == "core");
    assert!(imports.keys().filter(|module| core(module)).count() > 10);
    for (module, imported) in imports.iter().filter(|(module, _)| core(module)) {
        for other in imported {
            assert!(core(other), "{} imports {}", module.join("::"), other.join("::"));
        }
    }
}

#[test]
fn no_file_is_in_a_circle_of_imports() {
    let mut imports = imports();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 200);
    // Takes away what imports nothing that is left, again and again.
    loop {
        let before = imports.len();
        let left: BTreeSet<Module> = imports.keys().cloned().collect();
        imports.retain(|_, imported| imported.iter().any(|other| left.contains(other)));
        if imports.len() == before {
            break;
        }
    }
    let left: Vec<String> = imports.keys().map(|module| module.join("::")).collect();
    assert!(left.is_empty(), "these import each other, or what does: {left:?}");
}

#[test]
fn a_use_names_each_path() {
    assert_eq!(
        expand("crate::a::{self, b::{c, d}, e}"),
        [
            "crate::a::self",
            "crate::a::b::c",
            "crate::a::b::d",
            "crate::a::e"
        ]
    );
}
