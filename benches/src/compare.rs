//! A run against an older one.

use super::outcome::{Cache, NOISE_LIMIT, Outcome};
use super::stats::{self, Ratio};

/// A configuration now against the same configuration then.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The configuration's name.
    pub configuration: String,
    /// State of the page cache.
    pub cache: Cache,
    /// Median now to median then, and its interval.
    pub ratio: Ratio,
    /// Whether it has become slower by more than noise explains.
    pub regression: bool,
}

/// Why two runs say nothing about each other, or what changed.
#[derive(Debug, Clone, PartialEq)]
pub enum Changes {
    /// They cannot be compared.
    Incomparable(String),
    /// Each configuration that both have.
    Found(Vec<Change>),
}

/// Compares by the metric that ends a launch. The runs were not interleaved, so a change counts only when its
/// whole interval lies beyond the noise that a run may have.
pub fn compare(now: &Outcome, then: &Outcome) -> Changes {
    if let Some(reason) = incomparable(now, then) {
        return Changes::Incomparable(reason);
    }
    let mut changes = Vec::new();
    for (index, configuration) in now.configurations.iter().enumerate() {
        let same = |other: &super::outcome::ConfigurationInfo| {
            other.name == configuration.name
                && (other.cpus, other.memory) == (configuration.cpus, configuration.memory)
        };
        let Some(old) = then.configurations.iter().position(same) else {
            continue;
        };
        if configuration.again_of.is_some() {
            continue;
        }
        for cache in now.caches() {
            let this = now.values(cache, index, &now.metric);
            let that = then.values(cache, old, &now.metric);
            let (Some(this), Some(that)) = (this, that) else {
                continue;
            };
            if let Some(ratio) = stats::unpaired_ratio(&this, &that, now.seed) {
                changes.push(Change {
                    configuration: configuration.name.clone(),
                    cache,
                    ratio,
                    regression: ratio.low > 1.0 + NOISE_LIMIT,
                });
            }
        }
    }
    if changes.is_empty() {
        return Changes::Incomparable("they have no configuration in common".into());
    }
    Changes::Found(changes)
}

fn incomparable(now: &Outcome, then: &Outcome) -> Option<String> {
    if now.host != then.host {
        return Some(format!(
            "the hosts differ: {:?} now, {:?} then",
            now.host, then.host
        ));
    }
    if now.end != then.end {
        return Some("they end at different events (--end)".into());
    }
    if !then.conclusive {
        return Some("the older run was too noisy or too short".into());
    }
    (!now.conclusive).then(|| "this run was too noisy or too short".into())
}

#[cfg(test)]
mod tests {
    use super::super::outcome::tests::outcome;
    use super::*;

    fn regressions(now: &Outcome, then: &Outcome) -> Vec<bool> {
        match compare(now, then) {
            Changes::Found(changes) => changes.iter().map(|c| c.regression).collect(),
            Changes::Incomparable(reason) => panic!("{reason}"),
        }
    }

    /// Samples that differ little, so that medians are known well.
    fn steady(factor: f64) -> Outcome {
        let mut outcome = outcome(12, 1.0, 1.0);
        for sample in &mut outcome.samples {
            let marker = 1e9 * (1.0 + f64::from(sample.round) / 1000.0);
            let factor = if sample.configuration == 1 { factor } else { 1.0 };
            sample
                .ns
                .insert(super::super::outcome::MARKER.into(), (marker * factor) as u64);
        }
        outcome
    }

    #[test]
    fn only_a_slower_configuration_is_a_regression() {
        assert_eq!(regressions(&steady(1.1), &steady(1.0)), [false, true]);
        assert_eq!(regressions(&steady(0.9), &steady(1.0)), [false, false]);
        assert_eq!(regressions(&steady(1.01), &steady(1.0)), [false, false]);
    }

    #[test]
    fn runs_that_differ_in_host_or_configurations_are_incomparable() {
        let then = steady(1.0);
        let mut elsewhere = steady(1.1);
        elsewhere.host.kernel = "7".into();
        let mut renamed = steady(1.1);
        renamed
            .configurations
            .iter_mut()
            .for_each(|configuration| configuration.name.push('x'));
        for now in [elsewhere, renamed, outcome(3, 1.0, 1.0)] {
            assert!(matches!(compare(&now, &then), Changes::Incomparable(_)));
        }
        assert!(matches!(
            compare(&then, &outcome(6, 1.0, 1.5)),
            Changes::Incomparable(_)
        ));
    }
}
