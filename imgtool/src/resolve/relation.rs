//! Dependency fields: `debconf (>= 0.5) | debconf-2.0, python3:any`.
//!
//! Debian Policy §7.1 gives the syntax, deb-control(5) the architecture qualifiers.

use std::cmp::Ordering;
use std::fmt;

use displaydoc::Display;

use super::version::compare;

/// How a version must compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

impl Operator {
    fn accepts(self, ordering: Ordering) -> bool {
        match self {
            Self::Earlier => ordering.is_lt(),
            Self::EarlierOrEqual => ordering.is_le(),
            Self::Equal => ordering.is_eq(),
            Self::LaterOrEqual => ordering.is_ge(),
            Self::Later => ordering.is_gt(),
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Earlier => "<<",
            Self::EarlierOrEqual => "<=",
            Self::Equal => "=",
            Self::LaterOrEqual => ">=",
            Self::Later => ">>",
        }
    }
}

/// One package that a field names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation<'a> {
    /// The package, real or virtual.
    pub name: &'a str,
    /// `any`, `native` or an architecture.
    pub qualifier: Option<&'a str>,
    /// The version that it must have.
    pub version: Option<(Operator, &'a str)>,
}

impl Relation<'_> {
    /// Whether a package or a virtual package of this version will do. `None` is a virtual package without
    /// version, which satisfies only a relation without version (Policy §7.5).
    pub fn accepts(&self, version: Option<&str>) -> bool {
        match (self.version, version) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some((operator, wanted)), Some(found)) => {
                compare(found, wanted).is_some_and(|ordering| operator.accepts(ordering))
            }
        }
    }
}

impl fmt::Display for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        if let Some(qualifier) = self.qualifier {
            write!(f, ":{qualifier}")?;
        }
        if let Some((operator, version)) = self.version {
            write!(f, " ({} {version})", operator.text())?;
        }
        Ok(())
    }
}

/// Alternatives, the preferred one first: `a | b`.
pub type Group<'a> = Vec<Relation<'a>>;

/// Shows alternatives as a dependency field writes them.
pub fn show_group(group: &[Relation<'_>]) -> String {
    group
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" | ")
}

/// `{0}` is not a relation between packages
#[derive(Debug, Clone, PartialEq, Eq, Display, thiserror::Error)]
pub struct ParseRelationError(pub String);

/// Reads a whole dependency field.
pub fn parse_field(text: &str) -> Result<Vec<Group<'_>>, ParseRelationError> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(parse_group)
        .collect()
}

/// Reads alternatives.
pub fn parse_group(text: &str) -> Result<Group<'_>, ParseRelationError> {
    text.split('|').map(|part| parse_relation(part.trim())).collect()
}

fn parse_relation(text: &str) -> Result<Relation<'_>, ParseRelationError> {
    let wrong = || ParseRelationError(text.chars().take(200).collect());
    let (head, version) = match text.split_once('(') {
        None => (text, None),
        Some((head, rest)) => {
            let inner = rest.strip_suffix(')').ok_or_else(wrong)?.trim();
            (head.trim(), Some(parse_version(inner).ok_or_else(wrong)?))
        }
    };
    let (name, qualifier) = match head.split_once(':') {
        None => (head, None),
        Some((name, qualifier)) => (name, Some(qualifier)),
    };
    let word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"+-._".contains(&c))
    };
    if !word(name) || !qualifier.is_none_or(word) {
        return Err(wrong());
    }
    Ok(Relation {
        name,
        qualifier,
        version,
    })
}

fn parse_version(text: &str) -> Option<(Operator, &str)> {
    // `<` and `>` are the obsolete spellings of `<=` and `>=`.
    const OPERATORS: [(&str, Operator); 7] = [
        ("<<", Operator::Earlier),
        ("<=", Operator::EarlierOrEqual),
        (">=", Operator::LaterOrEqual),
        (">>", Operator::Later),
        ("=", Operator::Equal),
        ("<", Operator::EarlierOrEqual),
        (">", Operator::LaterOrEqual),
    ];
    let (operator, rest) = OPERATORS
        .iter()
        .find_map(|(sign, operator)| Some((*operator, text.strip_prefix(sign)?.trim())))?;
    (!rest.is_empty() && !rest.contains(char::is_whitespace)).then_some((operator, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_debian_writes() {
        let text = "debconf (>= 0.5) | debconf-2.0, python3:any (>= 3.11~),\n libc6 (>= 2.38), ";
        let shown: Vec<_> = parse_field(text).unwrap().iter().map(|g| show_group(g)).collect();
        assert_eq!(
            shown,
            [
                "debconf (>= 0.5) | debconf-2.0",
                "python3:any (>= 3.11~)",
                "libc6 (>= 2.38)"
            ]
        );
        assert_eq!(parse_field("").unwrap().len(), 0);
    }

    #[test]
    fn refuses_what_debian_does_not_write() {
        for text in ["a |", "a (1.0)", "a (>= )", "a (>= 1", "a b", "a:", "ä"] {
            assert!(parse_field(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_virtual_package_without_version_satisfies_no_version() {
        let group = parse_group("mta (>= 1)").unwrap();
        assert!(!group[0].accepts(None));
        assert!(group[0].accepts(Some("1.0")) && !group[0].accepts(Some("0.9")));
    }
}
