//! Measurements of a boot, as a table and as JSON: when each step was reached, and the exits up to it.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Error, Result};
use machine::timeline::{Event, Timeline};
use machine::{Handle, NamedExit};

/// The steps for which exits are shown: the kernel has started the initramfs, the image's own PID 1, and
/// ready.
const STEPS: [Event; 3] = [Event::KernelReady, Event::Init, Event::Ready];
/// Characters of the longest bar.
const BAR: usize = 40;

/// The first run of an instance, measured.
pub struct Measured {
    timeline: Arc<Timeline>,
    /// Missing until a machine was built.
    machine: Option<Handle>,
}

impl Measured {
    /// Nothing but what `timeline` knows so far.
    pub fn new(timeline: Arc<Timeline>) -> Measured {
        Measured {
            timeline,
            machine: None,
        }
    }

    /// The machine of a run; only the first one counts.
    pub fn machine(&mut self, handle: Handle) {
        self.machine.get_or_insert(handle);
    }

    /// Writes the timeline and the exits to `path` as JSON.
    pub fn write_timing(&self, path: &Path) -> Result<()> {
        let text = format!("{:#}\n", self.to_json());
        std::fs::write(path, text).map_err(Error::file("writing", path))
    }

    /// The timeline as a table.
    pub fn timing(&self) -> String {
        let at = |event| Some((self.timeline.at(event)?, event));
        timing_table(Event::ALL.into_iter().filter_map(at).collect())
    }

    /// The exits as a table, and what the accelerator has counted.
    pub fn exits(&self) -> String {
        exit_table(&self.count_exits()) + &statistics_table(&self.statistics())
    }

    /// As [`Timeline::to_json`], and for each step that was reached, by its name: in `"exits"` the exits up
    /// to it, most frequent first, as `{"total": N, "by_register": [{"kind", "address", "register", "count"},
    /// ...]}`; in `"statistics"` what the accelerator has counted up to it, by its own names.
    fn to_json(&self) -> Value {
        let mut json = self.timeline.to_json();
        let exits = self.count_exits().into_iter().map(|(event, exits)| {
            let list: Vec<_> = exits.iter().map(exit_json).collect();
            let entry = json!({ "total": total(&exits), "by_register": list });
            (event.name().to_owned(), entry)
        });
        json["exits"] = Value::Object(exits.collect());
        let statistics = self.statistics().into_iter().map(|(event, counts)| {
            let counts = counts.into_iter().map(|(name, count)| (name, count.into()));
            (event.name().to_owned(), Value::Object(counts.collect()))
        });
        json["statistics"] = Value::Object(statistics.collect());
        json
    }

    fn statistics(&self) -> Vec<(Event, Vec<(String, u64)>)> {
        let Some(machine) = &self.machine else {
            return Vec::new();
        };
        let until = |event| Some((event, machine.statistics_until(event)?));
        STEPS.into_iter().filter_map(until).collect()
    }

    fn count_exits(&self) -> Vec<(Event, Vec<NamedExit>)> {
        let Some(machine) = &self.machine else {
            return Vec::new();
        };
        let until = |event| Some((event, machine.exits_until(event)?));
        STEPS.into_iter().filter_map(until).collect()
    }
}

/// One line for each statistic that is not zero at the last step, one column for each step; nothing where
/// nothing was counted.
fn statistics_table(steps: &[(Event, Vec<(String, u64)>)]) -> String {
    let Some((_, all)) = steps.last().filter(|(_, all)| !all.is_empty()) else {
        return String::new();
    };
    let mut text = format!("\n{:<44}", "counted by KVM");
    for (event, _) in steps {
        let _ = write!(text, "{:>14}", title(*event));
    }
    text.push('\n');
    for (name, _) in all.iter().filter(|(_, count)| *count != 0) {
        let _ = write!(text, "{name:<44}");
        for (_, counts) in steps {
            let count = counts.iter().find(|(other, _)| other == name);
            let _ = write!(text, "{:>14}", count.map_or(0, |(_, count)| *count));
        }
        text.push('\n');
    }
    text
}

fn title(event: Event) -> &'static str {
    match event {
        Event::KernelReady => "to initramfs",
        Event::Init => "to PID 1",
        _ => "to ready",
    }
}

fn exit_json(exit: &NamedExit) -> Value {
    json!({
        "kind": exit.kind.name(),
        "address": format!("{:#x}", exit.addr),
        "register": exit.name,
        "count": exit.count,
    })
}

fn total(exits: &[NamedExit]) -> u64 {
    exits.iter().map(|exit| exit.count).sum()
}

