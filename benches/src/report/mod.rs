//! The report: one HTML file that opens from disk, with its charts inline and nothing to load.

mod charts;
mod svg;
mod waterfall;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::outcome::{Cache, Comparison, ConfigurationInfo, Outcome, Verdict};
pub use svg::time;
use svg::{escape, series_class};

const STYLE: &str = include_str!("style.css");

/// The report on `outcome`.
pub fn html(outcome: &Outcome) -> String {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>vmm bench</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    page += &header(outcome);
    for cache in outcome.caches() {
        let heading = match cache {
            Cache::Warm => "Warm page cache",
            Cache::Cold => "Cold page cache",
        };
        let _ = write!(page, "<section>\n<h2>{heading}</h2>\n");
        page += &noise(outcome, cache);
        page += &table(outcome, cache);
        page += &figure(
            "Where the time goes",
            "Median of each step. Monitors other than vmm show from outside when the guest is entered and when it has booted.",
            &waterfall::chart(outcome, cache),
        );
        page += &figure(
            "Distribution",
            "Share of launches that were done by then.",
            &charts::distribution(outcome, cache),
        );
        page += &figure(
            "Round by round",
            "Every launch: drift and outliers of the host show here.",
            &charts::rounds(outcome, cache),
        );
        page += "</section>\n";
    }
    page += &exits(outcome);
    page += &statistics(outcome);
    page += &method(outcome);
    page += "</body>\n</html>\n";
    page
}

fn header(outcome: &Outcome) -> String {
    let what = match outcome.end {
        super::outcome::End::Init => "until guest-init would start PID 1",
        super::outcome::End::Ready => "until the agent answers",
        super::outcome::End::Entry => "to the first entry into the guest",
        super::outcome::End::FirstRun => "until the processor is about to run",
    };
    let mut text = format!(
        "<header>\n<h1>vmm bench</h1>\n<p>From the start of the process {what}: {} launches of each configuration for each state of the page \
         cache, {} warm-ups dropped. {} on {} ({} processors), Linux {}.</p>\n",
        outcome.rounds,
        outcome.warmups,
        escape(&format!("vmm {}", outcome.vmm)),
        escape(&outcome.host.processor),
        outcome.host.cpus,
        escape(&outcome.host.kernel)
    );
    text += if outcome.conclusive {
        "<p class=\"verdict quiet\">Quiet: conclusions may be drawn.</p>\n"
    } else {
        "<p class=\"verdict noisy\">No conclusion: the run was too noisy or too short.</p>\n"
    };
    for skipped in &outcome.skipped {
        let _ = writeln!(text, "<p class=\"note\">{}</p>", escape(skipped));
    }
    text + "</header>\n"
}

fn noise(outcome: &Outcome, cache: Cache) -> String {
    let Some(noise) = outcome.noise.iter().find(|noise| noise.cache == cache) else {
        return String::new();
    };
    let word = if noise.quiet { "quiet" } else { "noisy" };
    format!(
        "<p class=\"note\">The first configuration against itself: {:.3} ({:.3} to {:.3}), {word}. It must read 1.00 ± 0.02, and its interval lie \
         within ± 0.1, over at least {} rounds.</p>\n",
        noise.ratio.ratio,
        noise.ratio.low,
        noise.ratio.high,
        super::outcome::MIN_ROUNDS
    )
}

fn table(outcome: &Outcome, cache: Cache) -> String {
    let mut text = String::from(
        "<table>\n<tr><th>configuration</th><th>n</th><th>min</th><th>p50</th><th>p99</th><th>ratio to the first</th><th></th></tr>\n",
    );
    for (index, configuration) in outcome.configurations.iter().enumerate() {
        let Some(summary) = outcome.summary(cache, index, &outcome.metric) else {
            continue;
        };
        let compared = outcome.comparison(cache, index);
        let (ratio, verdict) = compared.map_or_else(Default::default, ratio_cells);
        let _ = writeln!(
            text,
            "<tr><td><span class=\"key {}\"></span>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{ratio}</td><td>{verdict}</td></tr>",
            series_class(index),
            configuration_cell(configuration),
            summary.n,
            time(summary.min),
            time(summary.p50),
            time(summary.p99),
        );
    }
    text + "</table>\n"
}

fn configuration_cell(configuration: &ConfigurationInfo) -> String {
    let version = configuration.version.as_deref().unwrap_or(&configuration.program);
    format!(
        "{}<br><small>{}; {} CPU, {} MiB{}</small>",
        escape(&configuration.name),
        escape(version),
        configuration.cpus,
        configuration.memory >> 20,
        if configuration.append.is_empty() {
            String::new()
        } else {
            format!("; {}", escape(&configuration.append))
        }
    )
}

