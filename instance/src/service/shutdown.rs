//! Stopping an instance from another process: through its control socket, and by signals where that cannot
//! be.
//!
//! The process that runs an instance may be out of reach: its socket removed, all of its connections taken,
//! or the process itself stuck. It can be ended all the same, because the kernel says which process it is
//! ([`crate::store::process_lock`]).

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::api::client::Client;
use crate::error::CallError;
use crate::store::process_lock::ProcessHandle;
use crate::store::{LockedInstance, Store};
use crate::{Error, Event, InstanceId, Result};

/// After the guest's time is over its process ends it at once; this is for the writing of the record.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel may take to take a killed process apart: its memory may be large, and its host busy.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at the lock of a process that is about to end.
const RETRY: Duration = Duration::from_millis(5);

/// Stops an instance and waits until it has stopped. The guest has `time` to power off, then it is ended
/// without its consent: by its process, or with it if it does not answer. An instance that has stopped
/// already is fine.
///
/// # Errors
/// When the instance's state cannot be known, or its process cannot be ended from here.
pub fn stop(store: &Store, id: &InstanceId, time: Duration) -> Result<()> {
    if has_ended(store, id)? {
        return Ok(());
    }
    let directory = store.home().instance(id);
    let client = Client::new(id.clone(), directory.clone());
    let mut deadline = Instant::now() + time + GRACE;
    let asked = client.stop(time);
    match &asked {
        Ok(()) => client.wait_ended(deadline),
        // It may have ended in the meantime, or have lost its process.
        Err(_) if has_ended(store, id)? => return Ok(()),
        Err(error) => {
            tracing::info!(%id, %error, "the instance is stopped by a signal to its process");
            match ProcessHandle::find(&directory)? {
                Some(process) if !time.is_zero() => {
                    process.signal(Signal::SIGTERM).map_err(signalling)?;
                    deadline = Instant::now() + time + GRACE;
                    process.wait(deadline.saturating_duration_since(Instant::now()));
                }
                Some(_) => deadline = Instant::now(),
                // Another command has it, which will be done with it soon.
                None => {}
            }
        }
    }
    if wait_released(store, id, deadline)? {
        return Ok(());
    }
    if kill(&directory)? && wait_released(store, id, Instant::now() + GRACE)? {
        return Ok(());
    }
    asked?;
    Err(Error::Unresponsive {
        id: id.to_string(),
        source: CallError::NotStopped,
    })
}

/// Removes what is left of an instance whose record cannot be read, and ends its process if it has one.
///
/// # Errors
/// When another command has it, or it cannot be removed.
pub fn remove_damaged(store: &Store, id: &InstanceId) -> Result<()> {
    kill(&store.home().instance(id))?;
    store.hold_damaged(id)?.remove()
}

/// Ends the process that runs the instance kept in `directory` without its consent, and waits until it has
/// ended; `false` when there is none.
fn kill(directory: &Path) -> Result<bool> {
    let Some(process) = ProcessHandle::find(directory)? else {
        return Ok(false);
    };
    process.signal(Signal::SIGKILL).map_err(signalling)?;
    Ok(process.wait(EXIT_TIMEOUT))
}

/// Locks an instance that does not run, as [`Store::hold`] does. One whose process has been killed a
/// moment ago is waited for: the kernel takes such a process apart after the kill has returned, and only then
/// gives up its locks.
///
/// # Errors
/// As [`Store::hold`].
pub fn hold(store: &Store, id: &InstanceId, event: Event) -> Result<LockedInstance> {
    let refused = match store.hold(id, event) {
        Err(Error::Transition { state, .. }) if state.has_process() => state,
        done => return done,
    };
    let directory = store.home().instance(id);
    let process = ProcessHandle::find(&directory)?;
    // A process that lives answers, and one that has been killed never does.
    if Client::new(id.clone(), directory).describe().is_err() {
        tracing::debug!(%id, state = %refused, "its process does not answer");
        if let Some(process) = process {
            process.wait(GRACE);
        }
    }
    store.hold(id, event)
}

/// Whether `id` no longer runs; of one that is removed when it stops nothing is left.
pub fn has_ended(store: &Store, id: &InstanceId) -> Result<bool> {
    match store.reconcile(id) {
        Ok(record) => Ok(!record.state.has_process()),
        Err(Error::NoInstance(_)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Waits for the record of the end, or for the lock: a process that is about to end gives no other sign.
fn wait_released(store: &Store, id: &InstanceId, deadline: Instant) -> Result<bool> {
    loop {
        if has_ended(store, id)? {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(RETRY);
    }
}

fn signalling(error: io::Error) -> Error {
    Error::os("signalling the process that runs it")(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::State;
    use crate::store::home::Home;
    use crate::store::instances::tests::draft;
    use crate::store::process_lock::tests::Stuck;
    use crate::store::record::Ending;

    /// An instance whose process holds its locks and answers nothing.
    fn stuck(store: &Store) -> (InstanceId, Stuck) {
        let held = store.create(draft(Some("web")), |_, _| Ok(())).unwrap();
        let lock = held.lock().share().unwrap();
        (
            held.record().id.clone(),
            Stuck::start(held.directory(), lock.into()),
        )
    }

    #[test]
    fn a_process_that_does_not_answer_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let (id, process) = stuck(&store);
        assert_eq!(store.reconcile(&id).unwrap().state, State::Pending);
        stop(&store, &id, Duration::ZERO).unwrap();
        assert_eq!(process.end_signal(), Some(libc::SIGKILL));
        let record = store.reconcile(&id).unwrap();
        assert_eq!(
            (record.state, record.ending),
            (State::Stopped, Some(Ending::Lost))
        );
        stop(&store, &id, Duration::ZERO).unwrap();
        hold(&store, &id, Event::Terminate).unwrap().remove().unwrap();
    }

    #[test]
    fn a_process_with_time_left_gets_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let (id, process) = stuck(&store);
        stop(&store, &id, Duration::from_secs(1)).unwrap();
        assert_eq!(process.end_signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn an_instance_with_a_damaged_record_is_removed_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let (id, process) = stuck(&store);
        std::fs::write(store.home().instance(&id).join("instance.json"), b"{").unwrap();
        let refused = stop(&store, &id, Duration::ZERO);
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        remove_damaged(&store, &id).unwrap();
        assert_eq!(process.end_signal(), Some(libc::SIGKILL));
        assert!(store.list().unwrap().is_empty());
    }

    #[test]
    fn an_instance_whose_process_was_just_killed_can_be_locked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let (id, mut process) = stuck(&store);
        process.kill();
        let held = hold(&store, &id, Event::Start).unwrap();
        assert_eq!(held.record().ending, Some(Ending::Lost));
    }
}
