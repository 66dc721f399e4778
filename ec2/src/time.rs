//! Points in time as EC2's API writes them: seconds since 1970 in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::{Date, date};

/// Seconds since 1970, now.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// As in `2026-11-30T12:00:00.000Z`.
pub fn iso(seconds: u64) -> String {
    show("%Y-%m-%dT%H:%M:%S.000Z", seconds)
}

/// As in `20261130T120000Z`, the form of signatures.
pub fn basic(seconds: u64) -> String {
    show("%Y%m%dT%H%M%SZ", seconds)
}

/// Reads the form of signatures.
pub fn parse_basic(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    let form = bytes.len() == 16 && bytes[8] == b'T' && bytes[15] == b'Z';
    let digits = |range: std::ops::Range<usize>| -> Option<u64> {
        let part = text.get(range)?;
        part.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| part.parse().ok())?
    };
    if !form {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let day = Date::new(
        year.try_into().ok()?,
        month.try_into().ok()?,
        day.try_into().ok()?,
    );
    let midnight = day.ok()?.duration_since(date(1970, 1, 1)).as_secs();
    Some(u64::try_from(midnight).ok()? + hour * 3600 + minute * 60 + second)
}

/// Times after the year 9999 are shown as its end.
fn show(format: &str, seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .unwrap_or(Timestamp::MAX)
        .strftime(format)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_date_1() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_440_938_160, "2015-08-30T12:36:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso(seconds), text);
            assert_eq!(parse_basic(&basic(seconds)), Some(seconds));
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "20150830T123600",
            "20151330T123600Z",
            "20150231T123600Z",
            "19690830T123600Z",
            "2015083éT12360Z",
            "+0150830T123600Z",
            "+2015830T123600Z",
            "2015083 T123600Z",
        ] {
            assert_eq!(parse_basic(text), None, "{text}");
        }
    }
}
