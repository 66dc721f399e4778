//! The end of the agent: on SIGTERM, which every process gets when the machine stops, it first reports to the
//! host how the commands that it runs have ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// Between two looks at the connections that are left. PID 1 has a deadline of its own.
const PAUSE: Duration = Duration::from_millis(2);

/// Ends this process once SIGTERM has come and `open`, the number of connections, is down to none. To be
/// called before other threads are started: they inherit that the signal is not theirs.
pub fn when_asked(open: &Arc<AtomicUsize>) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    let open = Arc::clone(open);
    thread::Builder::new().name("stop".into()).spawn(move || {
        // SIGHUP is for shells; the two come together.
        while signals.wait() != Ok(Signal::SIGTERM) {}
        while open.load(Ordering::Relaxed) > 0 {
            thread::sleep(PAUSE);
        }
        std::process::exit(0);
    })?;
    Ok(())
}
