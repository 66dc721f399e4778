use super::*;
use crate::fetch::Index;

/// An index of packages: name, version, and further fields.
fn index(packages: &[(&str, &str, &str)]) -> Vec<Index> {
    let digest = "0".repeat(64);
    let paragraph = |(name, version, fields): &(&str, &str, &str)| {
        let arch = if fields.contains("Architecture:") {
            ""
        } else {
            "Architecture: amd64\n"
        };
        format!(
            "Package: {name}\nVersion: {version}\n{arch}Filename: pool/{name}_{version}.deb\nSize: 1\nSHA256: {digest}\n{fields}\n"
        )
    };
    vec![Index {
        url: "http://x".into(),
        suite: "s".into(),
        text: packages.iter().map(|package| paragraph(package) + "\n").collect(),
    }]
}

fn solve(
    packages: &[(&str, &str, &str)],
    variant: Variant,
    wanted: &[&str],
    recommends: bool,
) -> Result<String, Error> {
    let indexes = index(packages);
    let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
    let foreign = foreign_architectures(&wanted, "amd64")?;
    let universe =
        Universe::new(&indexes, "amd64", foreign.iter().map(String::as_str)).map_err(Error::Index)?;
    let found = resolve(
        &universe,
        &Wanted {
            variant,
            packages: wanted,
            recommends,
        },
    )?;
    let show = |id: &Id| format!("{} {}", universe.show(*id), universe.get(*id).version);
    Ok(found.iter().map(show).collect::<Vec<_>>().join(", "))
}

fn chosen(packages: &[(&str, &str, &str)], wanted: &[&str]) -> String {
    solve(packages, Variant::Extract, wanted, false).unwrap()
}

