//! The run state that the vCPU threads of a machine share: running, paused, ended.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::accel::{Error, Kick, VcpuState};

/// How the processors came to their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A processor shut down after a triple fault.
    TripleFault,
    /// Someone outside the guest ended it.
    Killed,
}

/// A guest that has not left its processor for so long runs all the same: a kernel's first exit comes within
/// milliseconds on hardware.
const FIRST_EXIT: Duration = Duration::from_millis(500);

/// Why processors are stopped. Each reason is independent of the others: processors run while there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Hold {
    /// A pause was requested.
    Request = 1,
    /// A disk has no space for what the guest has written.
    NoSpace = 2,
    /// The machine goes on from a snapshot, and its devices do not yet.
    Restoring = 4,
}

/// The processors of a machine are saved.
#[derive(Debug)]
enum Saving {
    /// Its thread is to save it.
    Wanted,
    /// Its thread does.
    Begun,
    /// It has.
    Done(Result<VcpuState, Error>),
}

/// Why processors cannot be saved.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum SaveError {
    /// the machine is not paused
    NotPaused,
    /// {0}
    Accel(#[from] Error),
}

#[derive(Debug)]
struct Inner {
    /// One bit for each [`Hold`]. While there is any, threads that want to run wait inside
    /// [`Control::may_run`].
    holds: u8,
    /// The first end counts; later ones lose the race and are dropped.
    ended: bool,
    /// The guest has left a processor, so it has run.
    exited: bool,
    /// Threads between [`Control::may_run`] and [`Control::has_stopped`].
    running: usize,
    /// Present from the end on until [`Control::wait`] has taken it.
    result: Option<Result<End, Error>>,
    /// One for each processor while they are saved.
    saving: Vec<Saving>,
    /// Which processors are to give back memory.
    giving_back: Vec<bool>,
}

/// What a vCPU thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Run.
    Run,
    /// Run, after a pause.
    RunAgain,
    /// Save the processor, and ask again.
    Save,
    /// Give back memory, and ask again.
    GiveBack,
    /// End.
    End,
}

/// Shared by the threads of one machine and its handles.
pub struct Control {
    /// A leaf, except that kickers lock their own inside it.
    inner: Mutex<Inner>,
    /// Signalled at every change of `inner`.
    changed: Condvar,
    kickers: Vec<Arc<dyn Kick>>,
}

impl Control {
    /// For processors with these kickers, which are to run at once.
    pub fn new(kickers: Vec<Arc<dyn Kick>>) -> Self {
        let inner = Inner {
            holds: 0,
            ended: false,
            exited: false,
            running: 0,
            result: None,
            saving: Vec::new(),
            giving_back: vec![false; kickers.len()],
        };
        Control {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            kickers,
        }
    }

    /// Called by the thread of processor `number` before each run: waits while the machine is paused. A thread
    /// that may run calls [`has_stopped`](Control::has_stopped) afterwards, one that is to save its processor
    /// [`has_saved`](Control::has_saved).
    pub fn may_run(&self, number: usize) -> Next {
        let mut inner = self.lock();
        let mut next = Next::Run;
        loop {
            if inner.ended {
                return Next::End;
            }
            if let Some(wanted @ true) = inner.giving_back.get_mut(number) {
                *wanted = false;
                return Next::GiveBack;
            }
            if inner.holds == 0 {
                inner.running += 1;
                return next;
            }
            if let Some(saving @ Saving::Wanted) = inner.saving.get_mut(number) {
                *saving = Saving::Begun;
                return Next::Save;
            }
            inner = self.sleep(inner);
            next = Next::RunAgain;
        }
    }

    /// Called by the thread of processor `number` that was to save it.
    pub fn has_saved(&self, number: usize, state: Result<VcpuState, Error>) {
        let mut inner = self.lock();
        if let Some(saving) = inner.saving.get_mut(number) {
            *saving = Saving::Done(state);
            self.changed.notify_all();
        }
    }

