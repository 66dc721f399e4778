//! One launch, measured from outside: from just before the process is started to what can be seen of it.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use guest_init::proto::STOPPED_AT_INIT;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::configuration::{self, Configuration, Launch, Scratch};
use super::outcome::{Cache, EXIT, End, ExitInfo, KVM_ENTRY, MARKER, Statistic};
use super::trace::KvmTrace;
use super::{Error, Result, cache, kvm_stats};

/// How much of a launch's output is kept to explain a failure.
const KEPT: usize = 4096;
/// How long a monitor has to end after its guest has.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often the trace is looked at. The entry has its own time; looking seldom leaves the processor to the
/// launch.
const LOOK: Duration = Duration::from_millis(20);

/// Launches configurations.
pub struct Launcher<'a> {
    scratch: &'a Scratch,
    end: End,
    limit: Duration,
    trace: Option<KvmTrace>,
    /// By configuration: the exits of its last launch.
    exits: BTreeMap<String, Vec<ExitInfo>>,
    /// By configuration: what KVM counted of its last launch.
    statistics: BTreeMap<String, Vec<Statistic>>,
}

impl<'a> Launcher<'a> {
    /// A launch counts as done at `end` and may take until `limit`.
    pub fn new(scratch: &'a Scratch, end: End, limit: Duration) -> Launcher<'a> {
        Launcher {
            scratch,
            end,
            limit,
            trace: KvmTrace::open(),
            exits: BTreeMap::new(),
            statistics: BTreeMap::new(),
        }
    }

    /// The exits to user space of the configuration's last launch up to the end of its boot; none where
    /// nobody counts them.
    pub fn exits(&self, configuration: &Configuration) -> Vec<ExitInfo> {
        self.exits.get(&configuration.name).cloned().unwrap_or_default()
    }

    /// What KVM counted of the configuration's last launch up to the end of its boot; none where it cannot be
    /// read.
    pub fn statistics(&self, configuration: &Configuration) -> Vec<Statistic> {
        self.statistics
            .get(&configuration.name)
            .cloned()
            .unwrap_or_default()
    }

    /// Launches once and returns nanoseconds from the start by metric.
    pub fn launch(&mut self, configuration: &Configuration, cache: Cache) -> Result<BTreeMap<String, u64>> {
        let launch = configuration.prepare(self.scratch, self.end)?;
        let result = self.measure(configuration, &launch, cache);
        launch.remove.iter().for_each(|path| configuration::remove(path));
        result
    }

    fn measure(
        &mut self,
        configuration: &Configuration,
        launch: &Launch,
        state: Cache,
    ) -> Result<BTreeMap<String, u64>> {
        for path in &launch.reads {
            match state {
                Cache::Cold => cache::drop_file(path)?,
                Cache::Warm => cache::read_file(path)?,
            }
        }
        if let Some(trace) = &self.trace {
            trace.arm();
        }
        let errors = self.scratch.path("stderr");
        let mut watched = Watched::start(configuration, launch, &errors, self.limit)?;
        // A guest that has a command to run prints no marker: it is done when it ends.
        let marker = match self.end {
            End::Init => watched.marker()?,
            End::Ready | End::Entry | End::FirstRun => None,
        };
        // While the monitor still has its machine. It may end at any time.
        let seen = kvm_stats::of_process(Path::new(kvm_stats::DEBUGFS), watched.child.id());
        self.statistics.insert(configuration.name.clone(), seen);
        let timeout = if configuration.ends_itself() {
            TIMEOUT
        } else {
            Duration::ZERO
        };
        let exit = match self.end {
            End::Init => watched.end(Instant::now() + timeout)?,
            End::Ready | End::FirstRun => watched.end(watched.deadline)?,
            End::Entry => watched.end_at_entry(self.trace.as_ref().ok_or(Error::Untraced)?)?,
        };
        let started = watched.started;
        let mut ns = BTreeMap::new();
        let mut put = |name: &str, at: Option<Duration>| {
            at.and_then(|at| u64::try_from(at.as_nanos()).ok())
                .map(|at| ns.insert(name.to_owned(), at))
        };
        put(MARKER, marker.map(|at| at - started));
        if self.end != End::Entry {
            put(EXIT, exit.map(|(at, _)| at - started));
        }
        let entered = self.trace.as_ref().and_then(KvmTrace::first_entry);
        put(
            KVM_ENTRY,
            entered.and_then(|at| at.checked_sub(watched.started_mono)),
        );
        if let Some(path) = &launch.timing {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let timing: Value = serde_json::from_str(&text).unwrap_or_default();
            ns.extend(events(&timing));
            self.exits
                .insert(configuration.name.clone(), exits(&timing, self.end));
            // Its own are read at the step itself, and without root.
            let own = statistics(&timing, self.end);
            if !own.is_empty() {
                self.statistics.insert(configuration.name.clone(), own);
            }
        }
        if ns.contains_key(self.end.metric()) {
            return Ok(ns);
        }
        let status = exit.map_or("killed".into(), |(_, status)| status.to_string());
        Err(watched.died(status))
    }
}

/// `{"T4": nanoseconds, …}` from what `--timing` wrote.
fn events(timing: &Value) -> BTreeMap<String, u64> {
    let events = timing["events"].as_array();
    events
        .into_iter()
        .flatten()
        .filter_map(|event| Some((event["id"].as_str()?.to_owned(), event["at"].as_u64()?)))
        .collect()
}

/// The name in what `--timing` wrote of the step that ends a launch. At the first entry nothing has left the
/// guest yet.
fn step(end: End) -> Option<&'static str> {
    match end {
        End::Init => Some("init"),
        End::Ready => Some("ready"),
        End::Entry | End::FirstRun => None,
    }
}

