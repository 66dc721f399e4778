//! Calendar time in the spellings that archives and documents use, all of it in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use jiff::civil::{Date, date};

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Reads the `Date` and `Valid-Until` of a Release file: `Sat, 21 Nov 2026 09:15:44 UTC` (also `GMT`,
/// `+0000`).
pub fn parse_release_date(text: &str) -> Option<SystemTime> {
    let mut words = text.split_ascii_whitespace();
    words.next()?.strip_suffix(',')?;
    let day = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|n| n.parse::<u64>().ok());
    let time = [clock.next()??, clock.next()??, clock.next()??];
    matches!(words.next(), Some("UTC" | "GMT" | "+0000" | "Z")).then_some(())?;
    instant(year, month, day, time)
}

/// Reads a snapshot's name, `20261121T091544Z`, or an RFC 3339 time in UTC, `2026-11-21T09:15:44Z`.
pub fn parse_timestamp(text: &str) -> Option<SystemTime> {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let rest: String = text.chars().filter(|c| !c.is_ascii_digit()).collect();
    if digits.len() != 14 || !matches!(rest.as_str(), "TZ" | "--T::Z") {
        return None;
    }
    let number = |range: std::ops::Range<usize>| digits[range].parse::<u64>().ok();
    let time = [number(8..10)?, number(10..12)?, number(12..14)?];
    instant(number(0..4)?, number(4..6)?, number(6..8)?, time)
}

/// Shows seconds since 1970 as `2026-11-21 09:15:44 UTC`.
pub fn show_time(seconds: u64) -> String {
    show(
        "%Y-%m-%d %H:%M:%S UTC",
        i64::try_from(seconds).unwrap_or(i64::MAX),
    )
}

/// Seconds since 1970 as RFC 3339 has them: `2026-11-21T09:15:44Z`.
pub fn timestamp(seconds: i64) -> String {
    show("%Y-%m-%dT%H:%M:%SZ", seconds)
}

/// Times outside of the years -9999 to 9999, which a file of any image may have, are shown as the nearest one.
fn show(format: &str, seconds: i64) -> String {
    let (first, last) = (Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
    Timestamp::from_second(seconds.clamp(first, last))
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .strftime(format)
        .to_string()
}

fn instant(year: u64, month: u64, day: u64, [hour, minute, second]: [u64; 3]) -> Option<SystemTime> {
    let sane = (1970..=9999).contains(&year) && hour < 24 && minute < 60 && second <= 60;
    sane.then_some(())?;
    let day = Date::new(
        year.try_into().ok()?,
        month.try_into().ok()?,
        day.try_into().ok()?,
    );
    let midnight = day.ok()?.duration_since(date(1970, 1, 1)).as_secs();
    let of_day = hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(u64::try_from(midnight).ok()? + of_day))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(time: SystemTime) -> u64 {
        time.duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn the_spellings_agree() {
        let release = parse_release_date("Sat, 21 Nov 2026 09:15:44 UTC").unwrap();
        assert_eq!(Some(release), parse_timestamp("20261121T091544Z"));
        assert_eq!(Some(release), parse_timestamp("2026-11-21T09:15:44Z"));
        assert_eq!(show_time(unix(release)), "2026-11-21 09:15:44 UTC");
        let loose = parse_release_date("Sat,  7 Nov 2026  9:05:04 GMT").unwrap();
        assert_eq!(show_time(unix(loose)), "2026-11-07 09:05:04 UTC");
        let leap = parse_timestamp("20261231T235960Z").unwrap();
        assert_eq!(show_time(unix(leap)), "2027-01-01 00:00:00 UTC");
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for day in 0..146_097 {
            let shown = show_time(day * 86400);
            let text = format!("{}T00:00:00Z", &shown[..10]);
            assert_eq!(parse_timestamp(&text).map(unix), Some(day * 86400), "{shown}");
        }
    }

    #[test]
    fn times_of_files_are_shown_whatever_they_are() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_478_461, "2026-11-24T00:01:01Z"),
        ] {
            assert_eq!(timestamp(seconds), text);
        }
        assert!(timestamp(i64::MAX).starts_with("9999-12-30T"));
        assert!(timestamp(i64::MIN).starts_with("-9999-01-02T"));
        assert!(show_time(u64::MAX).starts_with("9999-12-30 "));
    }

    #[test]
    fn invalid_times_are_refused() {
        for text in [
            "",
            "yesterday",
            "20261121",
            "20261321T000000Z",
            "2026-11-21 00:00:00",
            "20260231T000000Z",
            "19690101T000000Z",
            "2026112éT091544Z",
            "2026-11- 1T09:15:44Z",
            "+2026112T091544Z",
        ] {
            assert_eq!(parse_timestamp(text), None, "{text}");
        }
        for text in [
            "21 Nov 2026 09:15:44 UTC",
            "Sat, 21 Nov 2026 09:15 UTC",
            "Sat, 21 Nov 2026 09:15:44 CET",
        ] {
            assert_eq!(parse_release_date(text), None, "{text}");
        }
    }
}
