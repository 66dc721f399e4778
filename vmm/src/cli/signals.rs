//! Signals that ask the process to end or concern its terminal, taken by a thread of their own instead of a
//! handler.

use std::io;

use machine::sandbox::{self, Kind};
use nix::sys::signal::{SigSet, Signal};

/// Ctrl-C, `kill`, the terminal's disappearance, and its change of size.
const TAKEN: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH];

/// These signals, kept back from every thread.
#[derive(Debug)]
pub struct Held(SigSet);

/// Keeps the signals back until they are [delivered](Held::deliver). Call before other threads are started:
/// they inherit that these signals are not theirs.
pub fn hold() -> io::Result<Held> {
    let signals: SigSet = TAKEN.into_iter().collect();
    signals.thread_block()?;
    Ok(Held(signals))
}

impl Held {
    /// Calls `take` for each such signal, those that came meanwhile included.
    pub fn deliver(self, mut take: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
        sandbox::spawn("signals", Kind::Control, move || {
            while let Ok(signal) = self.0.wait() {
                take(signal);
            }
        })?;
        Ok(())
    }
}