/// One line for each register, one column for each step.
fn exit_table(steps: &[(Event, Vec<NamedExit>)]) -> String {
    let Some((_, all)) = steps.last() else {
        return "no exits were counted: the guest reached none of the steps\n".to_owned();
    };
    let mut text = format!("{:<44}", "exits to user space");
    for (event, _) in steps {
        let _ = write!(text, "{:>14}", title(*event));
    }
    text.push('\n');
    for exit in all {
        let _ = write!(
            text,
            "{:<44}",
            format!("{:<6} {:#x} {}", exit.kind.name(), exit.addr, exit.name)
        );
        for (_, exits) in steps {
            let same = |other: &&NamedExit| (other.kind, other.addr) == (exit.kind, exit.addr);
            let count = exits.iter().find(same).map_or(0, |exit| exit.count);
            let _ = write!(text, "{count:>14}");
        }
        text.push('\n');
    }
    let _ = write!(text, "{:<44}", "total");
    for (_, exits) in steps {
        let _ = write!(text, "{:>14}", total(exits));
    }
    text.push('\n');
    text
}

/// One line for each event that happened, with a bar for the phase that it ends.
fn timing_table(mut reached: Vec<(Duration, Event)>) -> String {
    reached.sort_by_key(|(at, event)| (*at, *event as u8));
    let end = reached.last().map_or(Duration::ZERO, |(at, _)| *at);
    let mut text = format!("{:<18}{:>12}{:>12}\n", "event", "at ms", "phase ms");
    let mut before = Duration::ZERO;
    for (at, event) in reached {
        let phase = at - before;
        let share = phase.as_secs_f64() / end.as_secs_f64().max(f64::MIN_POSITIVE);
        let bar = "█".repeat((share * BAR as f64).round() as usize);
        let id = format!("T{} {}", event as u8, event.name());
        let _ = write!(text, "{id:<18}{:>12.3}{:>12.3} {bar}", ms(at), ms(phase));
        text.truncate(text.trim_end().len());
        text.push('\n');
        before = at;
    }
    text
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::vcpu::Kind;

    fn exit(addr: u64, name: &str, count: u64) -> NamedExit {
        NamedExit {
            kind: Kind::MmioRead,
            addr,
            name: name.into(),
            count,
        }
    }

    #[test]
    fn exits_have_a_line_for_each_register_and_a_column_for_each_step() {
        let early = vec![exit(0xc000_1070, "virtio vda Status", 5)];
        let late = vec![
            exit(0xc000_1070, "virtio vda Status", 6),
            exit(0xc000_1060, "virtio vda InterruptStatus", 2),
        ];
        let table = exit_table(&[(Event::Init, early), (Event::Ready, late)]);
        let words: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words[1],
            ["read", "0xc0001070", "virtio", "vda", "Status", "5", "6"]
        );
        assert_eq!(
            words[2],
            ["read", "0xc0001060", "virtio", "vda", "InterruptStatus", "0", "2"]
        );
        assert_eq!(words[3], ["total", "5", "8"]);
        assert!(exit_table(&[]).contains("none of the steps"));
    }

    #[test]
    fn statistics_that_are_zero_are_left_out() {
        let counts = |exits, halts| vec![("exits".to_owned(), exits), ("halt_exits".to_owned(), halts)];
        let table = statistics_table(&[(Event::KernelReady, counts(7, 0)), (Event::Init, counts(5438, 0))]);
        let words: Vec<&str> = table.split_whitespace().skip(8).collect();
        assert_eq!(words, ["exits", "7", "5438"], "{table}");
        assert_eq!(statistics_table(&[]), "");
        assert_eq!(statistics_table(&[(Event::Init, Vec::new())]), "");
    }

    #[test]
    fn each_phase_has_a_bar_by_its_length() {
        let at = [
            (0, Event::ProcessStart),
            (70, Event::FirstExit),
            (60, Event::KernelStart),
            (100, Event::Ready),
        ];
        let table = timing_table(at.map(|(ms, event)| (Duration::from_millis(ms), event)).into());
        let bars: Vec<usize> = table.lines().map(|line| line.matches('█').count()).collect();
        assert_eq!(bars, [0, 0, 24, 4, 12], "{table}");
        assert!(
            table.contains("T5 first_exit           70.000      10.000 ████\n"),
            "{table}"
        );
    }

    #[test]
    fn the_json_has_the_events_and_no_exits_without_a_machine() {
        let json = Measured::new(Arc::new(Timeline::start())).to_json();
        assert_eq!(json["events"][1]["id"], "T1");
        assert_eq!(json["exits"], json!({}));
    }
}
