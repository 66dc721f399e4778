//! Changes of an instance's tags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Most tags of one thing: EC2's limit.
pub const MAX_TAGS: usize = 50;
/// Most characters of a key: EC2's limit.
pub const MAX_KEY: usize = 128;
/// Most characters of a value: EC2's limit.
pub const MAX_VALUE: usize = 256;

/// A change of tags: those that it does not name stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TagChange {
    /// Tags that are added, or get another value.
    pub set: BTreeMap<String, String>,
    /// Keys of tags that are removed; those with a value only if the tag has that value.
    pub remove: BTreeMap<String, Option<String>>,
}

impl TagChange {
    /// What `tags` become: first tags are removed, then set.
    ///
    /// # Errors
    /// When a tag that is set is longer than allowed, or there would be too many.
    pub fn of(&self, tags: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
        let mut tags = tags.clone();
        for (key, value) in &self.remove {
            let has = tags
                .get(key)
                .is_some_and(|has| value.as_ref().is_none_or(|value| value == has));
            if has {
                tags.remove(key);
            }
        }
        for (key, value) in &self.set {
            if !(1..=MAX_KEY).contains(&key.chars().count()) || value.chars().count() > MAX_VALUE {
                return Err(Error::TagLength {
                    key: key.clone(),
                    max_key: MAX_KEY,
                    max_value: MAX_VALUE,
                });
            }
            tags.insert(key.clone(), value.clone());
        }
        match tags.len() > MAX_TAGS && !self.set.is_empty() {
            true => Err(Error::TooManyTags(MAX_TAGS)),
            false => Ok(tags),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;

    fn tags(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        all.iter().map(own).collect()
    }

    #[test]
    fn tags_are_set_and_removed_and_the_others_stay() {
        let before = tags(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let change = TagChange {
            set: tags(&[("a", "9"), ("d", "4")]),
            remove: [("b".to_owned(), None), ("c".to_owned(), Some("other".to_owned()))].into(),
        };
        let after = tags(&[("a", "9"), ("c", "3"), ("d", "4")]);
        assert_eq!(change.of(&before).unwrap(), after);
        assert_eq!(TagChange::default().of(&before).unwrap(), before);
    }

    #[test]
    fn more_and_longer_tags_than_allowed_are_refused() {
        let numbered = |count: usize| (0..count).map(|n| (n.to_string(), String::new()));
        let full: BTreeMap<_, _> = numbered(MAX_TAGS).collect();
        let set = |key: &str, value: &str| TagChange {
            set: tags(&[(key, value)]),
            ..TagChange::default()
        };
        assert_eq!(set("x", "").of(&full).unwrap_err().code(), Code::TooManyTags);
        set("1", "again").of(&full).unwrap();
        let long = "é".repeat(MAX_KEY);
        set(&long, &"é".repeat(MAX_VALUE)).of(&tags(&[])).unwrap();
        for change in [
            set("", "x"),
            set(&(long + "x"), ""),
            set("x", &"y".repeat(MAX_VALUE + 1)),
        ] {
            assert_eq!(change.of(&tags(&[])).unwrap_err().code(), Code::InvalidValue);
        }
    }
}
