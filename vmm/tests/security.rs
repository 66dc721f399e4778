//! Checks that the tests named in `docs/security.md` exist, and that each of its rows names one.

use std::fs;
use std::path::Path;

/// The tests named in `text` as `` `file.rs::name` ``.
fn named(text: &str) -> Vec<(&str, &str)> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter_map(|word| word.split_once(".rs::")).collect()
}

/// Whether `source` has a test called `name`: a function with the attribute before it, or an entry of a
/// table.
fn has_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let entry = format!("\"{name}\"");
    let lines: Vec<_> = source.lines().map(str::trim).collect();
    lines.iter().enumerate().any(|(at, line)| {
        let attribute = |line: &&str| line.starts_with("#[test]");
        let before = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
        line.starts_with(&function) && before.into_iter().any(attribute) || line.contains(&entry)
    })
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let named = named(&text);
    assert!(named.len() > 15, "{named:?}");
    let missing: Vec<_> = named
        .into_iter()
        .filter(|(file, name)| {
            let source = fs::read_to_string(root.join(format!("{file}.rs"))).unwrap_or_default();
            !has_test(&source, name)
        })
        .collect();
    assert!(
        missing.is_empty(),
        "docs/security.md names what is not there: {missing:?}"
    );
}

#[test]
fn every_claim_names_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| property |"));
    let bare: Vec<_> = rows.filter(|row| named(row).is_empty()).collect();
    assert!(bare.is_empty(), "{bare:#?}");
}

#[test]
fn a_test_is_distinguished_from_a_function() {
    let source = "    #[test]\n    #[ignore]\n    fn one() {}\nfn two() {}\n(\"three\", three),\n";
    assert!(has_test(source, "one") && has_test(source, "three"));
    assert!(!has_test(source, "two") && !has_test(source, "four"));
    assert_eq!(named("`a/b.rs::c` and `d`"), [("a/b", "c")]);
}
