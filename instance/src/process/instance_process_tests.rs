//! The instance process with scripted guests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::error::AgentError;
use crate::process::guest::SpaceHook;
use crate::store::Store;
use crate::store::home::Home;
use crate::store::instances::tests::draft;
use crate::store::pause::NoSpace;
use crate::store::saved::{Purpose, SavedFiles};
use crate::store::tags::TagChange;

/// A guest that ends as the test says.
struct Scripted {
    ends: Receiver<Outcome>,
    killer: Sender<Outcome>,
    switch: Arc<Switch>,
}

/// Pauses nothing, and says what it was asked for.
#[derive(Default)]
struct Switch {
    asked: Mutex<Vec<&'static str>>,
    hook: Mutex<Option<SpaceHook>>,
    /// The next attempt to save fails.
    broken: Mutex<bool>,
    /// The tags that the metadata service was last given.
    tags: Mutex<Option<BTreeMap<String, String>>>,
    /// What an attempt to write again reports.
    outcome: Mutex<Option<NoSpace>>,
}

impl Switch {
    fn report(&self, report: Option<NoSpace>) {
        self.hook.lock().unwrap().as_ref().unwrap()(report);
    }
}

impl GuestControl for Switch {
    fn pause(&self) -> bool {
        self.asked.lock().unwrap().push("pause");
        true
    }
    fn resume(&self) {
        self.asked.lock().unwrap().push("resume");
    }
    fn save(&self, memory: &File) -> Result<Vec<u8>> {
        self.asked.lock().unwrap().push("save");
        if *self.broken.lock().unwrap() {
            return Err(Error::HasEnded("the script".into()));
        }
        let mut memory = memory;
        memory.write_all(b"memory").unwrap();
        Ok(b"state".to_vec())
    }
    fn set_tags(&self, tags: BTreeMap<String, String>) {
        *self.tags.lock().unwrap() = Some(tags);
    }
    fn retry(&self) {
        self.asked.lock().unwrap().push("retry");
        self.report(self.outcome.lock().unwrap().clone());
    }
}

impl Guest for Scripted {
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let killer = self.killer.clone();
        Arc::new(move || {
            let _ = killer.send(Outcome::Killed);
        })
    }
    fn control(&self) -> Arc<dyn GuestControl> {
        Arc::clone(&self.switch) as _
    }
    fn report_space(&mut self, hook: SpaceHook) {
        *self.switch.hook.lock().unwrap() = Some(hook);
    }
    fn run(self: Box<Self>, started: &mut dyn FnMut()) -> Result<Outcome> {
        started();
        self.ends.recv().map_err(|_| Error::HasEnded("the script".into()))
    }
}

struct World {
    _dir: tempfile::TempDir,
    store: Store,
    process: Arc<InstanceProcess>,
    /// One sender for each run, in order.
    runs: Receiver<Sender<Outcome>>,
    switch: Arc<Switch>,
    running: std::thread::JoinHandle<Result<Ending>>,
}

impl World {
    fn start(ask: Ask) -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let held = store.create(draft(Some("web")), |_, _| Ok(())).unwrap();
        let console = Console::new(held.directory());
        let process = InstanceProcess::new(held, console, ask, Determinism::default());
        let (begun, runs) = channel();
        let switch = Arc::<Switch>::default();
        let running = {
            let (process, switch) = (Arc::clone(&process), Arc::clone(&switch));
            std::thread::spawn(move || {
                let build = |_: &Record, _: &Path, _: &Console| {
                    let (killer, ends) = channel();
                    begun.send(killer.clone()).unwrap();
                    let switch = Arc::clone(&switch);
                    Ok(Box::new(Scripted { ends, killer, switch }) as Box<dyn Guest>)
                };
                process.run(build, || Ok(())).map(|(ending, _held)| ending)
            })
        };
        World {
            _dir: dir,
            store,
            process,
            runs,
            switch,
            running,
        }
    }

    fn recorded(&self) -> Record {
        self.store.reconcile(self.process.id()).unwrap()
    }

    fn end(self) -> Ending {
        self.running.join().unwrap().unwrap()
    }

    /// Ends as expected and keeps the state directory to be looked at.
    fn end_keeping(self, expected: Ending) -> tempfile::TempDir {
        assert_eq!(self.running.join().unwrap().unwrap(), expected);
        self._dir
    }
}

