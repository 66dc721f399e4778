//! Tests of the run loop with processors that are scripts.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::accel::{Error, Kick, VcpuState, soft};
use crate::arch::Boot;
use crate::arch::x86_64::boot_state_at;
use crate::bus::BusDevice;
use crate::memory::{Bytes, GuestAddress, allocate};

/// A processor that makes the exits of its script and then runs until it is kicked.
struct Script {
    exits: VecDeque<(u16, u8)>,
    end: Option<Result<Stop, Error>>,
    kicks: Receiver<()>,
    kicker: Arc<Kicker>,
}

struct Kicker(Mutex<Sender<()>>);

impl Kick for Kicker {
    fn kick(&self) {
        // A kick of a processor that has ended has no effect.
        let _ = self.0.lock().unwrap().send(());
    }
}

impl Script {
    fn new(exits: &[(u16, u8)], end: Option<Result<Stop, Error>>) -> Self {
        let (sender, kicks) = channel();
        Script {
            exits: exits.iter().copied().collect(),
            end,
            kicks,
            kicker: Arc::new(Kicker(Mutex::new(sender))),
        }
    }
}

impl Vcpu for Script {
    fn boot(&mut self, _: &Boot) -> Result<(), Error> {
        Ok(())
    }
    fn run(&mut self, handler: &mut dyn ExitHandler) -> Result<Stop, Error> {
        while let Some((port, value)) = self.exits.pop_front() {
            match handler.exit(Exit::PortOut { port, data: &[value] }) {
                Action::None => {}
                action => return Ok(Stop::Action(action)),
            }
        }
        match self.end.take() {
            Some(end) => end,
            None => {
                self.kicks.recv().unwrap();
                Ok(Stop::Kicked)
            }
        }
    }
    fn stood_still(&mut self) {}
    fn save(&self) -> Result<VcpuState, Error> {
        Err(Error::Unsaved("a script"))
    }
    fn restore(&mut self, _: &VcpuState) -> Result<(), Error> {
        Err(Error::Unsaved("a script"))
    }
    fn kicker(&self) -> Arc<dyn Kick> {
        Arc::clone(&self.kicker) as _
    }
}

/// Resets on a 1, shuts down on a 2.
struct Power;

impl BusDevice for Power {
    fn read(&mut self, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: u64, data: &[u8]) -> Action {
        match data {
            [1] => Action::Reset,
            [2] => Action::Shutdown,
            _ => Action::None,
        }
    }
}

struct Running {
    control: Arc<Control>,
    threads: Vec<JoinHandle<()>>,
    tables: Vec<Arc<ExitTable>>,
}

fn machine(scripts: Vec<Script>) -> Running {
    let control = Arc::new(Control::new(scripts.iter().map(|s| s.kicker()).collect()));
    let mut buses = Buses::default();
    buses.ports.insert(0x600, 4, Arc::new(Mutex::new(Power))).unwrap();
    let buses = Arc::new(buses);
    let timeline = Arc::new(Timeline::start());
    let tables: Vec<_> = scripts.iter().map(|_| Arc::new(ExitTable::default())).collect();
    let threads = scripts
        .into_iter()
        .zip(&tables)
        .enumerate()
        .map(|(n, (script, table))| {
            start(
                n,
                Box::new(script),
                Arc::clone(&control),
                Arc::clone(&buses),
                Arc::clone(table),
                Arc::clone(&timeline),
            )
            .unwrap()
        })
        .collect();
    Running {
        control,
        threads,
        tables,
    }
}

impl Running {
    fn end(self) -> Result<End, Error> {
        let end = self.control.wait();
        for thread in self.threads {
            thread.join().unwrap();
        }
        end
    }
}

#[test]
fn a_power_off_by_one_processor_ends_the_others() {
    let running = machine(vec![
        Script::new(&[], None),
        Script::new(&[(0x80, 7), (0x600, 2)], None),
        Script::new(&[], None),
    ]);
    let tables = running.tables.clone();
    assert_eq!(running.end().unwrap(), End::PowerOff);
    let totals = totals(tables.iter().map(Arc::as_ref));
    assert_eq!(totals.iter().map(|exit| exit.count).sum::<u64>(), 2);
}