/// What KVM counted up to `end` from what `--timing` wrote, without what is zero.
fn statistics(timing: &Value, end: End) -> Vec<Statistic> {
    let counts = step(end).and_then(|step| timing["statistics"][step].as_object());
    let statistic = |(name, count): (&String, &Value)| {
        let count = count.as_u64().filter(|&count| count > 0)?;
        let name = name.clone();
        Some(Statistic { name, count })
    };
    counts.into_iter().flatten().filter_map(statistic).collect()
}

/// The exits up to `end` from what `--timing` wrote, most frequent first.
fn exits(timing: &Value, end: End) -> Vec<ExitInfo> {
    let Some(step) = step(end) else {
        return Vec::new();
    };
    let registers = timing["exits"][step]["by_register"].as_array();
    let mut exits: Vec<_> = registers
        .into_iter()
        .flatten()
        .filter_map(|exit| {
            let words = [&exit["kind"], &exit["address"], &exit["register"]].map(Value::as_str);
            Some(ExitInfo {
                name: words.into_iter().flatten().collect::<Vec<_>>().join(" "),
                count: exit["count"].as_u64()?,
            })
        })
        .collect();
    exits.sort_by_key(|exit| std::cmp::Reverse(exit.count));
    exits
}

/// A monitor that runs. It does not outlive this value.
struct Watched<'a> {
    configuration: &'a Configuration,
    child: Child,
    errors: &'a Path,
    started: Instant,
    /// The same moment on the clock of the kernel's traces.
    started_mono: Duration,
    deadline: Instant,
    limit: Duration,
    output: Vec<u8>,
}

