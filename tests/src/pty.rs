//! A program on a pseudo-terminal: the test sends keys and reads the output.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

/// A terminal with a program on it.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    /// The person's side.
    keys: File,
    /// The program's side, kept open so that its settings can be looked at when the program has gone.
    line: OwnedFd,
    screen: Receiver<Vec<u8>>,
    seen: String,
    before: Termios,
}

impl Terminal {
    /// Starts `command` on a new terminal of `rows` by `columns`, which it leads.
    #[allow(unsafe_code)]
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Result<Terminal> {
        let pty = openpty(Some(&size(rows, columns)), None).context("openpty")?;
        let before = tcgetattr(&pty.slave).context("the terminal's settings")?;
        let stream = || -> Result<Stdio> { Ok(pty.slave.try_clone()?.into()) };
        command.stdin(stream()?).stdout(stream()?).stderr(stream()?);
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(|| {
                // The first session leader without a terminal that asks gets the one on its standard input.
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().context("the program could not be started")?;
        let keys = File::from(pty.master);
        let mut output = keys.try_clone()?;
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // Reading ends with an error when the last user of the line is gone.
            while let Ok(count @ 1..) = output.read(&mut piece) {
                if sender.send(piece[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Terminal {
            child,
            keys,
            line: pty.slave,
            screen,
            seen: String::new(),
            before,
        })
    }

    /// Waits until `text` is on the screen, after what was awaited before it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            match self
                .screen
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(piece) => self.seen.push_str(&String::from_utf8_lossy(&piece)),
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "{text:?} did not appear within {limit:?}; the screen: {}",
                        self.seen
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the terminal went away before {text:?}: {}", self.seen)
                }
            }
        }
    }

    /// Types.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        self.keys.write_all(keys.as_bytes()).context("typing")
    }

    /// Gives the terminal another size; its program is notified by SIGWINCH.
    #[allow(unsafe_code)]
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = size(rows, columns);
        // SAFETY: TIOCSWINSZ reads one `winsize`.
        let set = unsafe { libc::ioctl(self.keys.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        ensure!(set == 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal).context("kill")
    }

    /// Whether every key goes through as it is.
    pub fn is_raw(&self) -> Result<bool> {
        let flags = tcgetattr(self.line.as_fd())?.local_flags;
        Ok(!flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG))
    }

    /// Waits until the terminal is raw.
    pub fn wait_raw(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.is_raw()? {
            ensure!(
                Instant::now() < deadline,
                "the terminal is not raw after {limit:?}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Waits for the program to end, and returns its exit status. The terminal must be as it was before the
    /// start.
    pub fn end(mut self, limit: Duration) -> Result<Option<i32>> {
        let deadline = Instant::now() + limit;
        let status = loop {
            match self.child.try_wait()? {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
                None => {
                    self.child.kill()?;
                    bail!(
                        "the program did not end within {limit:?}; the screen: {}",
                        self.seen
                    )
                }
            }
        };
        let after = tcgetattr(self.line.as_fd())?;
        ensure!(
            after == self.before,
            "the terminal was left changed: {after:?} instead of {:?}",
            self.before
        );
        Ok(status.code())
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_program_sees_keys_and_size_and_must_leave_the_terminal_as_it_was() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "stty size; read word; echo got $word"]);
        let mut terminal = Terminal::start(shell, 30, 90).unwrap();
        terminal.wait_for("30 90", SOON).unwrap();
        assert!(!terminal.is_raw().unwrap());
        terminal.press("this\r").unwrap();
        terminal.wait_for("got this", SOON).unwrap();
        assert_eq!(terminal.end(SOON).unwrap(), Some(0));

        let mut rude = Command::new("stty");
        rude.arg("raw");
        let terminal = Terminal::start(rude, 24, 80).unwrap();
        assert!(
            terminal
                .end(SOON)
                .unwrap_err()
                .to_string()
                .contains("left changed")
        );
    }
}