    /// Has every processor saved by its thread. The machine is paused by request, and stays so until this
    /// returns; one save at a time.
    ///
    /// # Errors
    /// When it is not paused, has ended, or a processor cannot be saved.
    pub fn save(&self) -> Result<Vec<VcpuState>, SaveError> {
        let mut inner = self.lock();
        let paused = |inner: &Inner| inner.holds & Hold::Request as u8 != 0 && !inner.ended;
        if !paused(&inner) || inner.running > 0 || !inner.saving.is_empty() {
            return Err(SaveError::NotPaused);
        }
        inner.saving.extend(self.kickers.iter().map(|_| Saving::Wanted));
        self.changed.notify_all();
        let done = |saving: &Saving| matches!(saving, Saving::Done(_));
        while paused(&inner) && !inner.saving.iter().all(done) {
            inner = self.sleep(inner);
        }
        let saved = std::mem::take(&mut inner.saving).into_iter();
        let state = |saving| match saving {
            Saving::Done(state) => state.map_err(SaveError::Accel),
            Saving::Wanted | Saving::Begun => Err(SaveError::NotPaused),
        };
        saved.map(state).collect()
    }

    /// Called by a vCPU thread after each run.
    pub fn has_stopped(&self) {
        let mut inner = self.lock();
        inner.running -= 1;
        if inner.ended || inner.holds != 0 {
            self.changed.notify_all();
        }
    }

    /// Ends the machine: every processor leaves the guest and its thread.
    pub fn end(&self, result: Result<End, Error>) {
        let mut inner = self.lock();
        if inner.ended {
            return;
        }
        inner.ended = true;
        inner.result = Some(result);
        self.kick_all();
        self.changed.notify_all();
    }

    /// Called by a vCPU thread at its first exit.
    pub fn has_exited(&self) {
        let mut inner = self.lock();
        if !inner.exited {
            inner.exited = true;
            self.changed.notify_all();
        }
    }

    /// Waits until the guest has run: seen by its first exit, or taken for granted after a while. Returns at
    /// once when the machine has ended.
    pub fn wait_for_first_exit(&self) {
        let before = |inner: &mut Inner| !inner.exited && !inner.ended;
        // Neither outcome needs the guard, and there is nothing else to learn from the wait.
        drop(self.changed.wait_timeout_while(self.lock(), FIRST_EXIT, before));
    }

    /// Waits for the end and returns how it came. To be called once.
    pub fn wait(&self) -> Result<End, Error> {
        let mut inner = self.lock();
        loop {
            match inner.result.take() {
                Some(result) => return result,
                None => inner = self.sleep(inner),
            }
        }
    }

    /// Stops all processors where they are and returns when none runs any more; `false` when the machine has
    /// ended, or is held for this reason already.
    pub fn pause(&self, why: Hold) -> bool {
        let mut inner = self.lock();
        if inner.ended || inner.holds & why as u8 != 0 {
            return false;
        }
        inner.holds |= why as u8;
        self.kick_all();
        while !inner.ended && inner.holds & why as u8 != 0 && inner.running > 0 {
            inner = self.sleep(inner);
        }
        !inner.ended && inner.holds & why as u8 != 0
    }

    /// As [`pause`](Control::pause), but does not wait for the processors: for a caller that one of them may
    /// wait for.
    pub fn hold(&self, why: Hold) {
        let mut inner = self.lock();
        inner.holds |= why as u8;
        self.kick_all();
    }

    /// Takes one reason away. The processors go on when there is no other.
    pub fn resume(&self, why: Hold) {
        let mut inner = self.lock();
        inner.holds &= !(why as u8);
        self.changed.notify_all();
    }

    /// Has every processor give back memory, soon, on its thread.
    pub fn give_back(&self) {
        let mut inner = self.lock();
        inner.giving_back.fill(true);
        self.kick_all();
        self.changed.notify_all();
    }

    fn kick_all(&self) {
        for kicker in &self.kickers {
            kicker.kick();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, guard: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}
