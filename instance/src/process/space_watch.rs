//! A full file system of the host: holds the guest's processors while a write of theirs waits for space,
//! reports why, and has the write carried out again when there is space or somebody asks for it.
//!
//! The disks' threads report; a thread of its own does the rest, because they may neither open files nor
//! wait.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::guest::SpaceHook;
use crate::store::pause::NoSpace;
use machine::Handle;
use machine::block::space;
use machine::sandbox::{self, Kind};
use machine::virtio::block::{SpaceEvent, SpaceMonitor};

/// Between two looks whether there is space again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The guest goes on by itself when so many bytes are free: more than the room for the record, and enough
/// that it does not stop again at its next write. A request to go on is tried whatever is free.
const ENOUGH: u64 = 4 << 20;

/// What the thread is sent.
enum Message {
    /// A write to this disk waits: the error's number.
    Exhausted(usize, io::Error),
    /// None waits any more.
    Available(usize),
    /// The root volume could not be filled from the image for want of space.
    NotFilled(io::Error),
    /// A new attempt is requested.
    Retry,
    /// The machine has ended.
    Stop,
}

/// A disk that is watched.
struct Disk {
    device: String,
    path: PathBuf,
    monitor: SpaceMonitor,
}

/// The disks of a machine that is being built.
pub struct SpaceWatch {
    disks: Vec<Disk>,
    sender: Sender<Message>,
    receiver: Receiver<Message>,
}

impl Default for SpaceWatch {
    fn default() -> Self {
        let (sender, receiver) = channel();
        SpaceWatch {
            disks: Vec::new(),
            sender,
            receiver,
        }
    }
}

impl SpaceWatch {
    /// A monitor for the disk that the guest knows as `device` and whose file is at `path`.
    pub fn disk(&mut self, device: &str, path: &Path) -> SpaceMonitor {
        let number = self.disks.len();
        let sender = self.sender.clone();
        // A machine that has ended is not interested.
        let monitor = SpaceMonitor::new(Box::new(move |event| {
            let _ = sender.send(match event {
                // An error of the system is a number, so that nothing is lost by the copy.
                SpaceEvent::Exhausted(error) => Message::Exhausted(number, copy(error)),
                SpaceEvent::Available => Message::Available(number),
            });
        }));
        self.disks.push(Disk {
            device: device.into(),
            path: path.to_path_buf(),
            monitor: monitor.clone(),
        });
        monitor
    }

    /// What the hydration of the root volume calls when it finds no space.
    pub fn not_filled(&self) -> Box<dyn Fn(&io::Error) + Send> {
        let sender = self.sender.clone();
        Box::new(move |error| {
            let _ = sender.send(Message::NotFilled(copy(error)));
        })
    }

    /// A handle for the code that controls the guest.
    pub fn remote(&self) -> Remote {
        Remote {
            monitors: self.disks.iter().map(|disk| disk.monitor.clone()).collect(),
            sender: self.sender.clone(),
        }
    }

    /// Starts the thread for a machine that runs.
    pub fn start(self, handle: Handle, hook: SpaceHook) -> io::Result<Running> {
        let SpaceWatch {
            disks,
            sender,
            receiver,
        } = self;
        let thread = sandbox::spawn("space", Kind::Control, move || {
            let full = disks.iter().map(|_| None).collect();
            let mut watch = Watch {
                disks,
                full,
                asked: false,
                hook,
            };
            watch.run(&receiver, &mut |hold| handle.hold_for_space(hold));
        })?;
        Ok(Running { sender, thread })
    }
}

/// Asks for new attempts, and gives all up when the machine ends.
#[derive(Clone)]
pub struct Remote {
    monitors: Vec<SpaceMonitor>,
    sender: Sender<Message>,
}

impl Remote {
    /// Has the writes that wait carried out again.
    pub fn retry(&self) {
        let _ = self.sender.send(Message::Retry);
    }

    /// Nobody on a processor's way out waits for space any more.
    pub fn abandon(&self) {
        self.monitors.iter().for_each(SpaceMonitor::abandon);
    }
}

/// The thread, while the machine runs.
pub struct Running {
    sender: Sender<Message>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Ends the thread.
    pub fn stop(self) {
        let _ = self.sender.send(Message::Stop);
        let _ = self.thread.join();
    }
}

