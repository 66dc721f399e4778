//! Distribution, rounds, and exits.

use std::fmt::Write as _;

use super::super::outcome::{Cache, ExitInfo, Outcome};
use super::svg::{Scale, WIDTH, bar, chart, escape, line, series_class, text, time, time_axis};

const LEFT: f64 = 60.0;
const RIGHT: f64 = WIDTH - 20.0;
const TOP: f64 = 30.0;
const HEIGHT: f64 = 240.0;
/// Bars of the exit profile; the rest is one more.
const MOST: usize = 24;

/// The values of each configuration that has some.
fn configurations(outcome: &Outcome, cache: Cache) -> Vec<(usize, Vec<f64>)> {
    (0..outcome.configurations.len())
        .filter_map(|configuration| {
            Some((
                configuration,
                outcome.values(cache, configuration, &outcome.metric)?,
            ))
        })
        .collect()
}

fn extent(configurations: &[(usize, Vec<f64>)]) -> (f64, f64) {
    let all = configurations.iter().flat_map(|(_, values)| values);
    all.fold((f64::INFINITY, 0.0_f64), |(low, high), &value| {
        (low.min(value), high.max(value))
    })
}

fn legend(outcome: &Outcome, configurations: &[(usize, Vec<f64>)]) -> String {
    let mut x = LEFT;
    let mut body = String::new();
    for (configuration, _) in configurations {
        let name = &outcome.configurations[*configuration].name;
        body += &bar(x, 5.0, (10.0, 10.0), &series_class(*configuration), name);
        body += &text(x + 15.0, 14.0, "tick", name);
        x += name.chars().count() as f64 * 6.8 + 34.0;
    }
    body
}

/// The empirical distribution of each configuration.
pub fn distribution(outcome: &Outcome, cache: Cache) -> String {
    let configurations = configurations(outcome, cache);
    if configurations.is_empty() {
        return String::new();
    }
    let (low, high) = extent(&configurations);
    let margin = (high - low) * 0.05;
    let bottom = TOP + HEIGHT;
    let across = Scale::new((low - margin).max(0.0), high + margin, LEFT, RIGHT);
    let up = Scale::new(0.0, 1.0, bottom, TOP);
    let mut body = legend(outcome, &configurations) + &time_axis(&across, TOP, bottom);
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let y = up.at(share);
        body += &line((LEFT, y), (RIGHT, y), "grid");
        body += &text(
            LEFT - 8.0,
            y + 4.0,
            "tick end",
            &format!("{:.0} %", share * 100.0),
        );
    }
    for (configuration, values) in &configurations {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let mut path = format!("M{:.1} {bottom:.1}", across.at(sorted[0]));
        for (n, &value) in sorted.iter().enumerate() {
            let share = (n + 1) as f64 / sorted.len() as f64;
            let _ = write!(path, "H{:.1}V{:.1}", across.at(value), up.at(share));
        }
        let _ = write!(path, "H{RIGHT:.1}");
        let _ = writeln!(
            body,
            "<path d=\"{path}\" class=\"curve {}\"><title>{}</title></path>",
            series_class(*configuration),
            escape(&outcome.configurations[*configuration].name)
        );
    }
    chart(bottom + 26.0, "Distribution of launch times", &body)
}

/// Every launch as a dot.
pub fn rounds(outcome: &Outcome, cache: Cache) -> String {
    let configurations = configurations(outcome, cache);
    let count = configurations
        .iter()
        .map(|(_, values)| values.len())
        .max()
        .unwrap_or(0);
    if count == 0 {
        return String::new();
    }
    let (_, high) = extent(&configurations);
    let bottom = TOP + HEIGHT * 0.6;
    let across = Scale::new(-0.5, count as f64 - 0.5, LEFT, RIGHT);
    let up = Scale::new(0.0, high * 1.05, bottom, TOP);
    let mut body = legend(outcome, &configurations);
    for tick in up.ticks(5) {
        let y = up.at(tick);
        body += &line((LEFT, y), (RIGHT, y), "grid");
        let label = if tick == 0.0 {
            "0".into()
        } else {
            super::svg::short_time(tick)
        };
        body += &text(LEFT - 8.0, y + 4.0, "tick end", &label);
    }
    for tick in across
        .ticks(10)
        .into_iter()
        .filter(|tick| tick.fract() == 0.0 && *tick >= 0.0)
    {
        body += &text(
            across.at(tick),
            bottom + 16.0,
            "tick middle",
            &format!("{}", tick + 1.0),
        );
    }
    for (configuration, values) in &configurations {
        // Side by side, so that configurations that agree do not hide each other.
        let beside = (*configuration as f64 - (outcome.configurations.len() - 1) as f64 / 2.0) * 3.0;
        for (round, &value) in values.iter().enumerate() {
            let _ = writeln!(
                body,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" class=\"{}\"><title>{}, round {}: {}</title></circle>",
                across.at(round as f64) + beside,
                up.at(value),
                series_class(*configuration),
                escape(&outcome.configurations[*configuration].name),
                round + 1,
                time(value)
            );
        }
    }
    chart(bottom + 26.0, "Launch times round by round", &body)
}

/// Exits by what caused them.
pub fn exits(exits: &[ExitInfo], configuration: usize) -> String {
    const ROW: f64 = 18.0;
    const NAMES: f64 = 330.0;
    let mut rows: Vec<(String, u64)> = exits
        .iter()
        .take(MOST)
        .map(|e| (e.name.clone(), e.count))
        .collect();
    let rest: u64 = exits.iter().skip(MOST).map(|e| e.count).sum();
    if rest > 0 {
        rows.push((format!("{} others", exits.len() - MOST), rest));
    }
    let most = rows.iter().map(|(_, count)| *count).max().unwrap_or(1);
    let scale = Scale::new(0.0, most as f64, NAMES, RIGHT - 50.0);
    let mut body = String::new();
    for (n, (name, count)) in rows.iter().enumerate() {
        let y = n as f64 * ROW + 4.0;
        body += &text(NAMES - 8.0, y + 12.0, "label end", name);
        let width = scale.at(*count as f64) - NAMES;
        body += &bar(
            NAMES,
            y + 2.0,
            (width, ROW - 5.0),
            &series_class(configuration),
            name,
        );
        body += &text(NAMES + width + 6.0, y + 12.0, "value", &count.to_string());
    }
    chart(rows.len() as f64 * ROW + 10.0, "Exits by cause", &body)
}
