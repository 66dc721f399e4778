//! The states of an instance and the one table of transitions between them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of an instance, by EC2's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A process is building its machine.
    Pending,
    /// The guest runs.
    Running,
    /// The guest has been asked to shut down, or is being ended.
    Stopping,
    /// No process; the volumes are kept.
    Stopped,
    /// Being removed; nothing leads out of here.
    Terminated,
}

/// What happens to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A process takes the instance to run it.
    Start,
    /// The guest has executed its first instruction.
    Started,
    /// A shutdown of the guest was requested.
    Stop,
    /// The guest has started anew within the same process.
    Rebooted,
    /// The guest is no more, or its machine could not be built, and the instance process says so.
    Ended,
    /// The instance process vanished.
    Lost,
    /// Its removal was requested.
    Terminate,
}

impl State {
    /// Every state.
    pub const ALL: [State; 5] = [
        State::Pending,
        State::Running,
        State::Stopping,
        State::Stopped,
        State::Terminated,
    ];

    /// The state after `event`, or `None` where the event is not allowed. This is the only place that knows.
    pub const fn after(self, event: Event) -> Option<State> {
        use Event::{Ended, Lost, Rebooted, Start, Started, Stop, Terminate};
        use State::{Pending, Running, Stopped, Stopping, Terminated};
        Some(match (self, event) {
            (Stopped, Start) => Pending,
            (Pending, Started) => Running,
            (Running, Rebooted) => Running,
            (Pending | Running, Stop) => Stopping,
            // A second request, with less time.
            (Stopping, Stop) => Stopping,
            (Pending | Running | Stopping, Ended | Lost) => Stopped,
            // Twice, so that a removal that was cut short can be finished.
            (Stopped | Terminated, Terminate) => Terminated,
            _ => return None,
        })
    }

    /// Whether a process must own the instance in this state.
    pub const fn has_process(self) -> bool {
        matches!(self, State::Pending | State::Running | State::Stopping)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            State::Pending => "pending",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Stopped => "stopped",
            State::Terminated => "terminated",
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Event::Start => "start",
            Event::Started => "started",
            Event::Stop => "stop",
            Event::Rebooted => "reboot",
            Event::Ended => "ended",
            Event::Lost => "lost",
            Event::Terminate => "terminate",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 7] = [
        Event::Start,
        Event::Started,
        Event::Stop,
        Event::Rebooted,
        Event::Ended,
        Event::Lost,
        Event::Terminate,
    ];

    #[test]
    fn every_transition_from_launch_to_removal() {
        let mut state = State::Pending;
        for (event, expected) in [
            (Event::Started, State::Running),
            (Event::Rebooted, State::Running),
            (Event::Stop, State::Stopping),
            (Event::Ended, State::Stopped),
            (Event::Start, State::Pending),
            (Event::Ended, State::Stopped),
            (Event::Terminate, State::Terminated),
        ] {
            state = state
                .after(event)
                .unwrap_or_else(|| panic!("{state} refuses {event}"));
            assert_eq!(state, expected, "after {event}");
        }
    }

    #[test]
    fn losing_the_process_stops_exactly_the_states_that_have_one() {
        for state in State::ALL {
            assert_eq!(state.after(Event::Lost).is_some(), state.has_process(), "{state}");
        }
    }

    #[test]
    fn terminated_has_no_transition() {
        for event in EVENTS {
            assert!(
                matches!(State::Terminated.after(event), None | Some(State::Terminated)),
                "{event}"
            );
        }
    }

    #[test]
    fn nothing_that_runs_can_be_terminated_or_started() {
        for state in State::ALL.into_iter().filter(|s| s.has_process()) {
            assert_eq!(state.after(Event::Terminate), None, "{state}");
            assert_eq!(state.after(Event::Start), None, "{state}");
        }
    }
}
