//! Boot events T0 to T10: when each was reached, from the start of the process to the agent's answer.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Version of the JSON that [`Timeline::to_json`] writes.
const SCHEMA: u32 = 1;

/// A step of the launch. The number is also the byte that the guest writes to the boot timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Event {
    /// T0: the process was started.
    ProcessStart = 0,
    /// T1: `main` was entered.
    Main = 1,
    /// T2: the accelerator has made the machine.
    VmCreated = 2,
    /// T3: kernel and initramfs are in RAM, tables are written.
    MemoryReady = 3,
    /// T4: the first CPU is about to run.
    FirstRun = 4,
    /// T5: the guest left its processor for the first time.
    FirstExit = 5,
    /// T6: the kernel entered `start_kernel`.
    KernelStart = 6,
    /// T7: the kernel has run its initcalls and started the initramfs.
    KernelReady = 7,
    /// T8: the root file system is mounted.
    RootMounted = 8,
    /// T9: PID 1 of the image runs.
    Init = 9,
    /// T10: the agent or a service answers.
    Ready = 10,
}

impl Event {
    /// All of them, in the order in which they happen.
    pub const ALL: [Event; 11] = [
        Event::ProcessStart,
        Event::Main,
        Event::VmCreated,
        Event::MemoryReady,
        Event::FirstRun,
        Event::FirstExit,
        Event::KernelStart,
        Event::KernelReady,
        Event::RootMounted,
        Event::Init,
        Event::Ready,
    ];

    /// The event that the guest means by `byte`. Events before the guest runs are not its to report.
    pub(crate) fn from_guest(byte: u8) -> Option<Self> {
        Event::ALL
            .get(usize::from(byte))
            .copied()
            .filter(|event| *event as u8 >= Event::FirstExit as u8)
    }

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Event::ProcessStart => "process_start",
            Event::Main => "main",
            Event::VmCreated => "vm_created",
            Event::MemoryReady => "memory_ready",
            Event::FirstRun => "first_run",
            Event::FirstExit => "first_exit",
            Event::KernelStart => "kernel_start",
            Event::KernelReady => "kernel_ready",
            Event::RootMounted => "root_mounted",
            Event::Init => "init",
            Event::Ready => "ready",
        }
    }
}

/// When each event happened first. Marks come from any thread; a mark costs one clock reading and one store.
#[derive(Debug)]
pub struct Timeline {
    main: Instant,
    /// Time from process start to `main`.
    before_main: Duration,
    /// Nanoseconds from process start, plus one; 0 means "not yet".
    at: [AtomicU64; Event::ALL.len()],
    /// Guest instructions up to each event, plus one; 0 means that they were not counted.
    instructions: [AtomicU64; Event::ALL.len()],
    /// Guest instructions up to the machine's end, plus one.
    all_instructions: AtomicU64,
    memory: OnceLock<MemoryUse>,
}

/// What a launch did to memory before the guest ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes of kernel and initramfs, or of saved memory, that were mapped into guest RAM.
    pub mapped: u64,
    /// Bytes of them that were copied there.
    pub copied: u64,
    /// Pages that the process has touched, its own and the guest's: its minor page faults.
    pub faults: u64,
}

impl MemoryUse {
    /// With the faults of this process so far.
    pub fn now(mapped: u64, copied: u64) -> MemoryUse {
        MemoryUse {
            mapped,
            copied,
            faults: minor_faults(),
        }
    }
}

impl Timeline {
    /// Call first in `main`. T0 is taken as this moment less the CPU time that the process has used so far:
    /// what the kernel and the loader spent on it, without waiting for a disk.
    pub fn start() -> Self {
        let main = Instant::now();
        let timeline = Timeline {
            main,
            before_main: cpu_time(),
            at: Default::default(),
            instructions: Default::default(),
            all_instructions: AtomicU64::new(0),
            memory: OnceLock::new(),
        };
        timeline.at[Event::ProcessStart as usize].store(1, Relaxed);
        timeline.record(Event::Main, main);
        timeline
    }

    /// Notes that `event` has happened. Only the first time counts.
    pub fn mark(&self, event: Event) {
        if self.at[event as usize].load(Relaxed) == 0 {
            self.record(event, Instant::now());
        }
    }

    /// Notes that `event` has happened at `moment`. Only the first time counts; a moment before `main` counts
    /// as `main`.
    pub(crate) fn mark_at(&self, event: Event, moment: Instant) {
        self.record(event, moment);
    }

    fn record(&self, event: Event, now: Instant) {
        let since_start = now.saturating_duration_since(self.main) + self.before_main;
        let nanos = u64::try_from(since_start.as_nanos()).unwrap_or(u64::MAX - 1);
        let _ = self.at[event as usize].compare_exchange(0, nanos + 1, Relaxed, Relaxed);
    }

    /// Notes how many instructions the guest had retired when `event` happened. Only the first time counts.
    pub fn count(&self, event: Event, instructions: u64) {
        let counter = &self.instructions[event as usize];
        let _ = counter.compare_exchange(0, instructions.saturating_add(1), Relaxed, Relaxed);
    }

    /// Notes how many instructions the guest had retired when its machine ended, or ended last.
    pub(crate) fn count_all(&self, instructions: u64) {
        self.all_instructions
            .store(instructions.saturating_add(1), Relaxed);
    }

