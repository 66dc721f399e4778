//! The parameters of a request: `Action=RunInstances&InstanceId.1=…`, from the query string and a form body.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};

/// Parameters at most in one request: a thousand instances named, with room.
const MAX_FIELDS: usize = 4096;

/// What a request was given. Each parameter is marked when it is read, and [`Params::finish`] refuses a
/// request with one that no action has read: nothing is ignored in silence.
#[derive(Debug, Default)]
pub struct Params {
    /// What the client calls the request, the same when it sends it again.
    pub invocation: Option<String>,
    fields: BTreeMap<String, String>,
    /// Parameters that were given without a value.
    blank: BTreeSet<String>,
    read: RefCell<BTreeSet<String>>,
}

impl Params {
    /// Reads a query string and the body of a form. An empty value is as if the parameter were absent.
    ///
    /// # Errors
    /// When there are too many, or one is given twice.
    pub fn parse(query: &[u8], form: &[u8]) -> Result<Params> {
        let (mut fields, mut blank) = (BTreeMap::new(), BTreeSet::new());
        let all = form_urlencoded::parse(query).chain(form_urlencoded::parse(form));
        for (count, (name, value)) in all.enumerate() {
            if count == MAX_FIELDS {
                return Err(Error::Malformed("too many parameters"));
            }
            if value.is_empty() {
                blank.insert(name.into_owned());
                continue;
            }
            if fields.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(Error::Malformed("a parameter is given twice"));
            }
        }
        Ok(Params {
            invocation: None,
            fields,
            blank,
            read: RefCell::default(),
        })
    }

    /// The value of `name`, if it is there.
    pub fn text(&self, name: &str) -> Option<&str> {
        let value = self.fields.get(name)?;
        self.read.borrow_mut().insert(name.to_owned());
        Some(value)
    }

    /// Whether `name` was given without a value, where that is not the same as its absence.
    pub fn is_blank(&self, name: &str) -> bool {
        self.blank.contains(name)
    }

    /// The value of `name`.
    ///
    /// # Errors
    /// When it is absent.
    pub fn required(&self, name: &str) -> Result<&str> {
        self.text(name)
            .ok_or_else(|| Error::MissingParameter(name.into()))
    }

    /// `true` or `false`; absent is `false`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn flag(&self, name: &str) -> Result<bool> {
        Ok(self.boolean(name)?.unwrap_or(false))
    }

    /// `true` or `false`, if it is there.
    ///
    /// # Errors
    /// When it is neither.
    pub fn boolean(&self, name: &str) -> Result<Option<bool>> {
        match self.text(name) {
            None => Ok(None),
            Some("true" | "True" | "1") => Ok(Some(true)),
            Some("false" | "False" | "0") => Ok(Some(false)),
            Some(other) => Err(Error::value(name, other, "true or false")),
        }
    }

    /// A whole number in `range`, if it is there.
    ///
    /// # Errors
    /// When it is none, or out of range.
    pub fn number(&self, name: &str, range: std::ops::RangeInclusive<u64>) -> Result<Option<u64>> {
        let Some(text) = self.text(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let why = format!("a number from {} to {}", range.start(), range.end());
                Err(Error::value(name, text, why))
            }
        }
    }

    /// The values of `name.1`, `name.2` and so on, in the order of their numbers.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let found = self.places(name);
        found.iter().filter_map(|place| self.text(place)).collect()
    }

    /// The prefixes `name.1`, `name.2` and so on of the structures in a list, in the order of their numbers.
    pub fn places(&self, name: &str) -> Vec<String> {
        let prefix = format!("{name}.");
        let begin = self.fields.range(prefix.clone()..);
        let numbers: BTreeSet<u32> = begin
            .map_while(|(field, _)| field.strip_prefix(&prefix))
            .filter_map(|rest| rest.split('.').next()?.parse().ok())
            .collect();
        numbers
            .into_iter()
            .map(|number| format!("{prefix}{number}"))
            .collect()
    }

    /// To be called when all parameters are read and what they name was found, before anything is done.
    ///
    /// # Errors
    /// When a parameter was not read; [`Error::DryRun`] when the request is for nothing to be done.
    pub fn finish(&self) -> Result<()> {
        let dry_run = self.flag("DryRun")?;
        let read = self.read.borrow();
        if let Some(unknown) = self.fields.keys().find(|name| !read.contains(*name)) {
            return Err(Error::UnknownParameter(unknown.clone()));
        }
        if dry_run { Err(Error::DryRun) } else { Ok(()) }
    }

    /// All parameters but `without`, in one text: the same for two requests that ask for the same.
    pub fn canonical(&self, without: &[&str]) -> String {
        let asked = self
            .fields
            .iter()
            .filter(|(name, _)| !without.contains(&name.as_str()));
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(asked);
        text.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> Params {
        Params::parse(b"", text.as_bytes()).unwrap()
    }

    #[test]
    fn lists_are_in_the_order_of_their_numbers() {
        let given = params("Id.10=j&Id.2=b&Id.1=a&Ids.1=x&Id.x=y&Id=z");
        assert_eq!(given.list("Id"), ["a", "b", "j"]);
        let filters = params("Filter.2.Name=b&Filter.1.Value.1=x&Filter.1.Name=a");
        assert_eq!(filters.places("Filter"), ["Filter.1", "Filter.2"]);
    }

    #[test]
    fn an_empty_value_is_an_absent_parameter() {
        let given = params("KeyName=&InstanceId.1=&ImageId=ami");
        assert_eq!(given.text("KeyName"), None);
        assert!(given.list("InstanceId").is_empty());
        assert_eq!(given.text("ImageId"), Some("ami"));
        given.finish().unwrap();
    }

    #[test]
    fn what_was_not_read_is_refused_and_a_dry_run_ends_last() {
        let given = params("ImageId=a&Surprise=1&DryRun=true");
        given.text("ImageId");
        assert_eq!(given.finish().unwrap_err().code(), "UnknownParameter");
        given.text("Surprise");
        assert_eq!(given.finish().unwrap_err().code(), "DryRunOperation");
    }

    #[test]
    fn values_are_read_by_their_kind() {
        let given = params("A=true&B=0&C=maybe&N=7&M=x");
        assert!(given.flag("A").unwrap() && !given.flag("B").unwrap() && !given.flag("Z").unwrap());
        assert_eq!(given.flag("C").unwrap_err().code(), "InvalidParameterValue");
        assert_eq!(given.number("N", 1..=7).unwrap(), Some(7));
        for (name, range) in [("N", 1..=6), ("M", 0..=9)] {
            assert_eq!(
                given.number(name, range).unwrap_err().code(),
                "InvalidParameterValue"
            );
        }
    }

    #[test]
    fn bodies_without_form_or_bounds_are_refused() {
        assert!(Params::parse(b"A=1", b"A=2").is_err(), "twice");
        let many = "A.1=x&".repeat(MAX_FIELDS + 1);
        assert!(Params::parse(b"", many.as_bytes()).is_err());
        assert_eq!(params("%zz=%&&==").list("A"), Vec::<&str>::new());
    }

    #[test]
    fn two_requests_for_the_same_have_the_same_text() {
        let (one, other) = (
            params("B=2&A=1&ClientToken=x"),
            params("A=1&ClientToken=y&B=2&C="),
        );
        assert_eq!(one.canonical(&["ClientToken"]), other.canonical(&["ClientToken"]));
        assert_ne!(one.canonical(&[]), other.canonical(&[]));
    }
}