fn unresponsive() -> Ask {
    Box::new(|_, _| Err(Error::Agent(AgentError::Absent)))
}

#[test]
fn a_guest_that_powers_off_leaves_a_stopped_instance() {
    let world = World::start(unresponsive());
    let run = world.runs.recv().unwrap();
    run.send(Outcome::PowerOff).unwrap();
    let (store, id) = (world.store.clone(), world.process.id().clone());
    let _dir = world.end_keeping(Ending::PoweredOff);
    let record = store.reconcile(&id).unwrap();
    assert_eq!(
        (record.state, record.ending),
        (State::Stopped, Some(Ending::PoweredOff))
    );
}

#[test]
fn a_reset_is_a_reboot_and_readiness_starts_anew() {
    let world = World::start(unresponsive());
    let first = world.runs.recv().unwrap();
    let (_, mut news) = world.process.watch().unwrap();
    while world.recorded().state != State::Running {
        std::thread::yield_now();
    }
    world.process.set_ready();
    assert!(world.process.wait_ready(Duration::ZERO));
    assert!(world.recorded().ready);
    first.send(Outcome::Reset).unwrap();
    let second = world.runs.recv().unwrap();
    let rebooted = news.find(|n| !n.ready && n.state == State::Running && n.ending.is_none());
    assert!(rebooted.is_some());
    second.send(Outcome::TripleFault).unwrap();
    assert_eq!(world.end(), Ending::Crashed);
}

#[test]
fn a_panic_is_not_taken_for_a_reboot() {
    let world = World::start(unresponsive());
    let run = world.runs.recv().unwrap();
    world
        .process
        .console()
        .output(b"Kernel panic - not syncing: no init found\n");
    run.send(Outcome::Reset).unwrap();
    assert_eq!(world.end(), Ending::Panicked("no init found".into()));
}

#[test]
fn a_guest_that_shuts_down_is_not_killed() {
    let (asked, requests) = channel();
    let world = World::start(Box::new(move |_, shutdown| {
        let _ = asked.send(shutdown);
        Ok(())
    }));
    let run = world.runs.recv().unwrap();
    world
        .process
        .stop(Duration::from_secs(60), "stopped by a test")
        .unwrap();
    assert_eq!(requests.recv().unwrap(), ShutdownKind::PowerOff);
    assert_eq!(world.recorded().state, State::Stopping);
    run.send(Outcome::PowerOff).unwrap();
    assert_eq!(world.end(), Ending::PoweredOff);
}

/// The guest's PID 1 says how the main program has ended, waits until that is noted, and powers off.
#[test]
fn the_status_of_the_main_program_is_the_runs_ending() {
    use guest_init::proto::{END_PORT, Ended, Frame, Kind, write_frame};
    use std::io::{Read, Write};
    let world = World::start(unresponsive());
    let run = world.runs.recv().unwrap();
    crate::guest::readiness::listen_for_end(&world.process, Determinism::default()).unwrap();
    let name = format!("{}_{END_PORT}", crate::store::sockets::VSOCK);
    let connect = || crate::store::sockets::connect(world.process.directory(), &name).unwrap();
    // Other messages are ignored, and do not affect the next one.
    connect().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(connect());
    let mut guest = connect();
    let frame = Frame::json(Kind::Ended, &Ended::Signaled(9)).unwrap();
    write_frame(&mut guest, frame.kind, &frame.payload).unwrap();
    assert_eq!(guest.read(&mut [0]).unwrap(), 0, "noted");
    run.send(Outcome::PowerOff).unwrap();
    assert_eq!(world.end(), Ending::Exited(137));
}

/// A reset is another run, whose end is its own.
#[test]
fn the_status_of_one_run_is_not_the_next_ones() {
    let world = World::start(unresponsive());
    let first = world.runs.recv().unwrap();
    world.process.set_exited(3);
    first.send(Outcome::Reset).unwrap();
    let second = world.runs.recv().unwrap();
    second.send(Outcome::PowerOff).unwrap();
    assert_eq!(world.end(), Ending::PoweredOff);
}

