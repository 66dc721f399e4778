//! A scratch machine that tests KVM: one CPU runs a short routine of the architecture's, which reports
//! each step that it begins.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;

use super::probe::{Speed, Unusable, Wrong, known_cause};
use super::{arch, create};
use crate::accel::{self, Created, Exit, ExitHandler, Stop};
use crate::arch::Boot;
use crate::bus::Action;
use crate::memory::Memory;

/// After this long the routine is stopped. Hardware needs a hundredth of it.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A routine and how to follow it.
pub(super) struct Routine {
    /// It lies here.
    pub memory: Memory,
    /// How it begins.
    pub boot: Boot,
    /// Its steps. Each but the first is reported when it begins; the last step is the end.
    pub steps: &'static [&'static str],
    /// From this step to the last but one, a timed loop each.
    pub first_loop: usize,
    /// Instructions of a timed loop.
    pub instructions: u64,
    /// The number of the step that an exit reports. Any other exit means that a result was wrong.
    pub step: fn(&Exit<'_>) -> Option<usize>,
}

/// Runs the routine and says how fast it was, or at which step it went wrong.
pub(super) fn try_out(kvm: &Kvm) -> Result<Speed, Unusable> {
    try_out_in(|memory| create(kvm, memory, 1, false, None))
}

/// The same in the machine that `create` makes around the routine's memory, of any accelerator.
pub(in crate::accel) fn try_out_in(
    create: impl FnOnce(&Memory) -> Result<Created, accel::Error>,
) -> Result<Speed, Unusable> {
    let failed = |step| {
        move |source| Unusable::Failed {
            step,
            source: Box::new(source),
            cause: known_cause(),
        }
    };
    let setup = failed("the making of a machine");
    let routine = arch::routine().map_err(setup)?;
    let mut created = create(&routine.memory).map_err(setup)?;
    let vcpu = &mut created.vcpus[0];
    vcpu.boot(&routine.boot).map_err(setup)?;

    let mut watch = Watch::new(&routine);
    let kicker = vcpu.kicker();
    let (done, waiting) = channel::<()>();
    let stop = thread::scope(|scope| {
        scope.spawn(move || {
            if waiting.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let stop = vcpu.run(&mut watch);
        drop(done);
        stop
    });
    let step = routine.steps[watch.step];
    let wrong = |why| {
        Err(Unusable::Incorrect {
            step,
            why,
            cause: known_cause(),
        })
    };
    match stop {
        Ok(Stop::Action(Action::Shutdown)) if watch.at_end() => Ok(watch.speed()),
        Ok(Stop::Action(_)) => wrong(Wrong::Result),
        Ok(Stop::Kicked) => wrong(Wrong::Endless(TIMEOUT.as_secs())),
        Ok(Stop::TripleFault) => wrong(Wrong::Exception),
        Err(error) => Err(failed(step)(error)),
    }
}

/// Follows the routine by its reports.
struct Watch<'a> {
    routine: &'a Routine,
    step: usize,
    began: Instant,
    /// Shortest time of a timed loop.
    fastest: Duration,
}

impl<'a> Watch<'a> {
    fn new(routine: &'a Routine) -> Self {
        Watch {
            routine,
            step: 0,
            began: Instant::now(),
            fastest: Duration::MAX,
        }
    }

    fn at_end(&self) -> bool {
        self.step + 1 == self.routine.steps.len()
    }

    fn speed(&self) -> Speed {
        Speed::new(self.routine.instructions, self.fastest)
    }
}

impl ExitHandler for Watch<'_> {
    fn exit(&mut self, exit: Exit<'_>) -> Action {
        let now = Instant::now();
        let step = (self.routine.step)(&exit);
        if self.at_end() || step != Some(self.step + 1) {
            return Action::Reset;
        }
        if self.step >= self.routine.first_loop {
            self.fastest = self.fastest.min(now - self.began);
        }
        self.step += 1;
        self.began = now;
        if self.at_end() {
            Action::Shutdown
        } else {
            Action::None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(addr: u64) -> Exit<'static> {
        Exit::MmioWrite { addr, data: &[0] }
    }

    #[test]
    fn the_watch_accepts_steps_in_order_only() {
        let routine = Routine {
            step: |exit| match exit {
                Exit::MmioWrite { addr, .. } => Some(*addr as usize),
                _ => None,
            },
            ..arch::routine().unwrap()
        };
        let end = routine.steps.len() - 1;
        let mut watch = Watch::new(&routine);
        for step in 1..end {
            assert_eq!(watch.exit(report(step as u64)), Action::None);
        }
        assert!(watch.speed().mips > 0.0);
        assert_eq!(watch.exit(report(1)), Action::Reset, "a step again");
        assert_eq!(watch.exit(Exit::System(Action::None)), Action::Reset, "no step");
        assert_eq!(watch.exit(report(end as u64)), Action::Shutdown);
        assert_eq!(
            watch.exit(report(end as u64 + 1)),
            Action::Reset,
            "beyond the end"
        );
    }
}
