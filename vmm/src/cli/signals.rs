//! Signals that ask the process to end or tell it about its terminal, taken by a thread of their own instead of a handler.

use nix::sys::signal::{SigSet, Signal};

/// Ctrl-C, `kill`, the terminal's disappearance, and its change of size.
const TAKEN: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGWINCH];

/// Calls `take` for each such signal. Call before other threads are started: they inherit that these signals are not
/// theirs.
pub fn deliver(mut take: impl FnMut(Signal) + Send + 'static) -> anyhow::Result<()> {
    let signals: SigSet = TAKEN.into_iter().collect();
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                take(signal);
            }
        })?;
    Ok(())
}
