//! The boot waterfall: a bar per configuration, cut where each step was reached.

use super::super::outcome::{Cache, KVM_ENTRY, Outcome};
use super::svg::{Scale, WIDTH, bar, chart as svg_chart, text, time, time_axis};

/// Where the bars begin: room for names.
const LEFT: f64 = 190.0;
const RIGHT: f64 = WIDTH - 80.0;
const ROW: f64 = 36.0;
/// Room for the legend.
const TOP: f64 = 62.0;

/// A step: the metric that ends it, the class that colours it, what happens in it.
struct Step {
    metric: &'static str,
    class: &'static str,
    what: &'static str,
}

const fn step(metric: &'static str, class: &'static str, what: &'static str) -> Step {
    Step { metric, class, what }
}

/// A configuration's name, and its steps with where each begins and ends, in nanoseconds.
type Row<'a> = (&'a str, Vec<(Step, f64, f64)>);

/// The events that `vmm` reports.
const INSIDE: [Step; 10] = [
    step("T1", "phase0", "program start"),
    step("T2", "phase1", "machine made"),
    step("T3", "phase2", "kernel in memory"),
    step("T4", "phase3", "processor ready"),
    step("T5", "phase4", "first exit"),
    step("T6", "phase4", "kernel starts"),
    step("T7", "phase5", "kernel boots"),
    step("T8", "phase6", "root mounted"),
    step("T9", "phase7", "PID 1"),
    step("T10", "phase8", "agent ready"),
];

/// What can be seen of other monitors.
fn outside(outcome: &Outcome) -> [Step; 2] {
    let end = if outcome.metric == "T10" { "T10" } else { "marker" };
    [
        step(KVM_ENTRY, "phase2", "guest entered"),
        step(end, "phase5", "booted"),
    ]
}

/// The chart of one state of the cache; empty when there is nothing to show.
pub fn chart(outcome: &Outcome, cache: Cache) -> String {
    let mut rows = Vec::new();
    let mut longest = 0.0_f64;
    for (index, configuration) in outcome.configurations.iter().enumerate() {
        if configuration.again_of.is_some() {
            continue;
        }
        let median = |metric: &str| outcome.summary(cache, index, metric).map(|s| s.p50);
        let own = median("T4").is_some();
        let mut segments = Vec::new();
        let mut from = 0.0;
        let steps: Vec<Step> = if own {
            INSIDE.into()
        } else {
            outside(outcome).into()
        };
        for step in steps {
            // Medians of different launches may cross where a step takes next to nothing.
            if let Some(to) = median(step.metric).filter(|&to| to > from) {
                segments.push((step, from, to));
                from = to;
            }
        }
        longest = longest.max(from);
        rows.push((configuration.name.as_str(), segments));
    }
    if longest <= 0.0 {
        return String::new();
    }
    draw(&rows, longest)
}

fn draw(rows: &[Row<'_>], longest: f64) -> String {
    let scale = Scale::new(0.0, longest, LEFT, RIGHT);
    let bottom = TOP + ROW * rows.len() as f64;
    let mut body = legend(rows) + &time_axis(&scale, TOP - 6.0, bottom);
    for (n, (name, segments)) in rows.iter().enumerate() {
        let y = TOP + ROW * n as f64;
        body += &text(LEFT - 10.0, y + 19.0, "label end", name);
        for (step, from, to) in segments {
            let title = format!("{}: {} (to {})", step.what, time(to - from), time(*to));
            let (x, end) = (scale.at(*from), scale.at(*to));
            body += &bar(x, y + 3.0, (end - x, ROW - 12.0), step.class, &title);
            let share = format!("{} {}", step.what, time(to - from));
            // Only where it fits: about 6.2 units a character.
            if end - x > share.chars().count() as f64 * 6.2 + 8.0 {
                body += &text(x + 5.0, y + 19.0, "inside", &share);
            }
        }
        if let Some((_, _, to)) = segments.last() {
            body += &text(scale.at(*to) + 6.0, y + 19.0, "value", &time(*to));
        }
    }
    svg_chart(bottom + 26.0, "Boot waterfall", &body)
}

/// Each step that occurs, once.
fn legend(rows: &[Row<'_>]) -> String {
    let mut seen: Vec<&str> = Vec::new();
    let (mut x, mut y) = (10.0, 14.0);
    let mut body = String::new();
    for (step, ..) in rows.iter().flat_map(|(_, segments)| segments) {
        if seen.contains(&step.what) {
            continue;
        }
        seen.push(step.what);
        let width = step.what.chars().count() as f64 * 6.6 + 28.0;
        if x + width > WIDTH {
            (x, y) = (10.0, y + 20.0);
        }
        body += &bar(x, y - 9.0, (10.0, 10.0), step.class, step.what);
        body += &text(x + 15.0, y, "tick", step.what);
        x += width;
    }
    body
}