#[test]
fn reset_triple_fault_and_error_are_distinguished() {
    for (script, end) in [
        (Script::new(&[(0x600, 1)], None), End::Reset),
        (Script::new(&[], Some(Ok(Stop::TripleFault))), End::TripleFault),
    ] {
        assert_eq!(machine(vec![script]).end().unwrap(), end);
    }
    let broken = Script::new(&[], Some(Err(Error::ForeignBoot)));
    let error = machine(vec![broken, Script::new(&[], None)]).end().unwrap_err();
    assert!(matches!(error, Error::ForeignBoot), "{error}");
}

#[test]
fn a_paused_machine_goes_on_or_ends() {
    let running = machine(vec![Script::new(&[], None), Script::new(&[], None)]);
    assert!(running.control.pause(Hold::Request));
    assert!(!running.control.pause(Hold::Request), "paused already");
    running.control.resume(Hold::Request);
    assert!(running.control.pause(Hold::Request));
    running.control.end(Ok(End::Killed));
    running.control.end(Ok(End::PowerOff));
    assert_eq!(running.end().unwrap(), End::Killed, "the first end counts");
}

#[test]
fn processors_run_only_when_no_reason_holds_them() {
    // The processor is held before it has begun: it switches off once it runs.
    let control = Arc::new(Control::new(Vec::new()));
    control.hold(Hold::NoSpace);
    assert!(control.pause(Hold::Request), "the reasons are independent");
    let thread = {
        let control = Arc::clone(&control);
        std::thread::spawn(move || control.may_run(0))
    };
    control.resume(Hold::Request);
    assert!(
        control.pause(Hold::Request),
        "nothing runs: a pause returns at once"
    );
    control.resume(Hold::NoSpace);
    assert!(!thread.is_finished());
    control.resume(Hold::Request);
    // It has waited, unless it was slow to begin.
    assert_ne!(thread.join().unwrap(), Next::End);
    // Held again, and ended: the thread has to end.
    control.has_stopped();
    control.hold(Hold::NoSpace);
    let thread = {
        let control = Arc::clone(&control);
        std::thread::spawn(move || control.may_run(0))
    };
    control.end(Ok(End::Killed));
    assert_eq!(thread.join().unwrap(), Next::End);
}

#[test]
fn a_processor_gives_back_memory_once_for_each_request() {
    let control = Control::new(vec![Script::new(&[], None).kicker()]);
    control.give_back();
    assert_eq!(control.may_run(0), Next::GiveBack);
    assert_eq!(control.may_run(0), Next::Run);
    control.has_stopped();
    control.hold(Hold::Request);
    control.give_back();
    assert_eq!(control.may_run(0), Next::GiveBack, "held or not");
    control.give_back();
    control.end(Ok(End::Killed));
    assert_eq!(control.may_run(0), Next::End);
}

#[test]
fn a_processor_in_software_stands_still_and_goes_on() {
    const CODE: u64 = 0x1_0000;
    const COUNT: u64 = 0x1_2000;
    // again: inc qword ptr [COUNT]; jmp again
    const COUNTS: [u8; 10] = [0x48, 0xff, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00, 0xeb, 0xf6];
    let memory = allocate(&[(0, 2 << 20)]).unwrap();
    let boot = boot_state_at(&memory, CODE).unwrap();
    memory.write_slice(&COUNTS, GuestAddress(CODE)).unwrap();
    let count = || memory.read_obj::<u64>(GuestAddress(COUNT)).unwrap();
    let mut created = soft::create(soft::Options::default(), &memory, 1).unwrap();
    let mut vcpu = created.vcpus.remove(0);
    vcpu.boot(&Boot::X86_64(boot)).unwrap();
    let control = Arc::new(Control::new(vec![vcpu.kicker()]));
    let thread = start(
        0,
        vcpu,
        Arc::clone(&control),
        Arc::default(),
        Arc::default(),
        Arc::new(Timeline::start()),
    )
    .unwrap();
    let passes = |seen: u64| {
        while count() == seen {
            std::thread::yield_now();
        }
    };
    passes(0);
    for _ in 0..3 {
        assert!(control.pause(Hold::Request));
        let seen = count();
        (0..100).for_each(|_| std::thread::yield_now());
        assert_eq!(count(), seen, "it runs while it is paused");
        control.resume(Hold::Request);
        passes(seen);
    }
    // What it has decoded is gone in between.
    for _ in 0..100 {
        control.give_back();
        passes(count());
    }
    assert!(control.pause(Hold::Request));
    control.end(Ok(End::Killed));
    assert_eq!(control.wait().unwrap(), End::Killed);
    thread.join().unwrap();
}