impl<'a> Watched<'a> {
    fn start(
        configuration: &'a Configuration,
        launch: &Launch,
        errors: &'a Path,
        limit: Duration,
    ) -> Result<Watched<'a>> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File {
                what: "starting",
                path,
                source,
            }
        };
        let stderr = std::fs::File::create(errors).map_err(failed(errors))?;
        let mut command = Command::new(&configuration.program);
        command
            .args(&launch.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        let started = Instant::now();
        let started_mono = monotonic();
        let child = command.spawn().map_err(failed(&configuration.program))?;
        Ok(Watched {
            configuration,
            child,
            errors,
            started,
            started_mono,
            deadline: started + limit,
            limit,
            output: Vec::new(),
        })
    }

    /// When the marker came; `None` when output ended without it.
    fn marker(&mut self) -> Result<Option<Instant>> {
        loop {
            if !self.read(self.deadline)? {
                return Ok(None);
            }
            let now = Instant::now();
            if contains(&self.output, STOPPED_AT_INIT.as_bytes()) {
                return Ok(Some(now));
            }
            let surplus = self.output.len().saturating_sub(KEPT);
            self.output.drain(..surplus);
        }
    }

    /// Waits until the guest has been entered and has the monitor end then, as a person would.
    fn end_at_entry(&mut self, trace: &KvmTrace) -> Result<Option<(Instant, ExitStatus)>> {
        while !trace.has_entry() {
            match self.read(self.deadline.min(Instant::now() + LOOK)) {
                Ok(true) => {}
                // It ended by itself.
                Ok(false) => break,
                Err(Error::Late { .. }) if Instant::now() < self.deadline => {}
                Err(error) => return Err(error),
            }
        }
        let process = Pid::from_raw(self.child.id() as i32);
        kill(process, Signal::SIGTERM).map_err(|error| self.lost(error.into()))?;
        self.end(Instant::now() + TIMEOUT)
    }

    /// When the monitor ended, and how; `None` when it has not by `until`.
    fn end(&mut self, until: Instant) -> Result<Option<(Instant, ExitStatus)>> {
        // Its output ends with it; what it still prints must not block it.
        while Instant::now() < until {
            match self.read(until) {
                Ok(true) => {
                    let surplus = self.output.len().saturating_sub(KEPT);
                    self.output.drain(..surplus);
                }
                Ok(false) => {
                    let status = self.child.wait().map_err(|source| self.lost(source))?;
                    return Ok(Some((Instant::now(), status)));
                }
                Err(Error::Late { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Takes what the monitor has printed; `false` when it has closed its output.
    fn read(&mut self, until: Instant) -> Result<bool> {
        let Some(stdout) = &mut self.child.stdout else {
            return Ok(false);
        };
        let left = until.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match ready {
            Ok(0) => Err(self.late()),
            Ok(_) => {
                let mut chunk = [0; 4096];
                let read = stdout.read(&mut chunk).map_err(|source| Error::File {
                    what: "reading the output of",
                    path: self.configuration.program.clone(),
                    source,
                })?;
                self.output.extend_from_slice(&chunk[..read]);
                Ok(read > 0)
            }
            Err(nix::errno::Errno::EINTR) => Ok(true),
            Err(error) => Err(self.lost(error.into())),
        }
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::File {
            what: "watching",
            path: self.configuration.program.clone(),
            source,
        }
    }

    fn late(&self) -> Error {
        Error::Late {
            configuration: self.configuration.name.clone(),
            seconds: self.limit.as_secs(),
            output: format!("\n{}", self.said()),
        }
    }

    fn died(&self, status: String) -> Error {
        Error::Died {
            configuration: self.configuration.name.clone(),
            status,
            output: format!("\n{}", self.said()),
        }
    }

    /// The end of both of its outputs.
    fn said(&self) -> String {
        let mut said = self.output.clone();
        said.extend(std::fs::read(self.errors).unwrap_or_default());
        let from = said.len().saturating_sub(KEPT);
        String::from_utf8_lossy(&said[from..]).trim().to_owned()
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        // No effect on one that has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// The monotonic clock, which [`Instant`] is as well but does not show.
fn monotonic() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::super::configuration::tests::monitor_script;
    use super::*;

    fn launch(script: &str, end: End, limit: Duration) -> Result<BTreeMap<String, u64>> {
        let directory = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(directory.path()).unwrap();
        Launcher::new(&scratch, end, limit).launch(
            &monitor_script(directory.path(), "shell", script, None),
            Cache::Warm,
        )
    }

    #[test]
    fn a_marker_split_across_reads_is_found() {
        let (head, tail) = STOPPED_AT_INIT.split_at(4);
        let script = format!("printf 'x\\n{head}'; sleep 0.05; printf '{tail}\\n'; sleep 0.05");
        let ns = launch(&script, End::Init, Duration::from_secs(30)).unwrap();
        assert!(ns[MARKER] >= 50_000_000, "{ns:?}");
        assert!(ns[EXIT] >= ns[MARKER] + 40_000_000, "{ns:?}");
    }

    #[test]
    fn a_monitor_that_ends_early_is_quoted() {
        let error = launch(
            "echo to-out; echo to-err >&2; exit 3",
            End::Init,
            Duration::from_secs(30),
        );
        let text = error.unwrap_err().to_string();
        for part in ["shell", "exit status: 3", "to-out", "to-err"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_monitor_that_hangs_is_ended() {
        let begin = Instant::now();
        let error = launch(
            "echo hanging; exec sleep 60",
            End::Init,
            Duration::from_millis(300),
        )
        .unwrap_err();
        assert!(
            matches!(&error, Error::Late { output, .. } if output == "\nhanging"),
            "{error}"
        );
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn exits_up_to_the_end_are_taken_from_the_timing() {
        let exit = |kind: &str, count: u64| serde_json::json!({ "kind": kind, "address": "0x80", "register": "R", "count": count });
        let timing = serde_json::json!({ "exits": {
            "init": { "total": 4, "by_register": [exit("in", 1), exit("out", 3)] },
            "ready": { "total": 9, "by_register": [exit("in", 9)] },
        } });
        let names: Vec<_> = exits(&timing, End::Init)
            .into_iter()
            .map(|e| (e.name, e.count))
            .collect();
        assert_eq!(names, [("out 0x80 R".to_owned(), 3), ("in 0x80 R".to_owned(), 1)]);
        assert_eq!(exits(&timing, End::Ready)[0].count, 9);
        assert_eq!(exits(&Value::Null, End::Init), []);
    }

    #[test]
    fn statistics_up_to_the_end_are_taken_from_the_timing() {
        let timing = serde_json::json!({ "statistics": {
            "init": { "exits": 5438, "nmi_injections": 0, "pf_fixed": 48 },
            "ready": { "exits": 6000 },
        } });
        let found = |end| {
            let found = statistics(&timing, end).into_iter();
            found.map(|s| (s.name, s.count)).collect::<Vec<_>>()
        };
        assert_eq!(
            found(End::Init),
            [("exits".to_owned(), 5438), ("pf_fixed".to_owned(), 48)]
        );
        assert_eq!(found(End::Ready), [("exits".to_owned(), 6000)]);
        assert_eq!(found(End::Entry), []);
        assert_eq!(statistics(&Value::Null, End::Init), []);
    }

    #[test]
    fn events_come_from_the_timing_file() {
        // The timing file is the argument after --timing.
        let script = "while [ \"$1\" != --timing ]; do shift; done\n\
            echo '{\"events\": [{\"id\": \"T4\", \"at\": 12}, {\"id\": \"T10\", \"at\": 99}]}' > \"$2\"";
        let ns = launch(script, End::Ready, Duration::from_secs(30)).unwrap();
        assert_eq!((ns["T4"], ns["T10"]), (12, 99));
        assert!(!ns.contains_key(MARKER));
        // Without the event that ends it, a launch is none.
        assert!(matches!(
            launch("true", End::Ready, Duration::from_secs(30)),
            Err(Error::Died { .. })
        ));
    }
}