fn ratio_cells(comparison: &Comparison) -> (String, String) {
    let ratio = &comparison.ratio;
    let class = match comparison.verdict {
        Verdict::Faster => "faster",
        Verdict::Slower => "slower",
        Verdict::NoDifference | Verdict::NoConclusion => "even",
    };
    (
        format!(
            "{:.3} <small>({:.3} to {:.3})</small>",
            ratio.ratio, ratio.low, ratio.high
        ),
        format!("<span class=\"{class}\">{}</span>", comparison.verdict.words()),
    )
}

fn figure(title: &str, caption: &str, chart: &str) -> String {
    if chart.is_empty() {
        return String::new();
    }
    format!("<figure>\n<h3>{title}</h3>\n<figcaption>{caption}</figcaption>\n{chart}</figure>\n")
}

fn exits(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (index, configuration) in outcome.configurations.iter().enumerate() {
        if configuration.exits.is_empty() || configuration.again_of.is_some() {
            continue;
        }
        let total: u64 = configuration.exits.iter().map(|exit| exit.count).sum();
        text += &figure(
            &format!("{}: {total} exits", escape(&configuration.name)),
            "Times that the guest left to the monitor, by what it reached for, up to the end of the boot.",
            &charts::exits(&configuration.exits, index),
        );
    }
    if text.is_empty() {
        return text;
    }
    format!("<section>\n<h2>Exits</h2>\n{text}</section>\n")
}

/// A row for each of KVM's statistics that any configuration has, a column for each configuration.
fn statistics(outcome: &Outcome) -> String {
    let counted: Vec<_> = outcome
        .configurations
        .iter()
        .filter(|configuration| configuration.again_of.is_none() && !configuration.statistics.is_empty())
        .collect();
    let all = counted.iter().flat_map(|configuration| &configuration.statistics);
    let names: BTreeSet<&str> = all.map(|statistic| statistic.name.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    let mut text = String::from("<section>\n<h2>Counted by KVM</h2>\n<table>\n<tr><th></th>");
    for configuration in &counted {
        let _ = write!(text, "<th>{}</th>", escape(&configuration.name));
    }
    text += "</tr>\n";
    for name in names {
        let _ = write!(text, "<tr><td>{}</td>", escape(name));
        for configuration in &counted {
            let found = configuration
                .statistics
                .iter()
                .find(|statistic| statistic.name == name);
            let _ = write!(text, "<td>{}</td>", found.map_or(0, |statistic| statistic.count));
        }
        text += "</tr>\n";
    }
    text + "</table>\n</section>\n"
}

fn method(outcome: &Outcome) -> String {
    format!(
        "<section>\n<h2>Method</h2>\n<p>In each round every configuration launches once, in an order that turns round from round to round; the \
         first configuration launches twice. A ratio is the median of the ratios within rounds, so what disturbs a whole round cancels out; its \
         interval holds 95 % of 2,000 bootstrap resamples of the rounds (seed {}). The percentiles interpolate; with fewer than \
         100 launches, p99 is close to the largest. Absolute times are of this host at that time; compare ratios.</p>\n</section>\n",
        outcome.seed
    )
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::super::outcome::{ExitInfo, Statistic};
    use super::*;

    #[test]
    fn the_report_is_complete_and_loads_nothing() {
        let mut outcome = outcome(6, 0.5, 1.0);
        outcome.configurations[0].exits = vec![
            ExitInfo {
                name: "read <vda> Status".into(),
                count: 12,
            },
            ExitInfo {
                name: "out 0x80".into(),
                count: 3,
            },
        ];
        outcome.configurations[1].statistics = vec![Statistic {
            name: "pf_<fixed>".into(),
            count: 4711,
        }];
        let page = html(&outcome);
        for part in [
            "Counted by KVM",
            "pf_&lt;fixed&gt;</td><td>4711</td>",
            "Warm page cache",
            "Where the time goes",
            "Distribution",
            "Round by round",
            "Exits",
            "read &lt;vda&gt; Status",
            "0.500",
            "faster",
            "Quiet",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for outside in ["http:", "https:", "src=", "@import", "url(", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(!page.contains("NaN") && !page.contains("inf\""));
    }

    #[test]
    fn one_launch_makes_a_report() {
        let page = html(&outcome(1, 2.0, 1.0));
        assert!(page.contains("No conclusion") && page.contains("</html>"));
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn names_are_escaped() {
        let mut outcome = outcome(5, 1.0, 1.0);
        outcome.configurations[1].name = "<script>alert(1)</script>\"'&".into();
        outcome.configurations[1].append = "</small><script>".into();
        assert!(!html(&outcome).contains("<script"));
    }
}
