//! Pieces of SVG.

use std::fmt::Write as _;

/// Width of a chart in its own units.
pub const WIDTH: f64 = 860.0;
/// Configurations that have a colour of their own; more share them.
const COLOURS: usize = 6;

/// Text for HTML, attributes included.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

/// Nanoseconds with three digits and a unit.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// The class that gives a configuration its colour.
pub fn series_class(configuration: usize) -> String {
    format!("series{}", configuration % COLOURS)
}

/// A chart of this height whose content is `body`, described for who cannot see it.
pub fn chart(height: f64, label: &str, body: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n{body}</svg>\n",
        escape(label)
    )
}

/// Text at a point; `class` sets its anchor and colour.
pub fn text(x: f64, y: f64, class: &str, content: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>\n",
        escape(content)
    )
}

/// A rectangle that tells `title` when pointed at.
pub fn bar(x: f64, y: f64, size: (f64, f64), class: &str, title: &str) -> String {
    let (width, height) = size;
    format!(
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" class=\"{class}\"><title>{}</title></rect>\n",
        width.max(0.5),
        escape(title)
    )
}

/// A straight line.
pub fn line(from: (f64, f64), to: (f64, f64), class: &str) -> String {
    format!(
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"{class}\"/>\n",
        from.0, from.1, to.0, to.1
    )
}

/// A linear scale from values to positions.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// From `low`..`high` to `from`..`to`. An empty range becomes one that is not.
    pub fn new(low: f64, high: f64, from: f64, to: f64) -> Scale {
        let high = if high > low { high } else { low + 1.0 };
        Scale { low, high, from, to }
    }

    /// The position of `value`.
    pub fn at(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values within the scale, about `count` of them.
    pub fn ticks(&self, count: u32) -> Vec<f64> {
        let rough = (self.high - self.low) / f64::from(count.max(1));
        let magnitude = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * magnitude)
            .find(|&step| step >= rough * 0.999)
            .unwrap_or(10.0 * magnitude);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|n| n as f64 * step).collect()
    }
}

/// A horizontal axis of times at `bottom`, with grid lines up to `top`.
pub fn time_axis(scale: &Scale, top: f64, bottom: f64) -> String {
    let mut body = String::new();
    for tick in scale.ticks(7) {
        let x = scale.at(tick);
        body += &line((x, top), (x, bottom), "grid");
        let label = if tick == 0.0 { "0".into() } else { short_time(tick) };
        body += &text(x, bottom + 16.0, "tick middle", &label);
    }
    body
}

/// A round time without needless zeros.
pub fn short_time(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    let mut label = String::new();
    let _ = write!(label, "{value:.2}");
    let trimmed = label.trim_end_matches('0').trim_end_matches('.');
    format!("{trimmed} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (ns, expected) in [
            (4_210.0, "4.21 µs"),
            (12_340_000.0, "12.3 ms"),
            (999_000_000.0, "999 ms"),
            (1_234_000_000.0, "1.23 s"),
            (123_456_000_000.0, "123 s"),
        ] {
            assert_eq!(time(ns), expected);
        }
        assert_eq!(short_time(500_000_000.0), "500 ms");
        assert_eq!(short_time(2_500_000_000.0), "2.5 s");
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(
            Scale::new(0.0, 10.0, 0.0, 1.0).ticks(5),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        let ticks = Scale::new(3.1, 3.9, 0.0, 1.0).ticks(4);
        assert!(
            ticks.len() >= 3 && ticks.iter().all(|t| (3.1..=3.9).contains(t)),
            "{ticks:?}"
        );
        // A range without extent still has a scale.
        assert!(Scale::new(5.0, 5.0, 0.0, 1.0).at(5.0).is_finite());
    }
}
