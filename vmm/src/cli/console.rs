//! `console` and `logs`.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;

use clap::Args;

use super::stream::{Stream, note};
use super::{Context, Status, terminal};

/// What leaves a console: Ctrl-], as in telnet and virsh.
pub const LEAVE: u8 = 0x1d;

/// Attach to the console of an instance; Ctrl-] leaves
#[derive(Debug, Args)]
pub struct Console {
    /// Id, beginning of an id, or name
    instance: String,
}

impl Console {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let (mut output, keys) = context.service.attach_console(&self.instance)?;
        if io::stdin().is_terminal() {
            note(format_args!(
                "attached to the console of {}; Ctrl-] leaves",
                self.instance
            ));
        }
        let raw = terminal::Raw::enter_stdin()?;
        let typed = keys.try_clone()?;
        // Ends with the process: a thread that waits for a key cannot be woken.
        std::thread::Builder::new().name("keys".into()).spawn(move || {
            let left = forward_keys(|bytes| (&typed).write_all(bytes).is_ok());
            // With standard input at its end, what the guest has to say is still of interest.
            if left {
                let _ = typed.shutdown(Shutdown::Both);
            }
        })?;
        let copied = copy_out(&mut output);
        drop(raw);
        copied?;
        Ok(Status::OK)
    }
}

/// Reads keys until Ctrl-] (`true`), the end of input or until nobody `take`s them (`false`). What is not
/// from a terminal is passed on as it is.
pub fn forward_keys(mut take: impl FnMut(&[u8]) -> bool) -> bool {
    let mut stdin = io::stdin().lock();
    let keyboard = stdin.is_terminal();
    let mut chunk = [0; 4096];
    loop {
        let read = match stdin.read(&mut chunk) {
            Ok(0) => return false,
            Ok(n) => &chunk[..n],
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return false,
        };
        let leave = read.iter().position(|&b| keyboard && b == LEAVE);
        let keys = &read[..leave.unwrap_or(read.len())];
        if !keys.is_empty() && !take(keys) {
            return false;
        }
        if leave.is_some() {
            return true;
        }
    }
}

/// Copies to standard output, unbuffered, until the stream ends.
fn copy_out(from: &mut impl Read) -> anyhow::Result<()> {
    let mut chunk = [0; 4096];
    loop {
        let n = match from.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            // The connection was shut down under the reader's hands.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        Stream::Output.put(&chunk[..n])?;
    }
}

/// Show the console output of an instance
#[derive(Debug, Args)]
pub struct Logs {
    /// Follow the output until the instance ends
    #[arg(short, long)]
    follow: bool,
    /// Id, beginning of an id, or name
    instance: String,
}

impl Logs {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let live = match self.follow {
            true => context.service.follow_console(&self.instance)?,
            false => None,
        };
        match live {
            Some(mut output) => copy_out(&mut output)?,
            None => copy_out(&mut context.service.console_output(&self.instance)?.as_slice())?,
        }
        Ok(Status::OK)
    }
}
