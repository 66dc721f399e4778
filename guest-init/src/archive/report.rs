//! The report of files that a copy has left out.

use std::fmt;
use std::path::{Path, PathBuf};

/// Files named at most; more are counted. A tree of thousands of sockets is somebody's `/run`, not somebody's
/// reading.
const NAMED: usize = 100;

/// What a copy left out, and what it could not copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    lines: Vec<String>,
    unnamed: u64,
    failures: u64,
}

impl Report {
    /// One line for each file, and one for those that are not named.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let rest = (self.unnamed > 0).then(|| format!("and {} more", self.unnamed));
        self.lines.iter().cloned().chain(rest)
    }

    /// How many files could not be copied, though files like them are.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether everything was copied.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// `path` is of a kind that is not copied.
    pub(super) fn left_out(&mut self, path: &Path, why: &str) {
        self.add(format!("left out: {} {why}", printable(path)));
    }

    /// `path` should have been copied.
    pub(super) fn failed(&mut self, path: &Path, why: impl std::fmt::Display) {
        self.failures += 1;
        self.add(format!("not copied: {}: {why}", printable(path)));
    }

    fn add(&mut self, line: String) {
        if self.lines.len() < NAMED {
            self.lines.push(line);
        } else {
            self.unnamed += 1;
        }
    }
}

/// A path that is displayed by [`printable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrintablePath(PathBuf);

impl From<PathBuf> for PrintablePath {
    fn from(path: PathBuf) -> Self {
        Self(path)
    }
}

impl fmt::Display for PrintablePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

/// A path as it can be printed: file names may hold any byte, and some of them are commands to a terminal.
pub fn printable(path: &Path) -> String {
    let text = path.to_string_lossy();
    let escaped = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escaped).collect()
}
