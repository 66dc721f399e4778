//! Checks the order of the layers: a lower one never names a higher one, and only the directories
//! `arch` and `accel` use `cfg(target_arch)`.
//!
//! Every path that begins with `crate`, `self` or `super` is resolved, wherever it stands: in a `use`, in an
//! expression, in the arguments or the body of a macro. A path cannot leave the top-level module of its file
//! in any other way, but for a crate's name or an alias for the root, and both are refused.

use std::fs;
use std::path::{Path, PathBuf};

/// The modules of each layer, lowest first; the same list as in `src/lib.rs`.
const LAYERS: &[&[&str]] = &[
    &[
        "memory",
        "state",
        "event",
        "entropy",
        "limit",
        "sandbox",
        "footprint",
    ],
    &["bus", "irq"],
    &["block", "net"],
    &["devices", "virtio"],
    &["arch"],
    &["accel"],
    &["machine", "vcpu", "timeline"],
];
/// Constants only, for everyone: the address maps.
const LAYOUTS: &[[&str; 3]] = &[["arch", "x86_64", "layout"], ["arch", "aarch64", "layout"]];
/// Where code may depend on the processor.
const PROCESSOR_SPECIFIC: &[&str] = &["arch", "accel"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// A source file and its module's path: `net`, `user` for `net/user/mod.rs`.
struct Source {
    path: PathBuf,
    module: Vec<String>,
}

fn files(directory: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let inside = path.strip_prefix(source()).unwrap().with_extension("");
            let mut module: Vec<_> = inside
                .iter()
                .map(|part| part.to_str().unwrap().to_owned())
                .collect();
            if module.last().is_some_and(|last| last == "mod") {
                module.pop();
            }
            found.push(Source { path, module });
        }
    }
}

/// All files but the crate's front page.
fn all_files() -> Vec<Source> {
    let mut found = Vec::new();
    files(&source(), &mut found);
    found.retain(|source| source.module != ["lib"]);
    found
}

/// Words, `::`, and single other characters; without comments, and without what is in strings and characters.
fn tokens(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    let word = |c: char| c.is_alphanumeric() || c == '_';
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(len) = string(rest) {
            len
        } else if word(first) {
            let len = rest.find(|c| !word(c)).unwrap_or(rest.len());
            found.push(rest[..len].to_owned());
            len
        } else if rest.starts_with("::") {
            found.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                found.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[len..];
    }
    found
}

/// The length of the string or character that `text` begins with.
fn string(text: &str) -> Option<usize> {
    let raw = text.strip_prefix('b').unwrap_or(text);
    if let Some(raw) = raw.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            let body = &raw[hashes + 1..];
            return Some(text.len() - body.len() + body.find(&end)? + end.len());
        }
    }
    let body = raw.strip_prefix(['"', '\''])?;
    let quote = raw.chars().next()?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            // A lifetime: a character is one character long.
            _ if quote == '\'' && at > 0 && c != '\'' && !body.starts_with('\\') => return None,
            _ if c == quote => return Some(text.len() - body.len() + at + 1),
            _ => {}
        }
    }
    None
}

/// What the code of `module` names outside of it, as paths from the crate's root.
fn named(module: &[String], code: &str) -> Vec<Vec<String>> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    // The modules in which the code at hand stands, with the depth of the braces that they are in.
    let (mut inside, mut depth) = (Vec::new(), 0);
    let mut at = 0;
    while at < tokens.len() {
        let token = |n: usize| tokens.get(at + n).map(String::as_str);
        match tokens[at].as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inside.last().is_some_and(|&(_, outer)| outer == depth) {
                    inside.pop();
                }
            }
            "mod" if token(2) == Some("{") => inside.push((tokens[at + 1].clone(), depth)),
            "crate" if token(1) == Some("as") => found.push(Vec::new()),
            "crate" | "self" | "super" if token(1) == Some("::") && (at == 0 || tokens[at - 1] != "::") => {
                let here = module
                    .iter()
                    .chain(inside.iter().map(|(name, _)| name))
                    .cloned()
                    .collect();
                at = path(&tokens, at, here, &mut found);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Resolves the path at `at`, which begins in the module `base`, and each of its branches. Returns where it
/// ends.
fn path(tokens: &[String], mut at: usize, mut base: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("crate") => base.clear(),
            Some("self") => {}
            Some("super") => drop(base.pop()),
            Some("{") => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = match tokens[at].as_str() {
                        "," => at + 1,
                        "as" => at + 2,
                        _ => path(tokens, at, base.clone(), found),
                    };
                }
                return at + 1;
            }
            Some(name) => base.push(name.to_owned()),
            None => return at,
        }
        at += 1;
        if tokens.get(at).is_none_or(|token| token != "::") {
            found.push(base);
            return at;
        }
        at += 1;
    }
}

