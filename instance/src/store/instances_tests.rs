//! Two commands at once, and `kill -9` of anything.

use std::sync::Barrier;
use std::thread;

use super::*;
use crate::store::id::ReservationId;
use crate::store::record::{Config, FORMAT, ImageRef};
use crate::store::record_file::RECORD;

pub(crate) fn draft(name: Option<&str>) -> Record {
    Record {
        format: FORMAT,
        id: InstanceId::random(),
        name: name.map(Into::into),
        tags: Default::default(),
        state: State::Pending,
        reason: String::new(),
        ending: None,
        reservation: ReservationId::random(),
        launch_index: 0,
        launched: 1,
        owner: None,
        ready: false,
        paused: None,
        auto_remove: false,
        image: ImageRef {
            id: "ami-0".into(),
            name: "t".into(),
            path: "/t.ami".into(),
            linked: false,
        },
        config: Config::default(),
        volumes: vec![],
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(Home::at(dir.path()));
    (dir, store)
}

fn nothing(_: &Path, _: &mut Record) -> Result<()> {
    Ok(())
}

#[test]
fn a_record_round_trips() {
    let (_dir, store) = store();
    let held = store.create(draft(Some("web")), nothing).unwrap();
    let id = held.record().id.clone();
    assert_eq!(store.reconcile(&id).unwrap(), *held.record());
    assert_eq!(store.find("web").unwrap(), id);
    assert_eq!(store.find(&id.as_str()[..10]).unwrap(), id);
    assert!(matches!(store.find("i-"), Err(Error::NoInstance(_))));
}

#[test]
fn an_instance_whose_process_died_is_recorded_as_stopped() {
    let (_dir, store) = store();
    let mut held = store.create(draft(None), nothing).unwrap();
    held.apply(Event::Started, "").unwrap();
    let id = held.record().id.clone();
    assert_eq!(store.reconcile(&id).unwrap().state, State::Running);
    drop(held); // as the kernel does for a killed process
    let record = store.reconcile(&id).unwrap();
    assert_eq!(
        (record.state, record.ending),
        (State::Stopped, Some(Ending::Lost))
    );
    assert_eq!(
        record_file::read(&store.home.instance(&id))
            .unwrap()
            .unwrap()
            .state,
        State::Stopped
    );
    store.hold(&id, Event::Start).unwrap();
}

#[test]
fn a_dead_process_of_an_instance_with_rm_leaves_nothing() {
    let (_dir, store) = store();
    let mut record = draft(None);
    record.auto_remove = true;
    drop(store.create(record, nothing).unwrap());
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.names().unwrap(), Vec::<String>::new());
}

#[test]
fn a_running_instance_cannot_be_locked_and_the_attempt_changes_nothing() {
    let (_dir, store) = store();
    let mut held = store.create(draft(None), nothing).unwrap();
    held.apply(Event::Started, "").unwrap();
    let id = held.record().id.clone();
    for event in [Event::Start, Event::Terminate] {
        assert!(matches!(
            store.hold(&id, event),
            Err(Error::Transition {
                state: State::Running,
                ..
            })
        ));
    }
    assert_eq!(store.reconcile(&id).unwrap().state, State::Running);
}

#[test]
fn of_many_who_start_one_instance_exactly_one_does() {
    let (_dir, store) = store();
    let mut held = store.create(draft(None), nothing).unwrap();
    held.apply(Event::Ended, "").unwrap();
    let id = held.record().id.clone();
    drop(held);
    let line = Barrier::new(8);
    let winners = thread::scope(|scope| {
        let starters: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    line.wait();
                    let mut held = store.hold(&id, Event::Start).ok()?;
                    held.apply(Event::Start, "").unwrap();
                    Some(held)
                })
            })
            .collect();
        // The winners are kept until all have tried.
        let held: Vec<_> = starters.into_iter().map(|s| s.join().unwrap()).collect();
        held.iter().flatten().count()
    });
    assert_eq!(winners, 1);
}

