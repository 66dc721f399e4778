//! What a run found: the samples, what follows from them, and the JSON of both (docs/bench.md has the
//! schema).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::stats::{self, Ratio};
use super::{Error, Result};

/// Version of the JSON.
const SCHEMA: u32 = 1;
/// How far from 1 the ratio of the two launches of configuration A may be before the run is noise.
pub const NOISE_LIMIT: f64 = 0.02;
/// How far from 1 the ends of its interval may be: a median that is where it should be by luck says nothing.
pub const NOISE_SPREAD: f64 = 0.1;
/// Fewer rounds than this say nothing of their noise.
pub const MIN_ROUNDS: usize = 5;

/// Metric: from the start of the process to the guest's marker on the monitor's standard output.
pub const MARKER: &str = "marker";
/// Metric: from the start of the process to its end, where the monitor ends with its guest.
pub const EXIT: &str = "exit";
/// Metric: from the start of the process to the first entry into the guest, as the host's kernel saw it.
pub const KVM_ENTRY: &str = "kvm_entry";
/// Metric of `vmm`'s own timeline: its first processor is about to run.
const FIRST_RUN: &str = "T4";
/// The same: the agent answers.
const READY: &str = "T10";

/// State of the page cache before a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// The image's file is in it.
    Warm,
    /// The image's file is not in it.
    Cold,
}

impl Cache {
    /// As a word.
    pub fn name(self) -> &'static str {
        match self {
            Cache::Warm => "warm",
            Cache::Cold => "cold",
        }
    }
}

/// When a launch counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// guest-init would start the image's PID 1 (the same for every monitor)
    Init,
    /// the agent answers (vmm only)
    Ready,
    /// the processor first enters the guest: as the host's kernel sees it on KVM (needs root), as vmm says on
    /// the software processor
    Entry,
    /// Where [`Entry`](End::Entry) ends a launch that no kernel sees: the software processor is about to run.
    #[serde(rename = "first_run")]
    FirstRun,
}

impl End {
    /// The metric that tells.
    pub fn metric(self) -> &'static str {
        match self {
            End::Init => MARKER,
            End::Ready => READY,
            End::Entry => KVM_ENTRY,
            End::FirstRun => FIRST_RUN,
        }
    }
}

/// Where it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub cpus: u32,
    /// The kernel's release.
    pub kernel: String,
}

impl Host {
    /// This host.
    pub fn this() -> Host {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown", |(_, name)| name.trim());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Host {
            processor: name.to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// One way of launching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigurationInfo {
    /// Its name, unique in the run.
    pub name: String,
    /// The configuration that this one repeats, for the noise.
    pub again_of: Option<usize>,
    /// The program.
    pub program: String,
    /// Its version, as it reports it.
    pub version: Option<String>,
    /// The image's id.
    pub image: String,
    /// `kvm`, `soft` or `tcg`.
    pub accel: String,
    /// Words added to the kernel command line.
    pub append: String,
    /// Processors.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
    /// Exits to user space by what caused them, most frequent first; empty where they were not counted.
    #[serde(default)]
    pub exits: Vec<ExitInfo>,
    /// What KVM has counted up to the end of the boot, by its own names; empty where it cannot be read.
    #[serde(default)]
    pub statistics: Vec<Statistic>,
}

/// One of KVM's statistics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistic {
    /// KVM's name of it.
    pub name: String,
    /// Its value.
    pub count: u64,
}

/// Exits of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitInfo {
    /// Kind and register.
    pub name: String,
    /// How many.
    pub count: u64,
}

/// One launch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// State of the page cache.
    pub cache: Cache,
    /// Index of the configuration.
    #[serde(rename = "lane")]
    pub configuration: usize,
    /// Round, from 0.
    pub round: u32,
    /// Position in the round, from 0.
    pub position: u32,
    /// Nanoseconds from the start of the process by metric.
    pub ns: BTreeMap<String, u64>,
}

/// One metric of one configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// State of the page cache.
    pub cache: Cache,
    /// Index of the configuration.
    #[serde(rename = "lane")]
    pub configuration: usize,
    /// The metric.
    pub metric: String,
    /// Number of launches.
    pub n: usize,
    /// The least, in nanoseconds.
    pub min: f64,
    /// The median, in nanoseconds.
    pub p50: f64,
    /// The 99th percentile, in nanoseconds; close to the largest below 100 launches.
    pub p99: f64,
}

