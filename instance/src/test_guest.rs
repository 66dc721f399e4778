//! A guest for tests that is not a machine.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use crate::process::guest::{Beginning, Guest, GuestControl, SpaceHook};
use crate::{Error, Result};
use machine::Outcome;

/// A guest that runs until it is killed.
#[derive(Default)]
pub struct Forever {
    killed: Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>,
    beginning: Beginning,
}

impl Forever {
    /// One that goes on from where it was saved.
    pub fn restored() -> Forever {
        Forever {
            beginning: Beginning::Restored,
            ..Forever::default()
        }
    }
}

impl Guest for Forever {
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let flag = Arc::clone(&self.killed);
        Arc::new(move || {
            *flag.0.lock().unwrap() = true;
            flag.1.notify_all();
        })
    }
    fn control(&self) -> Arc<dyn GuestControl> {
        Arc::new(Nothing)
    }
    fn beginning(&self) -> Beginning {
        self.beginning.clone()
    }
    fn report_space(&mut self, _: SpaceHook) {}
    fn run(self: Box<Self>, started: &mut dyn FnMut()) -> Result<Outcome> {
        started();
        let killed = self
            .killed
            .1
            .wait_while(self.killed.0.lock().unwrap(), |killed| !*killed)
            .unwrap();
        assert!(*killed);
        Ok(Outcome::Killed)
    }
}

/// A guest of which nothing runs.
struct Nothing;

impl GuestControl for Nothing {
    fn pause(&self) -> bool {
        true
    }
    fn resume(&self) {}
    fn save(&self, memory: &File) -> Result<Vec<u8>> {
        let mut memory = memory;
        memory.write_all(b"memory").map_err(Error::os("saving"))?;
        Ok(b"state".to_vec())
    }
    fn retry(&self) {}
}
