//! What `bench` prints: its progress, its tables, and what changed since an older run.

use std::io::{self, IsTerminal};

use kiln_benches::Progress;
use kiln_benches::compare::{Changes, compare};
use kiln_benches::outcome::Outcome;
use kiln_benches::report::time;

use super::{NO_CONCLUSION, REGRESSION};
use crate::cli::stream::{Stream, line, note};
use crate::cli::{Status, output};

/// On a terminal a line that changes with each launch, elsewhere one line for each round.
pub fn progress(progress: Progress<'_>) {
    let terminal = io::stderr().is_terminal();
    let text = match progress {
        Progress::Launch {
            done,
            total,
            configuration,
        } if terminal => format!("\r\x1b[K{} of {total}: {configuration}", done + 1),
        Progress::Round { cache, round, rounds } if !terminal => {
            format!("{}: round {round} of {rounds}\n", cache.name())
        }
        // At the end it is said with the others that do not take part.
        Progress::Dropped { reason } if !terminal => format!("{reason}\n"),
        _ => return,
    };
    let _ = Stream::Error.put(text.as_bytes());
}

/// Clears the line that [`progress`] has left on a terminal.
pub fn end_of_progress() {
    if io::stderr().is_terminal() {
        let _ = Stream::Error.put(b"\r\x1b[K");
    }
}

/// The table on the terminal.
pub fn outcome(outcome: &Outcome) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for cache in outcome.caches() {
        for (index, configuration) in outcome.configurations.iter().enumerate() {
            let Some(summary) = outcome.summary(cache, index, &outcome.metric) else {
                continue;
            };
            let compared = outcome.comparison(cache, index);
            let noise = outcome
                .noise
                .iter()
                .find(|n| n.cache == cache && configuration.again_of.is_some());
            let ratio = compared.map(|c| c.ratio).or(noise.map(|n| n.ratio));
            let words = match (compared, noise) {
                (Some(compared), _) => compared.verdict.words(),
                (None, Some(noise)) if noise.quiet => "quiet",
                (None, Some(_)) => "noisy",
                (None, None) => "",
            };
            rows.push(vec![
                cache.name().to_owned(),
                configuration.name.clone(),
                summary.n.to_string(),
                time(summary.min),
                time(summary.p50),
                time(summary.p99),
                ratio.map_or(String::new(), |r| {
                    format!("{:.3} ({:.3} to {:.3})", r.ratio, r.low, r.high)
                }),
                words.to_owned(),
            ]);
        }
    }
    output::table(&["CACHE", "LANE", "N", "MIN", "P50", "P99", "RATIO", ""], &rows)?;
    statistics(outcome)?;
    outcome.skipped.iter().for_each(note);
    if !outcome.conclusive {
        note(format_args!(
            "no conclusion: configuration A must read 1.00 ± 0.02 against itself, its interval within ± 0.1, over \
             at least five rounds; try -n {} on an idle host",
            (outcome.rounds * 2).max(20)
        ));
    }
    Ok(())
}

/// What KVM counts of a boot, as far as it says where time goes: exits of any kind, halts, faults in the nested
/// page tables and the pages that they made, interrupts.
const COUNTED: [(&str, &str); 6] = [
    ("exits", "EXITS"),
    ("halt_exits", "HALTS"),
    ("pf_fixed", "PAGE FAULTS"),
    ("pages_4k", "4K PAGES"),
    ("pages_2m", "2M PAGES"),
    ("irq_injections", "INTERRUPTS"),
];

/// A second table where KVM's statistics could be read.
fn statistics(outcome: &Outcome) -> anyhow::Result<()> {
    let rows: Vec<Vec<String>> = outcome
        .configurations
        .iter()
        .filter(|configuration| configuration.again_of.is_none() && !configuration.statistics.is_empty())
        .map(|configuration| {
            let count = |(name, _): &(&str, &str)| {
                let mut all = configuration.statistics.iter();
                let found = all.find(|statistic| statistic.name == *name);
                found.map_or(0, |statistic| statistic.count).to_string()
            };
            let counts = COUNTED.iter().map(count);
            std::iter::once(configuration.name.clone())
                .chain(counts)
                .collect()
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    line("")?;
    let titles: Vec<&str> = std::iter::once("COUNTED BY KVM")
        .chain(COUNTED.map(|(_, title)| title))
        .collect();
    Ok(output::table(&titles, &rows)?)
}

/// Says what changed since an older run.
pub fn changes(now: &Outcome, then: &Outcome) -> anyhow::Result<Status> {
    let changes = match compare(now, then) {
        Changes::Incomparable(reason) => {
            note(format_args!("the two runs cannot be compared: {reason}"));
            return Ok(NO_CONCLUSION);
        }
        Changes::Found(changes) => changes,
    };
    let rows: Vec<_> = changes
        .iter()
        .map(|change| {
            let ratio = change.ratio;
            vec![
                change.cache.name().to_owned(),
                change.configuration.clone(),
                format!("{:.3} ({:.3} to {:.3})", ratio.ratio, ratio.low, ratio.high),
                if change.regression { "regression" } else { "" }.to_owned(),
            ]
        })
        .collect();
    line("")?;
    output::table(&["CACHE", "LANE", "NOW/THEN", ""], &rows)?;
    let worse = changes.iter().any(|change| change.regression);
    Ok(if worse { REGRESSION } else { Status::OK })
}
