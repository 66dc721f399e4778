//! `vmm bench`: many cold launches, interleaved, and what may be concluded from them.
//!
//! A *configuration* is one way of launching (a monitor, an image, a command line, an accelerator). In each
//! round every configuration launches once, in an order that turns round from round to round (A B A', A' B A,
//! …), so that drift of the host hits all alike. Configuration A runs twice a round: what its two launches
//! differ by is the noise, and a run whose noise is above [`outcome::NOISE_LIMIT`] draws no conclusion.

pub mod cache;
pub mod compare;
pub mod configuration;
pub mod kvm_stats;
pub mod outcome;
pub mod peer;
pub mod report;
pub mod sample;
pub mod stats;
pub mod trace;

use std::path::PathBuf;
use std::time::Duration;

use configuration::{Configuration, Monitor, Scratch};
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
pub enum Progress<'a> {
    /// A round begins.
    Round {
        /// The state of the page cache.
        cache: Cache,
        /// Its number from 1, warm-ups included.
        round: u32,
        /// How many there are.
        rounds: u32,
    },
    /// A launch begins.
    Launch {
        /// Launches done.
        done: u32,
        /// Launches to do.
        total: u32,
        /// The configuration that launches.
        configuration: &'a str,
    },
    /// A peer takes part no longer.
    Dropped {
        /// Which, and why.
        reason: &'a str,
    },
}

impl Plan {
    /// Measures. `progress` is called before each round and launch. A peer that does not reach the end of its
    /// boot is left out from then on, and of what was found.
    ///
    /// # Errors
    /// When a launch of `vmm` fails, or what a launch needs cannot be made.
    pub fn run(self, scratch: &Scratch, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Outcome> {
        let mut launcher = Launcher::new(scratch, self.end, self.limit);
        let mut dropped = vec![false; self.configurations.len()];
        let mut skipped = self.skipped.clone();
        let turns = self.configurations.len() + 1;
        let rounds = self.rounds + self.warmups;
        let total = rounds * turns as u32 * self.caches.len() as u32;
        let mut samples = Vec::new();
        let mut done = 0;
        for &cache in &self.caches {
            for round in 0..rounds {
                progress(Progress::Round {
                    cache,
                    round: round + 1,
                    rounds,
                });
                for (position, turn) in order(turns, round).enumerate() {
                    let index = turn % self.configurations.len();
                    let configuration = &self.configurations[index];
                    done += 1;
                    if dropped[index] {
                        continue;
                    }
                    progress(Progress::Launch {
                        done: done - 1,
                        total,
                        configuration: &configuration.name,
                    });
                    let ns = match launcher.launch(configuration, cache) {
                        Ok(ns) => ns,
                        Err(error) if configuration.may_be_dropped(&error) => {
                            dropped[index] = true;
                            let reason = format!("{} was left out: {error}", configuration.name);
                            progress(Progress::Dropped { reason: &reason });
                            skipped.push(reason);
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
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
        Ok(self.conclude(&launcher, samples, &dropped, skipped))
    }

    /// What follows from `samples`, without the configurations that were dropped.
    fn conclude(
        self,
        launcher: &Launcher<'_>,
        mut samples: Vec<Sample>,
        dropped: &[bool],
        skipped: Vec<String>,
    ) -> Outcome {
        let is_dropped = |turn: usize| dropped.get(turn).is_some_and(|&dropped| dropped);
        samples.retain(|sample| !is_dropped(sample.configuration));
        for sample in &mut samples {
            sample.configuration -= (0..sample.configuration).filter(|&turn| is_dropped(turn)).count();
        }
        let kept = self
            .configurations
            .iter()
            .zip(dropped)
            .filter(|(_, dropped)| !**dropped);
        let mut configurations: Vec<_> = kept
            .map(|(configuration, _)| {
                let mut info = configuration.describe();
                info.exits = launcher.exits(configuration);
                info.statistics = launcher.statistics(configuration);
                info
            })
            .collect();
        let mut again = configurations[0].clone();
        again.name = format!("{} (again)", again.name);
        again.again_of = Some(0);
        configurations.push(again);
        let mut outcome = Outcome::new(Host::this(), self.end, self.rounds, self.warmups, self.seed);
        outcome.configurations = configurations;
        outcome.samples = samples;
        outcome.skipped = skipped;
        outcome.conclude();
        outcome
    }
}

impl Configuration {
    /// Whether `error` says that a peer does not boot here. Without `vmm` there is nothing to compare with.
    fn may_be_dropped(&self, error: &Error) -> bool {
        matches!(self.monitor, Monitor::Peer { .. })
            && matches!(error, Error::Late { .. } | Error::Died { .. })
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
    fn a_peer_that_does_not_boot_is_left_out_by_name() {
        use configuration::tests::monitor_script;
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(directory.path()).unwrap();
        let marker = guest_init::proto::STOPPED_AT_INIT;
        let works = format!("echo '{marker}'");
        let vmm = monitor_script(directory.path(), "vmm", &works, None);
        let broken = monitor_script(
            directory.path(),
            "broken",
            "echo no disk; exit 3",
            Some(peer::Peer::Qemu),
        );
        let peer = monitor_script(directory.path(), "peer", &works, Some(peer::Peer::Qemu));
        let plan = |configurations| Plan {
            configurations,
            rounds: 2,
            warmups: 1,
            caches: vec![Cache::Warm],
            end: End::Init,
            seed: 1,
            limit: Duration::from_secs(60),
            skipped: Vec::new(),
        };
        let mut said = Vec::new();
        let mut note = |progress: Progress<'_>| {
            if let Progress::Dropped { reason } = progress {
                said.push(reason.to_owned());
            }
        };
        let outcome = plan(vec![vmm, broken.clone(), peer])
            .run(&scratch, &mut note)
            .unwrap();
        let names: Vec<_> = outcome.configurations.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["vmm", "peer", "vmm (again)"]);
        assert_eq!(outcome.samples.len(), 6);
        assert!(outcome.samples.iter().all(|sample| sample.configuration < 3));
        assert_eq!(outcome.skipped, said);
        assert!(
            said.len() == 1 && said[0].contains("broken") && said[0].contains("no disk"),
            "{said:?}"
        );
        // What is compared with cannot be left out.
        let vmm = monitor_script(directory.path(), "vmm", "exit 3", None);
        assert!(matches!(
            plan(vec![vmm]).run(&scratch, &mut |_| ()),
            Err(Error::Died { .. })
        ));
    }

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
