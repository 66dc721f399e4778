//! Progress of long commands: bars on a terminal, nothing in a pipe, events for a program.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// What a step counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KiB, MiB, …
    Bytes,
    /// Things: packages, files.
    Items,
}

/// Where a command reports its steps. Shared by threads.
pub trait Progress: Send + Sync {
    /// A step begins. `total` in `unit`, or nothing when unknown (a spinner). The step ends with
    /// [`Step::finish`]; dropping it without that means that it failed.
    fn start(&self, what: &str, total: Option<u64>, unit: Unit) -> Box<dyn Step>;
    /// Something that a person should read and that is not an error.
    fn note(&self, text: &str);
    /// Something that is probably not as a person wants it, with what to try. It does not stop the command.
    fn warn(&self, text: &str);
}

/// A running step.
pub trait Step: Send + Sync {
    /// This many more units are done.
    fn advance(&self, units: u64);
    /// The step is complete; `summary` stays on the screen, such as `78 packages`.
    fn finish(&self, summary: &str);
}

/// Bars when standard error is a terminal, else warnings only, and nothing with `quiet`; `json` wins over
/// all.
pub fn choose(json: bool, quiet: bool) -> Box<dyn Progress> {
    if json {
        Box::new(Json::new(Box::new(std::io::stderr())))
    } else if quiet {
        Box::new(Quiet)
    } else if !std::io::stderr().is_terminal() {
        Box::new(Warnings)
    } else {
        Box::new(Bars::default())
    }
}

/// Says nothing.
#[derive(Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn start(&self, _what: &str, _total: Option<u64>, _unit: Unit) -> Box<dyn Step> {
        Box::new(Quiet)
    }

    fn note(&self, _text: &str) {}

    fn warn(&self, _text: &str) {}
}

/// Says what is to be warned of, a line or more each.
#[derive(Debug, Default)]
struct Warnings;

impl Progress for Warnings {
    fn start(&self, _what: &str, _total: Option<u64>, _unit: Unit) -> Box<dyn Step> {
        Box::new(Quiet)
    }

    fn note(&self, _text: &str) {}

    fn warn(&self, text: &str) {
        // Standard error that is closed is no reason to fail a build.
        let _ = writeln!(std::io::stderr(), "warning: {text}");
    }
}

impl Step for Quiet {
    fn advance(&self, _units: u64) {}
    fn finish(&self, _summary: &str) {}
}

/// Bars on standard error.
#[derive(Debug, Default)]
struct Bars {
    screen: MultiProgress,
}

impl Progress for Bars {
    fn start(&self, what: &str, total: Option<u64>, unit: Unit) -> Box<dyn Step> {
        let template = match (total, unit) {
            (Some(_), Unit::Bytes) => {
                "  {msg:<24} {bar:24} {bytes:>10} of {total_bytes}, {bytes_per_sec}, {eta}"
            }
            (Some(_), Unit::Items) => "  {msg:<24} {bar:24} {pos:>10} of {len}",
            (None, Unit::Bytes) => "{spinner} {msg:<24} {bytes}",
            (None, Unit::Items) => "{spinner} {msg:<24} {elapsed}",
        };
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        // The templates are constants; a wrong one shows the default bar and is caught by the test below.
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self
            .screen
            .add(bar.with_style(style).with_message(what.to_owned()));
        bar.enable_steady_tick(Duration::from_millis(100));
        Box::new(Bar {
            bar,
            screen: self.screen.clone(),
            what: what.to_owned(),
            since: Instant::now(),
        })
    }

    fn note(&self, text: &str) {
        // A screen that cannot be written to is no reason to fail a build.
        let _ = self.screen.println(format!("  {text}"));
    }

    fn warn(&self, text: &str) {
        let _ = self.screen.println(format!("warning: {text}"));
    }
}

struct Bar {
    bar: ProgressBar,
    screen: MultiProgress,
    what: String,
    since: Instant,
}

impl Step for Bar {
    fn advance(&self, units: u64) {
        self.bar.inc(units);
    }

    fn finish(&self, summary: &str) {
        self.bar.finish_and_clear();
        let seconds = self.since.elapsed().as_secs_f64();
        let _ = self
            .screen
            .println(format!("  {:<24} {summary:<40} {seconds:>7.2} s", self.what));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One JSON object a line: `{"event":"start","step":1,"what":…,"total":…}`, then `progress` (at most ten a
/// second), `finish`, `note` or `warning`.
struct Json {
    out: std::sync::Arc<Mutex<Box<dyn Write + Send>>>,
    next: AtomicU64,
}

impl Json {
    /// Events to this stream.
    pub fn new(out: Box<dyn Write + Send>) -> Self {
        Self {
            out: std::sync::Arc::new(Mutex::new(out)),
            next: AtomicU64::new(1),
        }
    }
}

type Stream = std::sync::Arc<Mutex<Box<dyn Write + Send>>>;

fn emit(out: &Stream, event: &serde_json::Value) {
    if let Ok(mut out) = out.lock() {
        // A reader that went away is no reason to fail a build.
        let _ = writeln!(out, "{event}");
    }
}

impl Progress for Json {
    fn start(&self, what: &str, total: Option<u64>, unit: Unit) -> Box<dyn Step> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let unit = if unit == Unit::Bytes { "bytes" } else { "items" };
        emit(
            &self.out,
            &serde_json::json!({"event": "start", "step": id, "what": what, "total": total, "unit": unit}),
        );
        Box::new(JsonStep {
            out: self.out.clone(),
            id,
            since: Instant::now(),
            done: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        })
    }

    fn note(&self, text: &str) {
        emit(&self.out, &serde_json::json!({"event": "note", "text": text}));
    }

    fn warn(&self, text: &str) {
        emit(&self.out, &serde_json::json!({"event": "warning", "text": text}));
    }
}

struct JsonStep {
    out: Stream,
    id: u64,
    since: Instant,
    done: AtomicU64,
    /// Tenths of a second since `since` at the last event.
    reported: AtomicU64,
}

impl Step for JsonStep {
    fn advance(&self, units: u64) {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        let now = self.since.elapsed().as_millis() as u64 / 100;
        if self.reported.swap(now, Ordering::Relaxed) != now {
            emit(
                &self.out,
                &serde_json::json!({"event": "progress", "step": self.id, "done": done}),
            );
        }
    }

    fn finish(&self, summary: &str) {
        let seconds = self.since.elapsed().as_secs_f64();
        emit(
            &self.out,
            &serde_json::json!({"event": "finish", "step": self.id, "summary": summary, "seconds": seconds}),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(std::sync::Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_program_reads_one_event_a_line() {
        let out = Shared::default();
        let progress = Json::new(Box::new(out.clone()));
        let step = progress.start("fetch", Some(10), Unit::Bytes);
        step.advance(10);
        step.finish("done");
        progress.note("hello");
        progress.warn("beware");
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let events: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(events[0]["event"], "start");
        assert_eq!(events[0]["total"], 10);
        assert_eq!(events[1]["event"], "finish");
        assert_eq!(events[1]["summary"], "done");
        assert_eq!(events[2]["text"], "hello");
        assert_eq!(
            (&events[3]["event"], &events[3]["text"]),
            (&"warning".into(), &"beware".into())
        );
    }

    #[test]
    fn every_template_is_valid() {
        let bars = Bars::default();
        for total in [Some(1), None] {
            for unit in [Unit::Bytes, Unit::Items] {
                let step = bars.start("x", total, unit);
                step.advance(1);
                step.finish("y");
            }
        }
    }
}