#[test]
fn a_guest_that_ignores_the_request_is_killed_at_the_timeout() {
    let world = World::start(unresponsive());
    let _run = world.runs.recv().unwrap();
    world
        .process
        .stop(Duration::from_millis(50), "stopped by a test")
        .unwrap();
    assert_eq!(world.end(), Ending::Killed);
}

#[test]
fn subscribers_receive_the_end_and_nothing_after_it() {
    let world = World::start(unresponsive());
    let run = world.runs.recv().unwrap();
    let (_, news) = world.process.watch().unwrap();
    run.send(Outcome::PowerOff).unwrap();
    let last = news.last().unwrap();
    assert_eq!(
        (last.state, last.ending),
        (State::Stopped, Some(Ending::PoweredOff))
    );
    let process = Arc::clone(&world.process);
    world.end();
    assert!(
        !process.wait_ready(Duration::from_secs(60)),
        "an ended instance does not become ready"
    );
    assert!(process.stop(Duration::ZERO, "late").is_err());
}

#[test]
fn a_machine_that_cannot_be_built_ends_the_instance_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(Home::at(dir.path()));
    let held = store.create(draft(None), |_, _| Ok(())).unwrap();
    let id = held.record().id.clone();
    let console = Console::new(held.directory());
    let process = InstanceProcess::new(held, console, unresponsive(), Determinism::default());
    let (ending, held) = process
        .run(|_, _, _| Err(Error::NoRoot("no memory: it".into())), || Ok(()))
        .unwrap();
    assert!(matches!(&ending, Ending::Failed(reason) if reason.contains("no memory")));
    drop(held);
    assert_eq!(store.reconcile(&id).unwrap().ending, Some(ending));
    store.hold(&id, Event::Start).unwrap();
}

fn full(free: u64) -> NoSpace {
    NoSpace {
        device: "/dev/vda".into(),
        path: "/volumes/root.vol".into(),
        free: Some(free),
        error: "No space left on device".into(),
    }
}

#[test]
fn a_full_disk_is_in_the_record_until_there_is_space() {
    let world = World::start(unresponsive());
    let run = world.runs.recv().unwrap();
    while world.recorded().state != State::Running {
        std::thread::yield_now();
    }
    world.switch.report(Some(full(512)));
    let record = world.recorded();
    for part in ["/dev/vda", "/volumes/root.vol", "No space left", "512 bytes"] {
        assert!(record.reason.contains(part), "{}", record.reason);
    }
    assert_eq!(record.paused.unwrap().no_space, Some(full(512)));
    // Still full: the request says so, and how full.
    *world.switch.outcome.lock().unwrap() = Some(full(100));
    let refused = world.process.resume().unwrap_err().to_string();
    assert!(refused.contains("100 bytes"), "{refused}");
    assert_eq!(world.recorded().paused.unwrap().no_space, Some(full(100)));
    // Paused by request as well; going on tries again, and there is space now.
    world.process.pause().unwrap();
    *world.switch.outcome.lock().unwrap() = None;
    world.process.resume().unwrap();
    assert_eq!(world.recorded().paused, None);
    assert_eq!(
        *world.switch.asked.lock().unwrap(),
        ["retry", "pause", "resume", "retry"]
    );
    run.send(Outcome::PowerOff).unwrap();
    assert_eq!(world.end(), Ending::PoweredOff);
}

#[test]
fn stop_resumes_a_paused_guest_and_stop_without_time_ends_it() {
    let (asked, requests) = channel();
    let world = World::start(Box::new(move |_, shutdown| {
        let _ = asked.send(shutdown);
        Ok(())
    }));
    let run = world.runs.recv().unwrap();
    while world.recorded().state != State::Running {
        std::thread::yield_now();
    }
    world.process.pause().unwrap();
    world
        .process
        .stop(Duration::from_secs(60), "stopped by a test")
        .unwrap();
    assert_eq!(requests.recv().unwrap(), ShutdownKind::PowerOff);
    assert_eq!(*world.switch.asked.lock().unwrap(), ["pause", "resume"]);
    run.send(Outcome::PowerOff).unwrap();
    assert_eq!(world.end(), Ending::PoweredOff);

    let world = World::start(unresponsive());
    let _run = world.runs.recv().unwrap();
    while world.recorded().state != State::Running {
        std::thread::yield_now();
    }
    world.process.pause().unwrap();
    world.process.stop(Duration::ZERO, "stopped by a test").unwrap();
    assert_eq!(world.end(), Ending::Killed);
}

