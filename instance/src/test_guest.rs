//! A guest for tests that is not a machine.

use std::sync::Arc;

use crate::Result;
use crate::process::guest::{Guest, GuestControl, SpaceHook};
use machine::Outcome;

/// A guest that runs until it is killed.
#[derive(Default)]
pub struct Forever(Arc<(std::sync::Mutex<bool>, std::sync::Condvar)>);

impl Guest for Forever {
    fn killer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let flag = Arc::clone(&self.0);
        Arc::new(move || {
            *flag.0.lock().unwrap() = true;
            flag.1.notify_all();
        })
    }
    fn control(&self) -> Arc<dyn GuestControl> {
        Arc::new(Nothing)
    }
    fn report_space(&mut self, _: SpaceHook) {}
    fn run(self: Box<Self>, started: &mut dyn FnMut()) -> Result<Outcome> {
        started();
        let killed = self
            .0
            .1
            .wait_while(self.0.0.lock().unwrap(), |killed| !*killed)
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
    fn retry(&self) {}
}