#[test]
fn of_many_who_claim_one_name_exactly_one_gets_it() {
    let (_dir, store) = store();
    let line = Barrier::new(8);
    let made = thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    line.wait();
                    store.create(draft(Some("web")), nothing)
                })
            })
            .collect();
        let all: Vec<_> = makers.into_iter().map(|m| m.join().unwrap()).collect();
        for refused in all.iter().filter_map(|r| r.as_ref().err()) {
            assert!(matches!(refused, Error::NameTaken { .. }), "{refused}");
        }
        all.iter().filter(|r| r.is_ok()).count()
    });
    assert_eq!(made, 1);
    assert_eq!(store.ids().unwrap().len(), 1);
}

#[test]
fn removal_takes_the_directory_and_its_own_volumes_only() {
    let (dir, store) = store();
    let mine = dir.path().join("mine.img");
    fs::write(&mine, b"precious").unwrap();
    let mut record = draft(None);
    record.volumes.push(crate::store::record::Volume {
        id: crate::VolumeId::random(),
        device: "/dev/vdb".into(),
        path: mine.clone(),
        size: 8,
        delete_on_termination: false,
        kind: crate::store::record::VolumeKind::File,
    });
    let mut held = store.create(record, nothing).unwrap();
    let directory = held.directory().to_path_buf();
    fs::write(directory.join("root.vol"), b"x").unwrap();
    held.apply(Event::Ended, "").unwrap();
    held.remove().unwrap();
    assert!(!directory.exists());
    assert_eq!(fs::read(&mine).unwrap(), b"precious");
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn an_interrupted_removal_is_finished() {
    let (_dir, store) = store();
    let mut held = store.create(draft(None), nothing).unwrap();
    held.apply(Event::Ended, "").unwrap();
    held.apply(Event::Terminate, "").unwrap(); // killed here
    let id = held.record().id.clone();
    drop(held);
    assert_eq!(store.reconcile(&id).unwrap().state, State::Terminated);
    store.hold(&id, Event::Terminate).unwrap().remove().unwrap();

    let remains = store.home.instances().join(".gone-i-0123456789abcdef0"); // or here
    fs::create_dir(&remains).unwrap();
    fs::write(remains.join("root.vol"), b"x").unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(!remains.exists());
}

#[test]
fn an_instance_is_removed_while_others_look() {
    let (_dir, store) = store();
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.list().unwrap();
            }
        });
        let removed: Vec<_> = (0..60)
            .map(|_| {
                let mut held = store.create(draft(None), nothing)?;
                held.apply(Event::Ended, "")?;
                held.remove()
            })
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        removed.into_iter().for_each(|removed| removed.unwrap());
    });
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn an_instance_being_made_is_not_swept() {
    let (_dir, store) = store();
    let held = store.create(draft(None), |_, _| {
        assert!(store.list()?.is_empty());
        Ok(())
    });
    assert!(held.unwrap().directory().join(RECORD).exists());
}

#[test]
fn a_failed_creation_leaves_nothing() {
    let (_dir, store) = store();
    let refused = store.create(draft(None), |_, _| Err(Error::Busy("it".into())));
    assert!(refused.is_err());
    assert_eq!(store.names().unwrap(), Vec::<String>::new());
}

#[test]
fn a_damaged_record_is_reported_and_can_be_removed() {
    let (_dir, store) = store();
    let held = store.create(draft(None), nothing).unwrap();
    let id = held.record().id.clone();
    for garbage in [&b""[..], b"{", b"[]", b"{\"format\":1}", &[0xff; 100]] {
        fs::write(held.directory().join(RECORD), garbage).unwrap();
        let entries = store.list().unwrap();
        assert!(
            matches!(entries.as_slice(), [Entry::Damaged(Error::Damaged { .. }, _)]),
            "{entries:?}"
        );
    }
    drop(held);
    store.hold_damaged(&id).unwrap().remove().unwrap();
    assert!(store.list().unwrap().is_empty());
}

/// An instance process that was started with `--rm` removes the instance whenever its guest is done, whatever
/// others are about.
#[test]
fn an_instance_that_vanishes_is_not_an_error_of_the_disk() {
    let (_dir, store) = store();
    for _ in 0..200 {
        let mut held = store.create(draft(None), nothing).unwrap();
        let id = held.record().id.clone();
        held.apply(Event::Ended, "").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| held.remove().unwrap());
            loop {
                match store.hold(&id, Event::Start) {
                    Err(Error::NoInstance(_)) => break,
                    Ok(_) | Err(Error::Transition { .. } | Error::Busy(_)) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
}
