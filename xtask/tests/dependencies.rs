//! Checks the dependencies against docs/dependencies.md: their source, their licences, and that each direct
//! one is explained.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Licences that ask for no more than their text to be kept, and MPL-2.0, which binds its own files only.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

/// Where crates come from; our own have no source.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn packages() -> Vec<Value> {
    // What other platforms would need is not here.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        // Not offline: what only a feature needs (libFuzzer) may not have been fetched for a build.
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether an SPDX expression can be met by the licences above: of alternatives one, of several all.
fn is_allowed(expression: &str) -> bool {
    // Older crates write a slash for OR. Parentheses only ever hold alternatives in what is used here.
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    let allowed = |term: &str| LICENCES.contains(&term.trim());
    let alternatives = |part: &str| part.split(" OR ").any(allowed);
    expression.split(" AND ").all(alternatives)
}

#[test]
fn every_crate_is_from_the_registry_and_under_a_licence_that_is_allowed() {
    let packages = packages();
    assert!(packages.len() > 200, "{}", packages.len());
    let wrong: Vec<_> = packages
        .iter()
        .filter(|package| {
            let licence = package["license"].as_str().unwrap_or_default();
            let source = package["source"].as_str();
            !is_allowed(licence) || source.is_some_and(|source| source != REGISTRY)
        })
        .map(|package| {
            format!(
                "{} {}: {}",
                package["name"], package["source"], package["license"]
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_direct_dependency_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join("docs/dependencies.md")).unwrap();
    let words: BTreeSet<&str> = text
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_')
        .collect();
    let ours = packages()
        .into_iter()
        .filter(|package| package["source"].is_null());
    let mut named = 0;
    for package in ours {
        for dependency in package["dependencies"].as_array().unwrap() {
            let name = dependency["name"].as_str().unwrap();
            if dependency["source"].is_null() {
                continue; // one of ours
            }
            named += 1;
            assert!(
                words.contains(name),
                "{} uses {name}, which docs/dependencies.md does not explain",
                package["name"]
            );
        }
    }
    assert!(named > 60, "{named}");
}

#[test]
fn expressions_are_read() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-2.0/MIT",
        "Apache-2.0 AND (MIT OR GPL-2.0)",
    ] {
        assert!(is_allowed(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-2.0", "AGPL-3.0 OR GPL-2.0"] {
        assert!(!is_allowed(bad), "{bad}");
    }
}
