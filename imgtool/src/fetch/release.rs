//! `InRelease`: the signed list of a suite's index files.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use deb822_fast::borrowed::{BorrowedParagraph, BorrowedParser};
use displaydoc::Display;

use crate::store::Sha256;
use crate::time::{parse_release_date, show_time};

/// Clocks differ: a Release file may be dated this far in our future.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a signed Release file is not used.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// its field {0} is missing or malformed
    Field(&'static str),
    /// it is of suite {found}, not {wanted}: the server mixed them up, or someone replays another suite
    Suite {
        /// The recipe's suite.
        wanted: String,
        /// Its own words.
        found: String,
    },
    /// it expired on {0}: newer packages exist that this mirror hides or has not received
    Expired(String),
    /// it is dated {0}, in the future: is this machine's clock right?
    Future(String),
    /// it has no package index for component {component} and architecture {arch}
    NoIndex {
        /// The component.
        component: String,
        /// Debian's name of the architecture.
        arch: String,
    },
}

/// One index file: where it is and what it must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexFile {
    /// The path below `dists/SUITE/`.
    pub path: String,
    /// The digest.
    pub sha256: Sha256,
    /// The size in bytes.
    pub size: u64,
}

/// A verified Release file.
#[derive(Debug)]
pub struct Release {
    /// When it was made.
    pub date: SystemTime,
    /// Whether index files can be fetched by their digest, which never mixes two versions.
    pub by_hash: bool,
    has_all: bool,
    files: Vec<IndexFile>,
}

impl Release {
    /// Reads the signed text. `at` is the moment that must lie between its date and its expiry; `pinned` says
    /// that the recipe chose that moment, and then expiry is no concern.
    pub fn parse(text: &str, suite: &str, at: SystemTime, pinned: bool) -> Result<Self, Error> {
        let mut paragraphs = BorrowedParser::new(text)
            .parse_all()
            .map_err(|_| Error::Field("syntax"))?
            .into_iter();
        let (Some(fields), None) = (paragraphs.next(), paragraphs.next()) else {
            return Err(Error::Field("syntax"));
        };
        check_suite(&fields, suite)?;
        let date = fields.get_single("Date").and_then(parse_release_date);
        let date = date.ok_or(Error::Field("Date"))?;
        if !pinned && date > at + MAX_CLOCK_SKEW {
            return Err(Error::Future(show(date)));
        }
        if let Some(until) = fields.get_field("Valid-Until") {
            let until = until.as_single_line().and_then(parse_release_date);
            let until = until.ok_or(Error::Field("Valid-Until"))?;
            if !pinned && until < at {
                return Err(Error::Expired(show(until)));
            }
        }
        let lines = fields.get("SHA256").ok_or(Error::Field("SHA256"))?;
        let files = lines
            .iter()
            .filter(|line| !line.trim().is_empty())
            .map(|line| index_file(line));
        let files = files.collect::<Option<Vec<_>>>().ok_or(Error::Field("SHA256"))?;
        let words = |name| {
            fields
                .get_single(name)
                .unwrap_or_default()
                .split_ascii_whitespace()
        };
        let has_all = words("Architectures").any(|arch| arch == "all")
            && !words("No-Support-for-Architecture-all").any(|what| what == "Packages");
        let by_hash = fields.get_single("Acquire-By-Hash") == Some("yes");
        Ok(Self {
            date,
            by_hash,
            has_all,
            files,
        })
    }

    /// The package indexes to read for a component and architecture, smallest form first chosen.
    pub fn indexes(&self, component: &str, arch: &str) -> Result<Vec<&IndexFile>, Error> {
        let find = |arch: &str| {
            ["xz", "zst", "gz", ""].iter().find_map(|form| {
                let dot = if form.is_empty() { "" } else { "." };
                let path = format!("{component}/binary-{arch}/Packages{dot}{form}");
                self.files.iter().find(|file| file.path == path)
            })
        };
        let mut found: Vec<_> = find(arch).into_iter().collect();
        if self.has_all {
            found.extend(find("all"));
        }
        match found.is_empty() {
            false => Ok(found),
            true => Err(Error::NoIndex {
                component: component.into(),
                arch: arch.into(),
            }),
        }
    }
}

fn check_suite(fields: &BorrowedParagraph<'_>, wanted: &str) -> Result<(), Error> {
    let names: Vec<_> = ["Suite", "Codename"]
        .iter()
        .filter_map(|name| fields.get_single(name))
        .collect();
    // A security suite is written `trixie-security`, older ones `trixie/updates`; flat repositories name
    // none.
    match names.is_empty() || names.contains(&wanted) {
        true => Ok(()),
        false => Err(Error::Suite {
            wanted: wanted.into(),
            found: names.join(" / "),
        }),
    }
}

fn index_file(line: &str) -> Option<IndexFile> {
    let mut words = line.split_ascii_whitespace();
    let sha256 = words.next()?.parse().ok()?;
    let size = words.next()?.parse().ok()?;
    let path = words.next()?.to_owned();
    words.next().is_none().then_some(IndexFile { path, sha256, size })
}

fn show(time: SystemTime) -> String {
    show_time(time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::parse_timestamp;

    const TEXT: &str = "Suite: stable\nCodename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\n\
        Valid-Until: Sat, 28 Nov 2026 09:15:44 UTC\nAcquire-By-Hash: yes\nArchitectures: all amd64\n\
        No-Support-for-Architecture-all: Packages\nSHA256:\n \
        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 7 main/binary-amd64/Packages\n \
        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 5 main/binary-amd64/Packages.xz\n";

    fn at(text: &str) -> SystemTime {
        parse_timestamp(text).unwrap()
    }

    #[test]
    fn finds_the_smallest_index() {
        let release = Release::parse(TEXT, "trixie", at("20261123T000000Z"), false).unwrap();
        let indexes = release.indexes("main", "amd64").unwrap();
        assert_eq!(indexes.len(), 1);
        assert_eq!(
            (indexes[0].path.as_str(), indexes[0].size),
            ("main/binary-amd64/Packages.xz", 5)
        );
        assert!(matches!(
            release.indexes("main", "arm64"),
            Err(Error::NoIndex { .. })
        ));
    }

    #[test]
    fn time_and_suite_are_checked() {
        let parse = |suite, time, pinned| Release::parse(TEXT, suite, at(time), pinned);
        assert!(matches!(
            parse("sid", "20261123T000000Z", false),
            Err(Error::Suite { .. })
        ));
        assert!(matches!(
            parse("stable", "20261201T000000Z", false),
            Err(Error::Expired(_))
        ));
        assert!(matches!(
            parse("stable", "20261101T000000Z", false),
            Err(Error::Future(_))
        ));
        assert!(parse("stable", "20261201T000000Z", true).is_ok());
    }

    #[test]
    fn damage_is_refused() {
        for (from, to) in [
            ("Date:", "Dat:"),
            ("SHA256:", "SHA25:"),
            (" 5 ", " x "),
            ("Valid-Until: Sat,", "Valid-Until: S"),
        ] {
            let text = TEXT.replace(from, to);
            let parsed = Release::parse(&text, "trixie", at("20261123T000000Z"), false);
            assert!(matches!(parsed, Err(Error::Field(_))), "{from} -> {to}");
        }
    }
}