fn refused(packages: &[(&str, &str, &str)], wanted: &[&str], words: &[&str]) {
    let error = solve(packages, Variant::Extract, wanted, false)
        .unwrap_err()
        .report();
    for word in words.iter().chain(&["try:"]) {
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
}

#[test]
fn the_newest_version_and_all_that_it_needs() {
    let packages = [
        ("a", "1", "Depends: b (>= 2)"),
        ("a", "2", "Depends: b (>= 2), c"),
        ("b", "1", ""),
        ("b", "2", "Pre-Depends: d"),
        ("c", "1", ""),
        ("d", "1", ""),
        ("e", "1", ""),
    ];
    assert_eq!(chosen(&packages, &["a"]), "a 2, b 2, c 1, d 1");
    assert_eq!(chosen(&packages, &["a (<< 2)"]), "a 1, b 2, d 1");
}

#[test]
fn the_first_alternative_that_can_be_and_real_packages_before_provided_ones() {
    let packages = [
        ("a", "1", "Depends: none | mail | b"),
        ("b", "1", ""),
        ("exim", "1", "Provides: mail (= 4)\nPriority: standard"),
        ("courier", "1", "Provides: mail"),
        ("old", "1", "Depends: mail (>= 5) | b"),
    ];
    // Of providers the more important one.
    assert_eq!(chosen(&packages, &["a"]), "a 1, exim 1");
    // One that is wanted anyway serves.
    assert_eq!(chosen(&packages, &["a", "courier"]), "a 1, courier 1");
    // A provision without a version, or of a lower one, does not satisfy a bound.
    assert_eq!(chosen(&packages, &["old"]), "b 1, old 1");
}

#[test]
fn conflicts_and_breaks_lead_to_another_choice_or_to_an_explanation() {
    let packages = [
        ("a", "1", "Depends: x | y"),
        ("x", "1", "Conflicts: b"),
        ("y", "1", ""),
        ("b", "1", ""),
        ("b", "2", "Breaks: y (<= 1)"),
        ("only-x", "1", "Depends: x"),
        ("mta1", "1", "Provides: mta\nConflicts: mta"),
        ("mta2", "1", "Provides: mta\nConflicts: mta"),
    ];
    assert_eq!(chosen(&packages, &["a"]), "a 1, x 1");
    assert_eq!(chosen(&packages, &["a", "b"]), "a 1, b 1, y 1");
    refused(
        &packages,
        &["only-x", "b"],
        &["x 1 does not go with b", "b 1", "b 2"],
    );
    // A package that conflicts with what it provides itself is alone of its kind, not impossible.
    assert_eq!(chosen(&packages, &["mta1"]), "mta1 1");
    refused(&packages, &["mta1", "mta2"], &["mta1", "mta2"]);
}

#[test]
fn other_architectures_do_not_satisfy_and_any_needs_permission() {
    let packages = [
        ("a", "1", "Depends: tool:any"),
        ("tool", "1", "Multi-Arch: allowed"),
        ("b", "1", "Depends: lib:any"),
        ("lib", "1", "Multi-Arch: same"),
        ("foreign", "1", "Architecture: arm64"),
        ("text", "1", "Architecture: all"),
    ];
    assert_eq!(chosen(&packages, &["a", "text"]), "a 1, text 1, tool 1");
    refused(&packages, &["b"], &["lib:any"]);
    refused(&packages, &["foreign"], &["no repository", "foreign"]);
}

#[test]
fn excluded_packages_are_not_selected() {
    let packages = [
        ("base", "1", "Essential: yes"),
        ("required", "1", "Priority: required"),
        ("apt", "1", "Priority: important"),
        ("a", "1", "Depends: b | c\nRecommends: d, e"),
        ("b", "1", ""),
        ("c", "1", ""),
        ("d", "1", ""),
        ("e", "1", "Conflicts: a"),
    ];
    let minbase =
        |wanted: &[&str], recommends| solve(&packages, Variant::Minbase, wanted, recommends).unwrap();
    assert_eq!(minbase(&[], false), "apt 1, base 1, required 1");
    assert_eq!(
        minbase(&["-apt", "a", "-b"], false),
        "a 1, base 1, c 1, required 1"
    );
    // A recommendation that cannot be is left out without a word.
    assert_eq!(minbase(&["-apt", "a"], true), "a 1, b 1, base 1, d 1, required 1");
    assert_eq!(
        solve(&packages, Variant::Essential, &[], false).unwrap(),
        "base 1"
    );
    refused(&packages, &["a", "-b", "-c"], &["a", "b", "c"]);
}

#[test]
fn a_typing_error_names_the_nearest() {
    let packages = [("nginx-light", "1", ""), ("python3", "1", "")];
    refused(
        &packages,
        &["ngnix-light"],
        &["ngnix-light", "there is nginx-light"],
    );
    refused(&packages, &["nginx light"], &["name (>= version)"]);
}

#[test]
fn circles_of_dependencies_end() {
    let packages = [
        ("a", "1", "Depends: b"),
        ("b", "1", "Depends: c | a"),
        ("c", "1", "Depends: a"),
    ];
    // b is content with a, which is there; c is not needed.
    assert_eq!(chosen(&packages, &["a"]), "a 1, b 1");
    assert_eq!(chosen(&packages, &["c"]), "a 1, b 1, c 1");
}

#[test]
fn a_malformed_index_is_refused() {
    let mut indexes = index(&[("a", "1", "")]);
    for (from, to) in [
        ("Size: 1", "Size: x"),
        ("pool/a_1.deb", "../a.deb"),
        ("SHA256: 0", "SHA256: g"),
    ] {
        let text = indexes[0].text.clone();
        indexes[0].text = text.replace(from, to);
        assert_ne!(indexes[0].text, text);
        let error = Universe::new(&indexes, "amd64", []).unwrap_err().report();
        assert!(error.contains("malformed") && error.contains("try:"), "{error}");
        indexes[0].text = text;
    }
}

#[test]
fn a_kernel_is_selected_without_initramfs_tools() {
    let packages = [
        (
            "linux-image-cloud-amd64",
            "1",
            "Depends: linux-image-6.12-cloud-amd64 (= 1)",
        ),
        (
            "linux-image-6.12-cloud-amd64",
            "1",
            "Depends: kmod, linux-base, initramfs-tools | linux-initramfs-tool",
        ),
        ("kmod", "1", ""),
    ];
    let indexes = index(&packages);
    let universe = Universe::new(&indexes, "amd64", []).unwrap();
    let found = resolve_kernel(&universe, "linux-image-cloud-amd64").unwrap();
    let names: Vec<_> = found.iter().map(|id| universe.get(*id).name).collect();
    assert_eq!(names, ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"]);
}

#[test]
fn a_package_of_another_architecture_is_refused_where_there_is_none() {
    let packages = [("libc6", "2", "")];
    refused(
        &packages,
        &["libc6:i386"],
        &["package libc6:i386", "there is none of i386, but one of amd64"],
    );
    assert_eq!(chosen(&packages, &["libc6:amd64"]), "libc6 2");
    refused(&packages, &["libd7:i386"], &["no repository"]);
}

#[test]
fn packages_of_two_architectures_are_chosen_as_dpkg_installs_them() {
    const I386: &str = "Architecture: i386\n";
    let i386 = |fields: &str| format!("{I386}{fields}");
    let same = i386("Multi-Arch: same\nDepends: libgcc, base:any, tool, data\n");
    let (gcc, tool) = (i386("Multi-Arch: same\n"), i386("Multi-Arch: foreign\n"));
    let app = i386("Conflicts: rival\nProvides: virtual\n");
    let packages = [
        ("libc", "2", "Multi-Arch: same\nDepends: libgcc\n"),
        ("libc", "1", &*same),
        ("libc", "2", &*same),
        ("libgcc", "5", "Multi-Arch: same\n"),
        ("libgcc", "5", &*gcc),
        ("base", "1", "Multi-Arch: allowed\n"),
        ("tool", "3", "Multi-Arch: foreign\n"),
        ("tool", "4", &*tool),
        ("data", "1", "Architecture: all\nMulti-Arch: foreign\n"),
        ("app", "1", ""),
        ("app", "1", &*app),
        ("rival", "1", ""),
        ("user", "1", "Depends: virtual\n"),
        ("wants-tool", "1", "Depends: tool\n"),
    ];
    // What it needs is of its own architecture, unless it may be of any; then that is, if it can be.
    assert_eq!(
        chosen(&packages, &["libc", "libc:i386"]),
        "base 1, data 1, libc 2, libc:i386 2, libgcc 5, libgcc:i386 5, tool:i386 4"
    );
    assert_eq!(
        chosen(&packages, &["wants-tool", "libc"]),
        "libc 2, libgcc 5, tool 3, wants-tool 1"
    );
    // One tool serves both.
    assert_eq!(
        chosen(&packages, &["wants-tool", "tool", "libc:i386"]),
        "base 1, data 1, libc:i386 2, libgcc:i386 5, tool 3, wants-tool 1"
    );
    // Only packages of one version and `Multi-Arch: same` are there twice.
    refused(&packages, &["app", "app:i386"], &["app 1 is selected already"]);
    refused(
        &packages,
        &["libc (= 2)", "libc:i386 (= 1)"],
        &["libc 2 is selected already"],
    );
    // A conflict is one with packages of every architecture; a need is not met by another.
    refused(
        &packages,
        &["app:i386", "rival"],
        &["app:i386 1 does not go with rival"],
    );
    refused(&packages, &["app:i386", "user"], &["user needs virtual"]);
    // Left out by name, or of one architecture.
    refused(&packages, &["libc:i386", "-libgcc:i386"], &["leaves it out"]);
    assert_eq!(chosen(&packages, &["libc", "-libgcc:i386"]), "libc 2, libgcc 5");
}