/// The conclusion about a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is below 1.
    Faster,
    /// The whole interval is above 1.
    Slower,
    /// The interval holds 1.
    NoDifference,
    /// The run was too noisy or too short.
    NoConclusion,
}

impl Verdict {
    fn of(ratio: &Ratio, quiet: bool) -> Verdict {
        match (quiet, ratio.low, ratio.high) {
            (false, ..) => Verdict::NoConclusion,
            (true, _, high) if high < 1.0 => Verdict::Faster,
            (true, low, _) if low > 1.0 => Verdict::Slower,
            _ => Verdict::NoDifference,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::NoDifference => "no difference",
            Verdict::NoConclusion => "no conclusion",
        }
    }
}

/// A configuration against the first one: below 1, the configuration took less time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// State of the page cache.
    pub cache: Cache,
    /// Index of the configuration.
    #[serde(rename = "lane")]
    pub configuration: usize,
    /// Index of the configuration that it is compared with.
    pub against: usize,
    /// The metric.
    pub metric: String,
    /// Median of the ratios within rounds, and its interval.
    #[serde(flatten)]
    pub ratio: Ratio,
    /// The conclusion.
    pub verdict: Verdict,
}

/// Configuration A against itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// State of the page cache.
    pub cache: Cache,
    /// Median of the ratios within rounds, and its interval.
    #[serde(flatten)]
    pub ratio: Ratio,
    /// Whether conclusions may be drawn.
    pub quiet: bool,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Version of this format.
    pub schema: u32,
    /// Always `kiln-bench`.
    pub kind: String,
    /// Version of `vmm`.
    pub vmm: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Where.
    pub host: Host,
    /// When a launch counted as done.
    pub end: End,
    /// The metric that says so.
    pub metric: String,
    /// Launches of each configuration for each state of the cache.
    pub rounds: u32,
    /// Launches discarded before.
    pub warmups: u32,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// The configurations.
    #[serde(rename = "lanes")]
    pub configurations: Vec<ConfigurationInfo>,
    /// Why peers did not take part.
    #[serde(default)]
    pub skipped: Vec<String>,
    /// Every launch.
    pub samples: Vec<Sample>,
    /// Every metric of every configuration.
    pub summaries: Vec<Summary>,
    /// Every configuration against the first.
    pub comparisons: Vec<Comparison>,
    /// The A/A configuration.
    pub noise: Vec<Noise>,
    /// Whether conclusions may be drawn for every state of the cache.
    pub conclusive: bool,
}