#[test]
fn an_instance_can_be_ended_although_the_disk_is_full() {
    let world = World::start(unresponsive());
    let _run = world.runs.recv().unwrap();
    while world.recorded().state != State::Running {
        std::thread::yield_now();
    }
    world.switch.report(Some(full(0)));
    *world.switch.outcome.lock().unwrap() = Some(full(0));
    world
        .process
        .stop(Duration::from_millis(50), "stopped by a test")
        .unwrap();
    let process = Arc::clone(&world.process);
    assert_eq!(world.end(), Ending::Killed);
    assert_eq!(process.record().paused, None);
}

/// A world whose guest runs.
fn running() -> (World, Sender<Outcome>) {
    let world = World::start(unresponsive());
    let run = world.runs.recv().unwrap();
    while world.recorded().state != State::Running {
        std::thread::yield_now();
    }
    (world, run)
}

#[test]
fn a_guest_is_saved_for_an_image_while_it_is_paused_and_goes_on() {
    let (world, run) = running();
    let files = SavedFiles::new(world.process.directory(), Purpose::Image);
    let refused = world.process.save().unwrap_err().to_string();
    assert!(refused.contains("not paused"), "{refused}");
    world.process.pause().unwrap();
    world.process.save().unwrap();
    assert_eq!(std::fs::read(&files.memory).unwrap(), b"memory");
    assert_eq!(std::fs::read(&files.state).unwrap(), b"state");
    world.process.resume().unwrap();
    assert_eq!(*world.switch.asked.lock().unwrap(), ["pause", "save", "resume"]);
    run.send(Outcome::PowerOff).unwrap();
    assert_eq!(world.end(), Ending::PoweredOff);
}

#[test]
fn a_hibernated_guest_is_saved_and_ends_and_one_that_cannot_be_saved_goes_on() {
    let (world, _run) = running();
    let files = SavedFiles::new(world.process.directory(), Purpose::Hibernation);
    *world.switch.broken.lock().unwrap() = true;
    world.process.hibernate().unwrap_err();
    assert!(!files.exist());
    assert_eq!(world.recorded().state, State::Running);
    *world.switch.broken.lock().unwrap() = false;
    world.process.hibernate().unwrap();
    assert_eq!(
        *world.switch.asked.lock().unwrap(),
        ["pause", "save", "resume", "pause", "save"]
    );
    let (store, id) = (world.store.clone(), world.process.id().clone());
    let _kept = world.end_keeping(Ending::Hibernated);
    assert!(files.exist());
    let record = store.reconcile(&id).unwrap();
    assert_eq!(
        (record.state, record.ending),
        (State::Stopped, Some(Ending::Hibernated))
    );
}

#[test]
fn the_guest_reads_the_tags_that_its_record_has() {
    let world = World::start(unresponsive());
    let guest = world.runs.recv().unwrap();
    while world.process.record().state != State::Running {
        std::thread::yield_now();
    }
    let change = TagChange {
        set: [("role".to_owned(), "db".to_owned())].into(),
        ..TagChange::default()
    };
    world.process.change_tags(&change).unwrap();
    assert_eq!(world.recorded().tags.get("role").map(String::as_str), Some("db"));
    let read = world.switch.tags.lock().unwrap().clone().unwrap();
    assert_eq!(read.get("role").map(String::as_str), Some("db"));
    assert_eq!(
        read.get("Name").map(String::as_str),
        Some("web"),
        "the name is one of them"
    );
    guest.send(Outcome::PowerOff).unwrap();
    let process = Arc::clone(&world.process);
    assert_eq!(world.end(), Ending::PoweredOff);
    assert!(process.change_tags(&change).is_err());
}
