//! Versions of Debian packages and their order, as deb-version(7) defines them.

use std::cmp::Ordering;

/// A version: `[epoch:]upstream[-revision]`.
struct Version<'a> {
    epoch: u32,
    upstream: &'a str,
    revision: &'a str,
}

impl<'a> Version<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".+:~_-".contains(&byte);
        if !text.bytes().all(allowed) {
            return None;
        }
        let (epoch, rest) = match text.split_once(':') {
            Some((epoch, rest)) if epoch.bytes().all(|byte| byte.is_ascii_digit()) => {
                (epoch.parse().ok()?, rest)
            }
            _ => (0, text),
        };
        let (upstream, revision) = match rest.rsplit_once('-') {
            Some((upstream, revision)) if !upstream.is_empty() && !revision.is_empty() => {
                (upstream, revision)
            }
            _ => (rest, ""),
        };
        (!upstream.is_empty()).then_some(Self {
            epoch,
            upstream,
            revision,
        })
    }
}

/// Compares two versions by Debian's rules; `None` if one is not a version.
pub fn compare(a: &str, b: &str) -> Option<Ordering> {
    if a == b {
        return Some(Ordering::Equal);
    }
    let (a, b) = (Version::parse(a)?, Version::parse(b)?);
    let order = a.epoch.cmp(&b.epoch);
    let order = order.then_with(|| compare_part(a.upstream.as_bytes(), b.upstream.as_bytes()));
    Some(order.then_with(|| compare_part(a.revision.as_bytes(), b.revision.as_bytes())))
}

/// Upstream versions, or revisions: a word and a number in turn. An absent number is zero.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let ((word_a, rest_a), (word_b, rest_b)) = (split(a, is_letter), split(b, is_letter));
        let ((number_a, rest_a), (number_b, rest_b)) = (split(rest_a, is_digit), split(rest_b, is_digit));
        let order = compare_words(word_a, word_b).then_with(|| compare_numbers(number_a, number_b));
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

fn is_letter(byte: u8) -> bool {
    !is_digit(byte)
}

/// The longest beginning whose bytes are all of one kind, and the rest.
fn split(text: &[u8], kind: fn(u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !kind(*byte)).unwrap_or(text.len());
    text.split_at(end)
}

/// A tilde sorts before the end of the word, letters after it, other characters after the letters.
fn compare_words(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: Option<&u8>| match byte {
        Some(b'~') => -1,
        None => 0,
        Some(byte) if byte.is_ascii_alphabetic() => i32::from(*byte),
        Some(byte) => i32::from(*byte) + 256,
    };
    (0..a.len().max(b.len()))
        .map(|i| rank(a.get(i)).cmp(&rank(b.get(i))))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Numbers of any length.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let digits = |number: &'_ [u8]| {
        number
            .iter()
            .position(|digit| *digit != b'0')
            .unwrap_or(number.len())
    };
    let (a, b) = (&a[digits(a)..], &b[digits(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each is later than the one before it; `dpkg --compare-versions` agrees.
    const ORDER: [&str; 27] = [
        "~~",
        "~~a",
        "~",
        "0",
        "0-0.1",
        "0a",
        "0.0~rc1",
        "0.0",
        "1.0~~-1",
        "1.0~rc1-1",
        "1.0~rc1-2",
        "1.0-1",
        "1.0-1+b1",
        "1.0-1.1",
        "1.0-2~bpo",
        "1.0-2",
        "1.0-10",
        "1.0a",
        "1.0+dfsg",
        "1.2",
        "1.2-1-1",
        "1.2.0",
        "1.10",
        "20261121",
        "99999999999999999999999",
        "100000000000000000000000",
        "1:0.1",
    ];

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        for (i, a) in ORDER.iter().enumerate() {
            for (j, b) in ORDER.iter().enumerate() {
                assert_eq!(compare(a, b), Some(i.cmp(&j)), "{a} {b}");
            }
        }
    }

    #[test]
    fn an_absent_number_or_revision_is_zero() {
        for (a, b) in [("1.0", "1.0-0"), ("1.a", "1.a0"), ("0:1", "1"), ("1.02", "1.2")] {
            assert_eq!(compare(a, b), Some(Ordering::Equal), "{a} {b}");
        }
        for wrong in ["", "1:", "no version!", "1 2", "ä", "99999999999:1"] {
            assert_eq!(compare(wrong, "1"), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in "[0-9a~.+-]{1,8}", b in "[0-9a~.+-]{1,8}", c in "[0-9a~.+-]{1,8}") {
            let order = |a: &str, b: &str| compare(a, b).unwrap();
            prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
            if order(&a, &b).is_le() && order(&b, &c).is_le() {
                prop_assert!(order(&a, &c).is_le());
            }
        }
    }
}
