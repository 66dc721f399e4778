//! `vmm bench`: many cold launches, interleaved, and what may be concluded from them.
//!
//! A *configuration* is one way of launching (a monitor, an image, a command line, an accelerator). In each
//! round every configuration launches once, in an order that turns round from round to round (A B A', A' B A,
//! …), so that drift of the host hits all alike. Configuration A runs twice a round: what its two launches
//! differ by is the noise, and a run whose noise is above [`outcome::NOISE_LIMIT`] draws no conclusion.

pub mod cache;
pub mod compare;
pub mod configuration;
pub mod outcome;
pub mod peer;
pub mod report;
pub mod sample;
pub mod stats;
pub mod trace;

use std::path::PathBuf;
use std::time::Duration;

use configuration::{Configuration, Scratch};
use outcome::{Cache, End, Host, Outcome, Sample};
use sample::Launcher;

/// What goes wrong with a measurement.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// {what} {path} failed: {source}
    File {
        /// The step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// {percent} % of {path} stay in the page cache, so no launch of it is cold
    Warm {
        /// The file.
        path: PathBuf,
        /// How much stays.
        percent: u32,
    },
    /// {configuration} did not reach the end of its boot within {seconds} s; it printed last:{output}
    Late {
        /// The configuration's name.
        configuration: String,
        /// How long was waited.
        seconds: u64,
        /// Its last output, from a new line on.
        output: String,
    },
    /// {configuration} ended ({status}) before the end of its boot; it printed last:{output}
    Died {
        /// The configuration's name.
        configuration: String,
        /// How it ended.
        status: String,
        /// Its last output, from a new line on.
        output: String,
    },
    /// this host's kernel does not show entries into a guest (tracefs, event kvm_entry)
    Untraced,
    /// {path} is not what `vmm bench --json` writes: {reason}
    NotAnOutcome {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// {0}
    Image(#[from] instance::Error),
}

impl Error {
    /// What to try.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Warm { .. } => Some(
                "put the image on a disk's file system (tmpfs is the page cache) and end what has it mapped, or measure with --cache warm",
            ),
            Error::Late { .. } => {
                Some("--limit SECONDS; an image from before `kiln.stop=` needs to be built again")
            }
            Error::Untraced => Some(
                "as root, `mount -t tracefs tracefs /sys/kernel/tracing`; without it, --end init and the event T4 of --timing",
            ),
            Error::Died { .. } => Some("run the same command line with `vmm run` to see its whole boot"),
            _ => None,
        }
    }
}

/// The result of this layer.
pub type Result<T> = std::result::Result<T, Error>;

/// What is to be measured.
#[derive(Debug)]
pub struct Plan {
    /// The configurations; the first is what the others are compared with.
    pub configurations: Vec<Configuration>,
    /// Launches of each configuration for each state of the cache.
    pub rounds: u32,
    /// Launches of each configuration before those, not counted.
    pub warmups: u32,
    /// States of the page cache, one after the other.
    pub caches: Vec<Cache>,
    /// When a launch counts as done.
    pub end: End,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// How long one launch may take.
    pub limit: Duration,
    /// Why peers do not take part, for the report.
    pub skipped: Vec<String>,
}

/// What is going on, for the user who waits.
#[derive(Debug)]
pub struct Progress<'a> {
    /// Launches done.
    pub done: u32,
    /// Launches to do.
    pub total: u32,
    /// The configuration that launches now.
    pub configuration: &'a str,
}

impl Plan {
    /// Measures. `progress` is called before each launch.
    pub fn run(self, scratch: &Scratch, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Outcome> {
        let mut launcher = Launcher::new(scratch, self.end, self.limit);
        let turns = self.configurations.len() + 1;
        let rounds = self.rounds + self.warmups;
        let total = rounds * turns as u32 * self.caches.len() as u32;
        let mut samples = Vec::new();
        let mut done = 0;
        for &cache in &self.caches {
            for round in 0..rounds {
                for (position, turn) in order(turns, round).enumerate() {
                    let configuration = &self.configurations[turn % self.configurations.len()];
                    progress(Progress {
                        done,
                        total,
                        configuration: &configuration.name,
                    });
                    let ns = launcher.launch(configuration, cache)?;
                    done += 1;
                    // The first launches fill caches that no later one finds empty: of the host, and our own.
                    if let Some(round) = round.checked_sub(self.warmups) {
                        samples.push(Sample {
                            cache,
                            configuration: turn,
                            round,
                            position: position as u32,
                            ns,
                        });
                    }
                }
            }
        }
        let mut configurations: Vec<_> = self.configurations.iter().map(Configuration::describe).collect();
        for (info, configuration) in configurations.iter_mut().zip(&self.configurations) {
            info.exits = launcher.exits(configuration);
        }
        let mut again = configurations[0].clone();
        again.name = format!("{} (again)", again.name);
        again.again_of = Some(0);
        configurations.push(again);
        let mut outcome = Outcome::new(Host::this(), self.end, self.rounds, self.warmups, self.seed);
        outcome.configurations = configurations;
        outcome.samples = samples;
        outcome.skipped = self.skipped;
        outcome.conclude();
        Ok(outcome)
    }
}

/// The turns of a round: the configurations in order, then configuration A again; every other round
/// backwards.
fn order(turns: usize, round: u32) -> impl Iterator<Item = usize> {
    (0..turns).map(move |n| if round.is_multiple_of(2) { n } else { turns - 1 - n })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_reversed_in_every_other_round() {
        assert_eq!(order(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(order(3, 1).collect::<Vec<_>>(), [2, 1, 0]);
        // Over two rounds each configuration has the same mean position.
        for configuration in 0..3 {
            let positions: usize = (0..2)
                .map(|r| order(3, r).position(|l| l == configuration).unwrap())
                .sum();
            assert_eq!(positions, 2);
        }
    }
}
