//! Holds the code to the order of its layers: a lower one never imports a higher one, and only the architecture's and the
//! accelerators' own directories ask which processor the code is compiled for.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of each layer, lowest first; the same list as in `src/lib.rs`.
const LAYERS: &[&[&str]] = &[
    &["memory", "event", "entropy", "limit", "sandbox", "footprint"],
    &["bus", "irq"],
    &["block", "net"],
    &["devices", "virtio"],
    &["arch"],
    &["accel"],
    &["machine", "vcpu", "timeline"],
];
/// Constants only, for everyone: the address map.
const LAYOUT: &str = "arch::layout";
/// Where code may depend on the processor.
const PROCESSOR_SPECIFIC: &[&str] = &["arch", "accel"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file with its top-level module.
fn files(directory: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let inside = path.strip_prefix(source()).unwrap();
            let module = inside.iter().next().unwrap().to_str().unwrap();
            let module = module.trim_end_matches(".rs").to_owned();
            found.push((path, module));
        }
    }
}

fn all_files() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&source(), &mut found);
    found.retain(|(_, module)| module != "lib");
    found
}

/// The code of a file without line comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    lines.collect::<Vec<_>>().join("\n")
}

/// What `code` names behind `crate::`: `memory` for `crate::memory::Memory`, and each of `crate::{bus, irq}`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(path(rest)),
            Some(group) => found.extend(group_items(group).iter().map(|item| path(item))),
        }
    }
    found
}

/// The first item of `crate::` path, with the layout told apart.
fn path(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let whole: String = text
        .chars()
        .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':'))
        .collect();
    if whole == LAYOUT || whole.starts_with(&format!("{LAYOUT}::")) {
        return LAYOUT.to_owned();
    }
    whole.split("::").next().unwrap_or_default().to_owned()
}

/// The items between braces, those of inner braces left with theirs.
fn group_items(group: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                break;
            }
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

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

#[test]
fn no_layer_imports_a_higher_one() {
    let mut wrong = Vec::new();
    for (path, module) in all_files() {
        let own = layer(&module).unwrap_or_else(|| panic!("{module} has no layer in tests/layers.rs"));
        for import in imports(&code(&path)) {
            if layer(&import).is_some_and(|other| other > own) {
                wrong.push(format!("{}: layer {} imports {import}", path.display(), own + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_arch_and_accel_ask_for_the_processor() {
    let wrong: Vec<_> = all_files()
        .into_iter()
        .filter(|(path, module)| {
            !PROCESSOR_SPECIFIC.contains(&module.as_str()) && code(path).contains("target_arch")
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_list_is_that_of_the_documentation() {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    for module in LAYERS.concat() {
        assert!(text.contains(&format!("`{module}`")), "{module}");
        assert!(text.contains(&format!("mod {module};")), "{module}");
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let code = "use crate::bus::{Action, Bus};\nuse crate::{\n    irq,\n    memory::{self, Memory},\n};\nlet x = crate::arch::layout::GAP + crate::arch::Boot;";
    assert_eq!(imports(code), ["bus", "irq", "memory", LAYOUT, "arch"]);
}
