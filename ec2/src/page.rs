//! Pages of long answers. A token names the last thing of the page before it, so that a page neither repeats
//! nor misses what was there at both times.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Result};
use crate::query::Params;
use crate::xml::{Element, text};

/// Begins what is inside a token.
const VERSION: &str = "1:";

/// Which page is asked for.
#[derive(Debug, Default)]
pub struct Page {
    size: Option<usize>,
    after: Option<String>,
}

impl Page {
    /// What `params` ask for. `least` is the smallest page of the action.
    ///
    /// # Errors
    /// When the size is out of bounds or the token is none.
    pub fn parse(params: &Params, least: u64) -> Result<Page> {
        let size = params.number("MaxResults", least..=1000)?;
        let after = params.text("NextToken").map(read).transpose()?;
        Ok(Page {
            size: size.map(|size| size as usize),
            after,
        })
    }

    /// Whether a page was asked for.
    pub fn is_asked_for(&self) -> bool {
        self.size.is_some() || self.after.is_some()
    }

    /// The page of `all`, which is in the order of `key`, and the element that leads to the next one.
    pub fn take<T>(&self, all: Vec<T>, key: impl Fn(&T) -> String) -> (Vec<T>, Option<Element>) {
        let after = |thing: &T| self.after.as_ref().is_none_or(|after| key(thing) > *after);
        let mut page: Vec<T> = all.into_iter().filter(after).collect();
        let Some(size) = self.size.filter(|size| *size < page.len()) else {
            return (page, None);
        };
        page.truncate(size);
        let next = page.last().map(|last| {
            let token = URL_SAFE_NO_PAD.encode(format!("{VERSION}{}", key(last)));
            text("nextToken", token)
        });
        (page, next)
    }
}

fn read(token: &str) -> Result<String> {
    let bytes = URL_SAFE_NO_PAD
        .decode(token)
        .map_err(|_| Error::InvalidNextToken)?;
    let inside = String::from_utf8(bytes).map_err(|_| Error::InvalidNextToken)?;
    let key = inside.strip_prefix(VERSION).ok_or(Error::InvalidNextToken)?;
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_end() {
        let all: Vec<String> = (10..35).map(|n| n.to_string()).collect();
        let mut seen = Vec::new();
        let mut page = Page {
            size: Some(10),
            after: None,
        };
        loop {
            let (part, next) = page.take(all.clone(), String::clone);
            seen.extend(part);
            if next.is_none() {
                break;
            }
            page.after = seen.last().cloned();
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn what_was_not_given_out_is_no_token() {
        for token in ["x", "eDp5", "é", "MjphYmM"] {
            assert_eq!(read(token).unwrap_err().code(), "InvalidNextToken", "{token}");
        }
        assert_eq!(read(&URL_SAFE_NO_PAD.encode("1:i-5")).unwrap(), "i-5");
    }
}