/// The layer of what has this path from the crate's root. What the root exports is the machine's.
fn layer(path: &[String]) -> usize {
    let Some(module) = path.first() else {
        return LAYERS.len() - 1;
    };
    if LAYOUTS
        .iter()
        .any(|layout| path.starts_with(&layout.map(str::to_owned)))
    {
        return 0;
    }
    let known = LAYERS.iter().position(|layer| layer.contains(&module.as_str()));
    known.unwrap_or(LAYERS.len() - 1)
}

#[test]
fn no_layer_names_a_higher_one() {
    let mut wrong = Vec::new();
    for Source { path, module } in all_files() {
        let known = LAYERS.concat().contains(&module[0].as_str());
        assert!(known, "{} has no layer in tests/layers.rs", module[0]);
        let own = layer(&module);
        for name in named(&module, &fs::read_to_string(&path).unwrap()) {
            if layer(&name) > own {
                wrong.push(format!(
                    "{}: layer {} names {}",
                    path.display(),
                    own + 1,
                    name.join("::")
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_arch_and_accel_ask_for_the_processor() {
    let wrong: Vec<_> = all_files()
        .into_iter()
        .filter(|Source { path, module }| {
            let code = tokens(&fs::read_to_string(path).unwrap());
            !PROCESSOR_SPECIFIC.contains(&module[0].as_str())
                && code.iter().any(|token| token == "target_arch")
        })
        .map(|source| source.path.display().to_string())
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

/// A `use` of the crate's own name would be a way around the paths that are resolved.
#[test]
fn the_crate_has_no_other_name_for_itself() {
    for Source { path, .. } in all_files() {
        let code = tokens(&fs::read_to_string(&path).unwrap());
        let other = code
            .windows(2)
            .any(|pair| pair[0] == "extern" && pair[1] == "crate");
        assert!(!other, "{}", path.display());
    }
}

#[test]
fn names_are_found_in_every_form() {
    let module = ["net".to_owned(), "user".to_owned()];
    let names =
        |code: &str| -> Vec<String> { named(&module, code).iter().map(|path| path.join("::")).collect() };
    for (code, expected) in [
        ("use crate::bus::{Action, Bus};", "bus::Action bus::Bus"),
        (
            "use crate::{\n    irq,\n    memory::{self, Memory as Ram},\n};",
            "irq memory memory::Memory",
        ),
        ("use super::super::{accel::Vm, *};", "accel::Vm *"),
        ("use super::stack::Stack;", "net::stack::Stack"),
        (
            "mod tests { use super::super::super::vcpu; } use super::arp;",
            "vcpu net::arp",
        ),
        (
            "fn f() { mod m { fn g() { super::h() } } super::super::vcpu::i() }",
            "net::user::h vcpu::i",
        ),
        ("x!(a, $crate::accel::y, b)", "accel::y"),
        (
            "let x = crate::arch::x86_64::layout::GAP;",
            "arch::x86_64::layout::GAP",
        ),
        (
            "pub(crate) fn f(&self) { self.g() as usize } pub(super) fn g() {}",
            "",
        ),
        ("struct S { a: u8 } use self::poller::P;", "net::user::poller::P"),
        (
            "// crate::accel\n/* crate::vcpu */ \"crate::arch\" r#\"crate::\"arch\"# '\"' 'a: &'a str",
            "",
        ),
    ] {
        assert_eq!(names(code).join(" "), expected, "{code}");
    }
    // The root itself, under which everything is.
    for code in [
        "use crate as root;",
        "use crate::{self as root};",
        "use super::super as root;",
    ] {
        assert_eq!(names(code), [""], "{code}");
    }
    assert_eq!(layer(&[]), LAYERS.len() - 1);
    assert_eq!(layer(&["Machine".to_owned()]), LAYERS.len() - 1);
    assert_eq!(
        layer(&["arch".to_owned(), "x86_64".to_owned(), "layout".to_owned()]),
        0
    );
}
