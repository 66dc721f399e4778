//! Raw mode that is always undone.
//!
//! [`Raw`] restores the terminal when it is dropped; a panic hook does so too, because with `panic = "abort"`
//! nothing is dropped. The caller handles signals that end the process: it takes them in a thread and returns
//! through `main`.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{SetArg, SpecialCharacterIndices, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// How the terminal was before, while it is raw. One per process, as the terminal is.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Standard input in raw mode: every key goes through, none is echoed or makes a signal. Ends when dropped.
#[derive(Debug)]
pub struct Raw(());

impl Raw {
    /// Puts standard input into raw mode. `None` when it is not a terminal, or is raw already.
    pub fn enter_stdin() -> io::Result<Option<Raw>> {
        let stdin = io::stdin();
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if !stdin.is_terminal() || before.is_some() {
            return Ok(None);
        }
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                hook(panic);
            }));
        });
        let saved = tcgetattr(&stdin)?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        *before = Some(saved);
        Ok(Some(Raw(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Undoes raw mode if it is on, for whoever ends the process at once. What was typed meanwhile and not read
/// is kept.
pub fn restore() {
    // A panic while the lock is held must not wait for itself.
    let Ok(mut before) = BEFORE.try_lock() else { return };
    if let Some(saved) = before.take() {
        // Nothing is left to do when even that fails: the terminal is gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &saved);
    }
}

/// Rows and columns of the terminal on standard output, if there is one.
#[allow(unsafe_code)]
pub fn size() -> Option<(u16, u16)> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one `winsize`, for which there is room.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}
