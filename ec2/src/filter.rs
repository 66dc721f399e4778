//! Filters of describe actions: `Filter.1.Name=…&Filter.1.Value.1=…`. A thing passes when each filter has a
//! value that fits; `*` stands for any characters, `?` for one, a backslash takes that meaning away.

use crate::error::{Error, Result};
use crate::query::Params;

/// Values at most of all filters of a request; EC2's limit.
const MAX_VALUES: usize = 200;
/// Characters at most of one value: each is compared with every thing.
const MAX_VALUE: usize = 1024;

/// The filters of one request.
#[derive(Debug, Default)]
pub struct Filters(Vec<Filter>);

#[derive(Debug)]
struct Filter {
    name: String,
    values: Vec<Vec<Glyph>>,
}

/// One character of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Glyph {
    Any,
    One,
    Char(char),
}

impl Filters {
    /// Those of `params`; each must be one of `known` or begin with `tag:`.
    ///
    /// # Errors
    /// When one is not known, or there are too many values.
    pub fn parse(params: &Params, known: &[&str]) -> Result<Filters> {
        let mut filters = Vec::new();
        let mut count = 0;
        for place in params.places("Filter") {
            let name = params.required(&format!("{place}.Name"))?;
            if !known.contains(&name) && !name.starts_with("tag:") {
                return Err(Error::value("Filter", name, "no filter of this action"));
            }
            let values = params.list(&format!("{place}.Value"));
            count += values.len();
            if count > MAX_VALUES || values.iter().any(|value| value.len() > MAX_VALUE) {
                return Err(Error::value(
                    "Filter",
                    name,
                    "more or longer values than a request may have",
                ));
            }
            filters.push(Filter {
                name: name.to_owned(),
                values: values.into_iter().map(pattern).collect(),
            });
        }
        Ok(Filters(filters))
    }

    /// Whether a thing passes; `values` are what it has for the name of a filter.
    pub fn pass(&self, values: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|filter| {
            let found = values(&filter.name);
            found.iter().any(|value| {
                let value: Vec<char> = value.chars().collect();
                filter.values.iter().any(|pattern| fits(pattern, &value))
            })
        })
    }
}

/// What a thing has for the filters `tag:KEY`, `tag-key` and `tag-value`; `None` for any other name.
pub fn of_tags<'a>(name: &str, tags: impl Iterator<Item = (&'a String, &'a String)>) -> Option<Vec<String>> {
    if let Some(key) = name.strip_prefix("tag:") {
        return Some(tags.filter(|(k, _)| *k == key).map(|(_, v)| v.clone()).collect());
    }
    match name {
        "tag-key" => Some(tags.map(|(key, _)| key.clone()).collect()),
        "tag-value" => Some(tags.map(|(_, value)| value.clone()).collect()),
        _ => None,
    }
}

fn pattern(text: &str) -> Vec<Glyph> {
    let mut glyphs = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        glyphs.push(match c {
            '*' => Glyph::Any,
            '?' => Glyph::One,
            '\\' => Glyph::Char(chars.next().unwrap_or('\\')),
            c => Glyph::Char(c),
        });
    }
    glyphs
}

/// Goes back to the last `*` only: an earlier one could match no more than it has.
fn fits(pattern: &[Glyph], text: &[char]) -> bool {
    let (mut at, mut place) = (0, 0);
    let mut star = None;
    while at < text.len() {
        match pattern.get(place) {
            Some(Glyph::Any) => {
                star = Some((place, at));
                place += 1;
            }
            Some(Glyph::One) => (at, place) = (at + 1, place + 1),
            Some(Glyph::Char(c)) if *c == text[at] => (at, place) = (at + 1, place + 1),
            _ => match star {
                Some((back, from)) => {
                    star = Some((back, from + 1));
                    (at, place) = (from + 1, back + 1);
                }
                None => return false,
            },
        }
    }
    pattern[place..].iter().all(|glyph| *glyph == Glyph::Any)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_what_ec2_says() {
        let fit = |p: &str, t: &str| fits(&pattern(p), &t.chars().collect::<Vec<_>>());
        for (pattern, text) in [
            ("web", "web"),
            ("*", ""),
            ("w*b", "wb"),
            ("w?b", "web"),
            ("*a*b*", "xaxbabx"),
            ("a\\*b", "a*b"),
            ("é?", "éé"),
        ] {
            assert!(fit(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("web", "Web"),
            ("w?b", "wb"),
            ("a\\*b", "axb"),
            ("", "a"),
            ("*a", "ab"),
            ("?", ""),
        ] {
            assert!(!fit(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_time_to_speak_of() {
        let stars: Vec<_> = pattern(&"*a".repeat(500));
        assert!(!fits(&stars, &vec!['a'; 499]));
        assert!(!fits(&stars, &[vec!['a'; 1 << 14], vec!['b']].concat()));
    }

    #[test]
    fn each_filter_must_fit_and_of_its_values_one() {
        let params = Params::parse(b"", b"Filter.1.Name=state&Filter.1.Value.1=a&Filter.1.Value.2=b&Filter.2.Name=tag:x&Filter.2.Value.1=*").unwrap();
        let filters = Filters::parse(&params, &["state"]).unwrap();
        let thing = |state: &'static str, tags: Vec<String>| {
            move |name: &str| match name {
                "state" => vec![state.to_owned()],
                _ => tags.clone(),
            }
        };
        assert!(filters.pass(thing("b", vec![String::new()])));
        assert!(!filters.pass(thing("c", vec![String::new()])));
        assert!(!filters.pass(thing("a", vec![])));
        assert!(Filters::parse(&params, &["other"]).is_err());
    }
}