/// What the thread works with.
struct Watch {
    disks: Vec<Disk>,
    /// Why a write to each disk waits, if one does.
    full: Vec<Option<io::Error>>,
    /// A request to resume waits for its answer.
    asked: bool,
    hook: SpaceHook,
}

impl Watch {
    fn run(&mut self, receiver: &Receiver<Message>, hold: &mut dyn FnMut(bool)) {
        loop {
            let message = if self.full.iter().any(Option::is_some) {
                receiver.recv_timeout(LOOK_EVERY)
            } else {
                receiver.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match message {
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.take(message, hold),
                Err(RecvTimeoutError::Timeout) => self.retry(false),
            }
        }
    }

    fn take(&mut self, message: Message, hold: &mut dyn FnMut(bool)) {
        match message {
            Message::Exhausted(number, error) => {
                hold(true);
                let Disk { device, path, .. } = &self.disks[number];
                let report = NoSpace::new(device, path, &error);
                // An attempt of our own that has failed again is not reported again.
                if self.full[number].replace(error).is_none() || std::mem::take(&mut self.asked) {
                    (self.hook)(Some(report));
                }
            }
            Message::Available(number) => {
                self.full[number] = None;
                if self.full.iter().all(Option::is_none) {
                    self.asked = false;
                    // Before the guest can take the space that the record needs.
                    (self.hook)(None);
                    hold(false);
                }
            }
            Message::NotFilled(error) => {
                let Some(root) = self.disks.first() else { return };
                let report = NoSpace::new(&root.device, &root.path, &error);
                tracing::warn!("the root volume is not filled from its image: {report}; it is tried again");
            }
            Message::Retry if self.full.iter().all(Option::is_none) => (self.hook)(None),
            Message::Retry => {
                self.asked = true;
                self.retry(true);
            }
            Message::Stop => {}
        }
    }

    /// Has the writes that wait carried out again: all of them, or those that seem to have the space they
    /// need.
    fn retry(&self, all: bool) {
        for (disk, error) in self.disks.iter().zip(&self.full) {
            if let Some(error) = error
                && (all || may_have_space(&disk.path, error))
            {
                disk.monitor.retry();
            }
        }
    }
}

/// Whether a write may succeed now. What a quota leaves, only the write itself shows.
fn may_have_space(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::QuotaExceeded || space::free(path).map_or(true, |free| free >= ENOUGH)
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error.kind().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A watch over two disks in `directory`, and what it has reported and done.
    fn watch(directory: &Path) -> (Watch, Arc<Mutex<Vec<Option<String>>>>) {
        let mut watch = SpaceWatch::default();
        watch.disk("vda", directory);
        watch.disk("vdb", directory);
        let reports = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&reports);
        let watch = Watch {
            full: vec![None, None],
            disks: watch.disks,
            asked: false,
            hook: Box::new(move |report| {
                seen.lock().unwrap().push(report.map(|report| report.device));
            }),
        };
        (watch, reports)
    }

    fn full() -> io::Error {
        io::Error::from_raw_os_error(libc::ENOSPC)
    }

    #[test]
    fn processors_are_held_until_no_disk_waits_and_every_requested_attempt_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let (mut watch, reports) = watch(directory.path());
        let mut held = Vec::new();
        let mut hold = |hold| held.push(hold);
        for message in [
            Message::Exhausted(0, full()),
            Message::Exhausted(1, full()),
            // An attempt of the watch's own.
            Message::Exhausted(0, full()),
            Message::Retry,
            Message::Exhausted(1, full()),
            Message::Available(0),
            Message::Available(1),
        ] {
            watch.take(message, &mut hold);
        }
        assert_eq!(held, [true, true, true, true, false]);
        let named = ["vda", "vdb", "vdb"].map(|name| Some(name.to_owned()));
        assert_eq!(reports.lock().unwrap()[..3], named);
        assert_eq!(reports.lock().unwrap()[3..], [None]);
    }

    #[test]
    fn a_quota_is_always_tried_and_a_file_system_when_it_has_space() {
        let directory = tempfile::tempdir().unwrap();
        let quota = io::Error::from_raw_os_error(libc::EDQUOT);
        assert!(may_have_space(Path::new("/nonexistent"), &quota));
        let free = space::free(directory.path()).unwrap();
        assert_eq!(may_have_space(directory.path(), &full()), free >= ENOUGH);
    }
}
