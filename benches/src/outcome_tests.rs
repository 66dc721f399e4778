//! Tests of [`super`], and outcomes for the tests of what reads them.

use super::*;

fn configuration(name: &str, again_of: Option<usize>) -> ConfigurationInfo {
    ConfigurationInfo {
        name: name.into(),
        again_of,
        program: "vmm".into(),
        version: None,
        image: "ami-1".into(),
        accel: "soft".into(),
        append: String::new(),
        cpus: 1,
        memory: 256 << 20,
        exits: Vec::new(),
        statistics: Vec::new(),
    }
}

/// Two configurations, the second `factor` times as slow, and configuration A again, `noise` times as slow.
pub fn outcome(rounds: u32, factor: f64, noise: f64) -> Outcome {
    let host = Host {
        processor: "P".into(),
        cpus: 2,
        kernel: "6".into(),
    };
    let mut outcome = Outcome::new(host, End::Init, rounds, 1, 1);
    outcome.configurations = vec![
        configuration("A", None),
        configuration("B", None),
        configuration("A (again)", Some(0)),
    ];
    for round in 0..rounds {
        for (configuration, factor) in [(0, 1.0), (1, factor), (2, noise)] {
            let marker = 1e9 * f64::from(1 + round % 3) * factor;
            let ns = [(MARKER.into(), marker as u64), ("T4".into(), 1000)].into();
            outcome.samples.push(Sample {
                cache: Cache::Warm,
                configuration,
                round,
                position: configuration as u32,
                ns,
            });
        }
    }
    outcome.conclude();
    outcome
}

fn verdict(outcome: &Outcome) -> Verdict {
    outcome
        .comparisons
        .iter()
        .find(|c| c.metric == MARKER)
        .unwrap()
        .verdict
}

#[test]
fn a_quiet_run_draws_a_conclusion() {
    for (factor, expected) in [
        (0.5, Verdict::Faster),
        (1.5, Verdict::Slower),
        (1.0, Verdict::NoDifference),
    ] {
        let outcome = outcome(6, factor, 1.01);
        assert!(outcome.conclusive);
        assert_eq!(verdict(&outcome), expected, "{factor}");
    }
}

#[test]
fn a_noisy_or_short_run_draws_no_conclusion() {
    for outcome in [outcome(6, 0.5, 1.03), outcome(6, 0.5, 0.97), outcome(4, 0.5, 1.0)] {
        assert!(!outcome.conclusive);
        assert_eq!(verdict(&outcome), Verdict::NoConclusion);
    }
}

#[test]
fn a_median_near_one_with_a_wide_interval_draws_no_conclusion() {
    let mut outcome = outcome(5, 2.0, 1.0);
    let again = outcome
        .samples
        .iter_mut()
        .filter(|sample| sample.configuration == 2);
    for (sample, factor) in again.zip([0.6, 0.7, 1.0, 1.5, 2.1]) {
        if let Some(marker) = sample.ns.get_mut(MARKER) {
            *marker = (*marker as f64 * factor) as u64;
        }
    }
    outcome.noise.clear();
    outcome.comparisons.clear();
    outcome.conclude();
    assert_eq!(outcome.noise[0].ratio.ratio, 1.0);
    assert!(!outcome.conclusive);
    assert_eq!(verdict(&outcome), Verdict::NoConclusion);
}

#[test]
fn the_json_reads_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.json");
    let before = outcome(5, 2.0, 1.0);
    std::fs::write(&path, serde_json::to_string(&before).unwrap()).unwrap();
    assert_eq!(Outcome::read(&path).unwrap(), before);

    let mut other = before.clone();
    other.schema = 2;
    std::fs::write(&path, serde_json::to_string(&other).unwrap()).unwrap();
    assert!(Outcome::read(&path).unwrap_err().to_string().contains("schema 2"));
    let mut other = before.clone();
    other.samples[0].configuration = 9;
    std::fs::write(&path, serde_json::to_string(&other).unwrap()).unwrap();
    assert!(Outcome::read(&path).is_err());
    std::fs::write(&path, "{}").unwrap();
    assert!(Outcome::read(&path).is_err());
}

#[test]
fn a_metric_that_one_launch_lacks_is_not_summarized() {
    let mut outcome = outcome(5, 2.0, 1.0);
    outcome.samples[1].ns.remove("T4");
    outcome.summaries.clear();
    outcome.conclude();
    assert!(outcome.summary(Cache::Warm, 1, "T4").is_none());
    assert!(outcome.summary(Cache::Warm, 0, "T4").is_some());
}
