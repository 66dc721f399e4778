//! The first entry into a guest as the host's kernel sees it: the same observation for every monitor. Needs
//! root, tracefs and KVM; without them the metric is left out.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const TRACING: &str = "/sys/kernel/tracing";

/// A trace buffer of our own (Documentation/trace/ftrace.rst, "Instances") that stops at the first entry.
#[derive(Debug)]
pub struct KvmTrace {
    directory: PathBuf,
}

impl KvmTrace {
    /// Makes the buffer; `None` where this host does not let us.
    pub fn open() -> Option<KvmTrace> {
        KvmTrace::make(Path::new(TRACING))
            .inspect_err(|error| tracing::debug!(%error, "entries into the guest are not traced"))
            .ok()
    }

    fn make(tracing: &Path) -> io::Result<KvmTrace> {
        let directory = tracing
            .join("instances")
            .join(format!("kiln-bench-{}", std::process::id()));
        fs::create_dir(&directory)?;
        let trace = KvmTrace { directory };
        // CLOCK_MONOTONIC, which is ours as well.
        trace.write("trace_clock", "mono")?;
        trace.write("events/kvm/kvm_entry/enable", "1")?;
        Ok(trace)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.directory.join(file), text)
    }

    /// Empties the buffer and waits for the next entry.
    pub fn arm(&self) {
        const TRIGGER: &str = "events/kvm/kvm_entry/trigger";
        let armed = self
            .write("tracing_on", "0")
            .and_then(|()| self.write("trace", ""))
            // A used-up trigger still stands in the way of a new one.
            .and_then(|()| self.write(TRIGGER, "!traceoff").or(Ok(())))
            .and_then(|()| self.write(TRIGGER, "traceoff:1"))
            .and_then(|()| self.write("tracing_on", "1"));
        if let Err(error) = armed {
            tracing::debug!(%error, "the trace could not be armed");
        }
    }

    /// Whether there was an entry since [`KvmTrace::arm`]: that stopped the trace.
    pub fn has_entry(&self) -> bool {
        fs::read(self.directory.join("tracing_on")).is_ok_and(|text| text.starts_with(b"0"))
    }

    /// When the first entry since [`KvmTrace::arm`] was, on the monotonic clock.
    pub fn first_entry(&self) -> Option<Duration> {
        first(&fs::read_to_string(self.directory.join("trace")).ok()?)
    }
}

impl Drop for KvmTrace {
    fn drop(&mut self) {
        let _ = self.write("events/kvm/kvm_entry/enable", "0");
        let _ = fs::remove_dir(&self.directory);
    }
}

/// The time in the first line such as `vcpu0-812 [001] d.... 123.456789: kvm_entry: vcpu 0, rip 0x1000`.
fn first(trace: &str) -> Option<Duration> {
    let line = trace.lines().find(|line| line.contains(": kvm_entry:"))?;
    let (before, _) = line.split_once(": kvm_entry:")?;
    let (seconds, micros) = before.split_whitespace().last()?.split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_is_found() {
        let trace = "# tracer: nop\n#\n           vcpu0-812     [001] d....   123.456789: kvm_entry: vcpu 0, rip 0x1000\n\
                     vcpu0-812     [001] d....   124.000000: kvm_entry: vcpu 0, rip 0x1000\n";
        assert_eq!(first(trace), Some(Duration::from_micros(123_456_789)));
        assert_eq!(first("# tracer: nop\n"), None);
        assert_eq!(first("x 12.3: kvm_entry: \n"), None);
    }

    #[test]
    fn without_tracefs_the_metric_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        assert!(KvmTrace::make(directory.path()).is_err());
    }
}