impl Outcome {
    /// An empty one.
    pub fn new(host: Host, end: End, rounds: u32, warmups: u32, seed: u64) -> Outcome {
        Outcome {
            schema: SCHEMA,
            kind: "kiln-bench".into(),
            vmm: env!("CARGO_PKG_VERSION").into(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            host,
            end,
            metric: end.metric().into(),
            rounds,
            warmups,
            seed,
            configurations: Vec::new(),
            skipped: Vec::new(),
            samples: Vec::new(),
            summaries: Vec::new(),
            comparisons: Vec::new(),
            noise: Vec::new(),
            conclusive: false,
        }
    }

    /// Reads what `--json` wrote.
    pub fn read(path: &Path) -> Result<Outcome> {
        let not = |reason: String| Error::NotAnOutcome {
            path: path.into(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            what: "reading",
            path: path.into(),
            source,
        })?;
        let outcome: Outcome = serde_json::from_str(&text).map_err(|e| not(e.to_string()))?;
        if outcome.schema != SCHEMA || outcome.kind != "kiln-bench" {
            return Err(not(format!(
                "{:?} of schema {} instead of \"kiln-bench\" of schema {SCHEMA}",
                outcome.kind, outcome.schema
            )));
        }
        let configurations = outcome.configurations.len();
        match outcome
            .samples
            .iter()
            .find(|sample| sample.configuration >= configurations)
        {
            Some(sample) => Err(not(format!(
                "a sample of configuration {} of {configurations}",
                sample.configuration
            ))),
            None => Ok(outcome),
        }
    }

    /// The values of a metric of a configuration in nanoseconds, round by round; `None` if a launch has none.
    pub fn values(&self, cache: Cache, configuration: usize, metric: &str) -> Option<Vec<f64>> {
        let mut rows: Vec<&Sample> = self
            .samples
            .iter()
            .filter(|s| s.cache == cache && s.configuration == configuration)
            .collect();
        rows.sort_by_key(|sample| sample.round);
        if rows.is_empty() {
            return None;
        }
        rows.iter()
            .map(|sample| sample.ns.get(metric).map(|&ns| ns as f64))
            .collect()
    }

    /// The states of the cache that were measured.
    pub fn caches(&self) -> Vec<Cache> {
        let mut caches: Vec<_> = self.samples.iter().map(|s| s.cache).collect();
        caches.sort_unstable();
        caches.dedup();
        caches
    }

    /// How a configuration compares with the first by what is compared, if it does.
    pub fn comparison(&self, cache: Cache, configuration: usize) -> Option<&Comparison> {
        self.comparisons
            .iter()
            .find(|c| c.cache == cache && c.configuration == configuration && c.metric == self.metric)
    }

    /// The summary of a metric of a configuration.
    pub fn summary(&self, cache: Cache, configuration: usize, metric: &str) -> Option<&Summary> {
        self.summaries
            .iter()
            .find(|s| s.cache == cache && s.configuration == configuration && s.metric == metric)
    }

    /// Works out all that follows from the samples.
    pub fn conclude(&mut self) {
        let metrics: Vec<String> = {
            let mut all: Vec<_> = self.samples.iter().flat_map(|s| s.ns.keys().cloned()).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        for cache in self.caches() {
            let quiet = self.measure_noise(cache);
            for configuration in 0..self.configurations.len() {
                for metric in &metrics {
                    self.summarize(cache, configuration, metric);
                    if configuration > 0 && self.configurations[configuration].again_of.is_none() {
                        self.compare(cache, configuration, metric, quiet);
                    }
                }
            }
        }
        self.conclusive = !self.noise.is_empty() && self.noise.iter().all(|noise| noise.quiet);
    }

    fn measure_noise(&mut self, cache: Cache) -> bool {
        let Some(again) = self
            .configurations
            .iter()
            .position(|configuration| configuration.again_of == Some(0))
        else {
            return false;
        };
        let values = |configuration| {
            self.values(cache, configuration, &self.metric)
                .unwrap_or_default()
        };
        let (this, that) = (values(again), values(0));
        let Some(ratio) = stats::paired_ratio(&this, &that, self.seed) else {
            return false;
        };
        let within = |ratio: f64, limit: f64| (ratio - 1.0).abs() <= limit;
        let quiet = this.len() >= MIN_ROUNDS
            && within(ratio.ratio, NOISE_LIMIT)
            && within(ratio.low, NOISE_SPREAD)
            && within(ratio.high, NOISE_SPREAD);
        self.noise.push(Noise { cache, ratio, quiet });
        quiet
    }

    fn summarize(&mut self, cache: Cache, configuration: usize, metric: &str) {
        let Some(values) = self.values(cache, configuration, metric) else {
            return;
        };
        let at = |q| stats::quantile(&values, q);
        if let (Some(min), Some(p50), Some(p99)) = (at(0.0), at(0.5), at(0.99)) {
            self.summaries.push(Summary {
                cache,
                configuration,
                metric: metric.into(),
                n: values.len(),
                min,
                p50,
                p99,
            });
        }
    }

    fn compare(&mut self, cache: Cache, configuration: usize, metric: &str, quiet: bool) {
        let (Some(this), Some(that)) = (
            self.values(cache, configuration, metric),
            self.values(cache, 0, metric),
        ) else {
            return;
        };
        if let Some(ratio) = stats::paired_ratio(&this, &that, self.seed) {
            self.comparisons.push(Comparison {
                cache,
                configuration,
                against: 0,
                metric: metric.into(),
                ratio,
                verdict: Verdict::of(&ratio, quiet),
            });
        }
    }
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
pub(super) mod tests;
