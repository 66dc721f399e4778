//! From a recipe's `distribution` to repositories.

use crate::fetch::Repository;
use crate::recipe::Recipe;
use crate::time::parse_timestamp;

const DEBIAN: &str = "http://deb.debian.org/debian";
const SNAPSHOT: &str = "http://snapshot.debian.org/archive";
/// Suites that receive new packages directly and have neither updates nor security suites.
const ROLLING: [&str; 3] = ["sid", "unstable", "experimental"];

/// The repositories that a recipe names, in the order in which they are asked.
pub fn repositories(recipe: &Recipe) -> Vec<Repository> {
    let distribution = &recipe.distribution;
    // `Recipe::load` has checked that it is a time.
    let pinned = distribution.snapshot.as_deref().and_then(parse_timestamp);
    let keyring = distribution
        .keyring
        .as_ref()
        .map(|path| recipe.resolve_path(path));
    let suite = &distribution.suite;
    let (mirror, security_mirror) = mirrors(recipe);
    let repository = |url: &str, suite: String| Repository {
        url: url.trim_end_matches('/').to_owned(),
        suite,
        components: distribution.components.clone(),
        keyring: keyring.clone(),
        pinned,
    };
    let mut found = vec![repository(&mirror, suite.clone())];
    let has_more = security_mirror.is_some() && !ROLLING.contains(&suite.as_str());
    if distribution.updates.unwrap_or(has_more) {
        found.push(repository(&mirror, format!("{suite}-updates")));
    }
    if distribution
        .security
        .unwrap_or(distribution.updates.unwrap_or(has_more))
    {
        let url = security_mirror.unwrap_or(mirror);
        found.push(repository(&url, format!("{suite}-security")));
    }
    found.extend(distribution.repositories.iter().map(|extra| Repository {
        url: extra.url.trim_end_matches('/').to_owned(),
        suite: extra.suite.clone(),
        components: extra.components.clone(),
        keyring: extra.keyring.as_ref().map(|path| recipe.resolve_path(path)),
        pinned,
    }));
    found
}

/// The archive and, where it is known, its security archive.
fn mirrors(recipe: &Recipe) -> (String, Option<String>) {
    let distribution = &recipe.distribution;
    let mirror = match (&distribution.mirror, &distribution.snapshot) {
        (Some(mirror), _) => mirror.trim_end_matches('/').to_owned(),
        (None, Some(time)) => format!("{SNAPSHOT}/debian/{}", snapshot_name(time)),
        (None, None) => DEBIAN.to_owned(),
    };
    let sibling = || match (&distribution.mirror, &distribution.snapshot) {
        (None, Some(time)) => Some(format!("{SNAPSHOT}/debian-security/{}", snapshot_name(time))),
        // Mirrors of Debian keep the two archives next to each other.
        _ => Some(format!("{}/debian-security", mirror.strip_suffix("/debian")?)),
    };
    let security = distribution.security_mirror.clone().or_else(sibling);
    (mirror, security)
}

/// snapshot.debian.org writes `20261121T091544Z`.
fn snapshot_name(time: &str) -> String {
    time.chars().filter(|c| !matches!(c, '-' | ':')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(text: &str) -> Vec<String> {
        let recipe: Recipe = toml::from_str(&format!("name = 'x'\n[distribution]\n{text}")).unwrap();
        repositories(&recipe)
            .iter()
            .map(|r| format!("{} {}", r.url, r.suite))
            .collect()
    }

    #[test]
    fn a_stable_suite_comes_with_its_updates() {
        let mirror = "http://deb.debian.org/debian";
        assert_eq!(
            urls("suite = 'trixie'"),
            [
                format!("{mirror} trixie"),
                format!("{mirror} trixie-updates"),
                format!("{mirror}-security trixie-security"),
            ]
        );
        assert_eq!(urls("suite = 'sid'"), [format!("{mirror} sid")]);
        assert_eq!(urls("updates = false"), [format!("{mirror} trixie")]);
    }

    #[test]
    fn other_mirrors_and_snapshots() {
        assert_eq!(urls("mirror = 'http://x/d/'"), ["http://x/d trixie"]);
        assert_eq!(
            urls("mirror = 'http://x/debian'")[2],
            "http://x/debian-security trixie-security"
        );
        let snapshot = urls("snapshot = '2026-11-21T00:00:00Z'");
        assert_eq!(
            snapshot[0],
            "http://snapshot.debian.org/archive/debian/20261121T000000Z trixie"
        );
        assert_eq!(
            snapshot[2],
            "http://snapshot.debian.org/archive/debian-security/20261121T000000Z trixie-security"
        );
    }
}