    /// Notes what the launch did to memory. Only the first time counts.
    pub fn memory(&self, used: MemoryUse) {
        self.memory.get_or_init(|| used);
    }

    /// Guest instructions up to `event`; `None` when it has not happened or they were not counted.
    pub fn instructions(&self, event: Event) -> Option<u64> {
        self.instructions[event as usize].load(Relaxed).checked_sub(1)
    }

    /// Guest instructions up to the machine's end.
    pub fn all_instructions(&self) -> Option<u64> {
        self.all_instructions.load(Relaxed).checked_sub(1)
    }

    /// Time from process start to `event`; `None` when it has not happened.
    pub fn at(&self, event: Event) -> Option<Duration> {
        let stored = self.at[event as usize].load(Relaxed);
        Some(Duration::from_nanos(stored.checked_sub(1)?))
    }

    /// `{"schema": 1, "unit": "ns", "events": [{"id": "T0", "name": "process_start", "at": 0}, ...]}` with
    /// the events that have happened, each at nanoseconds from T0. Where the accelerator counts them, each
    /// event of the guest also has `"instructions"`, what the guest had retired by then, and the whole has
    /// those up to its end. A guest that was saved has retired some before its first run here. `"memory"` is what the launch did to memory, if that was asked for.
    pub fn to_json(&self) -> Value {
        let events: Vec<Value> = Event::ALL
            .into_iter()
            .filter_map(|event| {
                let at = self.at(event)?;
                let mut entry = json!({
                    "id": format!("T{}", event as u8), "name": event.name(), "at": at.as_nanos() as u64
                });
                if let Some(instructions) = self.instructions(event) {
                    entry["instructions"] = instructions.into();
                }
                Some(entry)
            })
            .collect();
        let mut whole = json!({ "schema": SCHEMA, "unit": "ns", "events": events });
        if let Some(instructions) = self.all_instructions() {
            whole["instructions"] = instructions.into();
        }
        if let Some(&MemoryUse {
            mapped,
            copied,
            faults,
        }) = self.memory.get()
        {
            whole["memory"] = json!({ "mapped": mapped, "copied": copied, "faults": faults });
        }
        whole
    }
}

#[allow(unsafe_code)]
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Pages that this process has touched for the first time, or again after they were taken away, without a
/// disk's help.
#[allow(unsafe_code)]
fn minor_faults() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a valid place for the answer.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: it was zeroed and perhaps filled; every bit pattern is a valid rusage.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_minflt).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Bytes;

    #[test]
    fn only_the_first_mark_counts_and_time_goes_forward() {
        let timeline = Timeline::start();
        timeline.mark(Event::VmCreated);
        let first = timeline.at(Event::VmCreated).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        timeline.mark(Event::VmCreated);
        timeline.mark(Event::FirstRun);
        assert_eq!(timeline.at(Event::VmCreated), Some(first));
        assert_eq!(timeline.at(Event::ProcessStart), Some(Duration::ZERO));
        assert!(timeline.at(Event::Main).unwrap() <= first);
        assert!(timeline.at(Event::FirstRun).unwrap() >= first + Duration::from_millis(2));
        assert_eq!(timeline.at(Event::Ready), None);
    }

    #[test]
    fn json_lists_what_happened() {
        let timeline = Timeline::start();
        timeline.mark(Event::Init);
        let json = timeline.to_json();
        let ids: Vec<_> = json["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["id"].clone())
            .collect();
        assert_eq!(ids, ["T0", "T1", "T9"]);
        assert_eq!(json["events"][0]["at"], 0);
    }

    #[test]
    fn instructions_are_there_where_they_are_counted() {
        let timeline = Timeline::start();
        timeline.mark(Event::Init);
        assert_eq!(timeline.instructions(Event::Init), None);
        timeline.count(Event::Init, 0);
        timeline.count(Event::Init, 7);
        timeline.count_all(9);
        let json = timeline.to_json();
        assert_eq!(json["events"][2]["instructions"], 0);
        assert_eq!(json["events"][1].get("instructions"), None);
        assert_eq!(json["instructions"], 9);
    }

    #[test]
    fn pages_are_counted_when_they_are_touched() {
        let before = MemoryUse::now(0, 0);
        let fresh = crate::memory::allocate(&[(0, 2 << 20)]).unwrap();
        for page in 0..512u64 {
            fresh
                .write_obj(1u8, crate::memory::GuestAddress(page * 4096))
                .unwrap();
        }
        let after = MemoryUse::now(4096, 7);
        // With huge pages one fault serves many.
        assert!(after.faults > before.faults, "{before:?} {after:?}");
        let timeline = Timeline::start();
        assert_eq!(timeline.to_json().get("memory"), None);
        timeline.memory(after);
        timeline.memory(before);
        let json = timeline.to_json();
        assert_eq!(
            (&json["memory"]["mapped"], &json["memory"]["copied"]),
            (&4096.into(), &7.into())
        );
        assert_eq!(json["memory"]["faults"], after.faults);
    }

    #[test]
    fn the_guest_cannot_report_what_is_not_its_own() {
        assert_eq!(Event::from_guest(9), Some(Event::Init));
        for byte in [0, 4, 11, 255] {
            assert_eq!(Event::from_guest(byte), None);
        }
        for (n, event) in Event::ALL.into_iter().enumerate() {
            assert_eq!(event as usize, n);
        }
    }
}
