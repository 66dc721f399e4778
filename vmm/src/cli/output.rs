//! Formatting for people: tables, ages, sizes; colours only on a terminal.

use std::io::{self, IsTerminal};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::stream::{self, Stream, Unwritten};
use instance::State;

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub struct Style(bool);

impl Style {
    /// Colours if `stream` is a terminal and `NO_COLOR` (no-color.org) does not forbid it.
    pub fn of(stream: &impl IsTerminal) -> Style {
        Style(stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    }

    /// Whether there are colours.
    pub fn is_on(self) -> bool {
        self.0
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// For errors.
    pub fn bad(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// For findings without a problem.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// For warnings.
    pub fn fair(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// For what is unimportant.
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// For headings.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A state in its colour, padded to `width` first, so that columns stay straight.
    fn state(self, padded: &str) -> String {
        let code = match padded.trim_end() {
            "running" | "ready" => "32",
            "pending" | "stopping" | "paused" => "33",
            "damaged" => "31",
            _ => "2",
        };
        self.paint(code, padded)
    }
}

/// A table: columns as wide as their widest cell, two spaces between them, no lines.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> Result<(), Unwritten> {
    let style = Style::of(&io::stdout());
    let width = |column: usize| {
        rows.iter()
            .map(|r| r[column].chars().count())
            .chain([heads[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..heads.len()).map(width).collect();
    let pad = |column: usize, text: &str| {
        if column + 1 == heads.len() {
            text.to_owned()
        } else {
            format!("{text:<width$}", width = widths[column])
        }
    };
    let line = |cells: Vec<String>| cells.join("  ").trim_end().to_owned();
    let mut text = style.strong(&line(heads.iter().enumerate().map(|(i, h)| pad(i, h)).collect()));
    text.push('\n');
    for row in rows {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            let padded = pad(i, cell);
            if heads[i] == "STATE" {
                style.state(&padded)
            } else {
                padded
            }
        });
        text += &line(cells.collect());
        text.push('\n');
    }
    Stream::Output.put(text.as_bytes())
}

/// Prints a value as JSON for programs.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(stream::line(serde_json::to_string_pretty(value)?)?)
}

/// Prints each of `items` on a line.
pub fn lines(items: impl IntoIterator<Item = impl std::fmt::Display>) -> Result<(), Unwritten> {
    let text: String = items.into_iter().map(|item| format!("{item}\n")).collect();
    Stream::Output.put(text.as_bytes())
}

/// What `ps` shows of a running instance whose agent is there.
pub const READY: &str = "ready";

/// A state as `ps` shows it: a running instance whose agent is there is `ready`… in its own column.
pub fn state(state: State, ready: bool) -> String {
    if ready && state == State::Running {
        READY.into()
    } else {
        state.to_string()
    }
}

/// How long ago `then` (seconds since 1970) was.
pub fn age(then: u64) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    match now.saturating_sub(then) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// A size in binary units with at most one decimal.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1)
        .find(|&u| bytes < 1024 << (10 * u))
        .unwrap_or(UNITS.len() - 1);
    let tenths = u128::from(bytes) * 10 / (1u128 << (10 * unit));
    if tenths.is_multiple_of(10) {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (5 << 40, "5 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ages_have_units() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert_eq!(age(now - 3 * 3600), "3 h");
        assert_eq!(
            age(now + 100),
            "0 s",
            "a clock that was set back is no reason to fail"
        );
        assert_eq!(age(now - 5 * 86_400), "5 days");
    }
}
