//! Calendar time in the three spellings that an archive uses.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    let (days, rest) = (seconds / 86400, seconds % 86400);
    // Civil-from-days over 400-year eras that begin on 1 March of year 0.
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

fn instant(year: u64, month: u64, day: u64, [hour, minute, second]: [u64; 3]) -> Option<SystemTime> {
    let sane = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    sane.then_some(())?;
    // Days-from-civil, the inverse of `show_time`.
    let y = year - u64::from(month <= 2);
    let (era, year_of_era) = (y / 400, y % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = (era * 146_097 + day_of_era).checked_sub(719_468)?;
    Some(UNIX_EPOCH + Duration::from_secs(days * 86400 + hour * 3600 + minute * 60 + second))
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
    fn invalid_times_are_refused() {
        for text in [
            "",
            "yesterday",
            "20261121",
            "20261321T000000Z",
            "2026-11-21 00:00:00",
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
