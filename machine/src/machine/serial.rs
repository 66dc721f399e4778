//! Passes console input to the serial port, as fast as the guest reads it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::devices::serial::Serial;
use crate::event::{EventSet, Poller, Token, WorkerThread};
use crate::sandbox::Kind;

/// Bytes read at once: what the port's FIFO holds.
const CHUNK: usize = 64;

/// The thread that does it.
pub(super) type Feeder = WorkerThread<()>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
enum Wake {
    Stop,
    Input,
    Room,
}

impl Token for Wake {
    fn into_raw(self) -> u64 {
        self as u64
    }
    fn from_raw(raw: u64) -> Option<Self> {
        [Wake::Stop, Wake::Input, Wake::Room]
            .into_iter()
            .find(|wake| wake.into_raw() == raw)
    }
}

/// Starts to carry bytes from `input` to `port` until the input ends.
pub(super) fn feed(port: Arc<Mutex<Serial>>, input: OwnedFd) -> io::Result<Feeder> {
    let room = port.lock().unwrap_or_else(PoisonError::into_inner).room()?;
    WorkerThread::spawn("serial", Kind::Console, move |stop| {
        let mut input = Input {
            port,
            file: File::from(input),
            pending: Vec::with_capacity(CHUNK),
        };
        if let Err(error) = input.carry(&stop, &room) {
            tracing::warn!("the serial port's input ends: {error}");
        }
    })
}

struct Input {
    port: Arc<Mutex<Serial>>,
    file: File,
    /// Read, but not yet taken by the port.
    pending: Vec<u8>,
}

impl Input {
    /// Input is watched only while there is room, so that it waits in the kernel and not here.
    fn carry(&mut self, stop: &EventFd, room: &EventFd) -> io::Result<()> {
        let poller = Poller::new()?;
        poller.add(stop, EventSet::IN, Wake::Stop)?;
        poller.add(room, EventSet::IN, Wake::Room)?;
        // A regular file cannot be watched: it is always ready.
        let watched = match poller.add(&self.file, EventSet::IN, Wake::Input) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => false,
            Err(error) => return Err(error),
        };
        let mut open = watched || self.read()?;
        let mut ready = Vec::new();
        loop {
            self.hand_over()?;
            if watched && open {
                let events = if self.pending.is_empty() {
                    EventSet::IN
                } else {
                    EventSet::empty()
                };
                poller.modify(&self.file, events, Wake::Input)?;
            } else if open && self.pending.is_empty() {
                open = self.read()?;
                continue;
            }
            poller.wait(&mut ready, None)?;
            for &(wake, _) in &ready {
                match wake {
                    Wake::Stop => return Ok(()),
                    Wake::Input if !self.pending.is_empty() => {}
                    Wake::Input => open = self.read()?,
                    Wake::Room => drop(room.read()),
                }
            }
            if watched && !open && poller.remove(&self.file).is_err() {
                tracing::trace!(fd = self.file.as_raw_fd(), "not watched any more");
            }
        }
    }

    /// Reads the next bytes; `false` at the end.
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        match self.file.read(&mut chunk) {
            Ok(count) => {
                self.pending.extend_from_slice(&chunk[..count]);
                Ok(count > 0)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = port.input(&self.pending)?;
        self.pending.drain(..taken);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::{Duration, Instant};

    use crate::bus::BusDevice;
    use crate::virtio::testing::CountingLine;

    fn port() -> Arc<Mutex<Serial>> {
        Arc::new(Mutex::new(Serial::new(
            Arc::new(CountingLine::default()),
            Box::new(io::sink()),
        )))
    }

    /// Reads like a guest: while the line status says that there is data.
    fn typed(port: &Mutex<Serial>, len: usize) -> Vec<u8> {
        let mut seen = Vec::new();
        let start = Instant::now();
        while seen.len() < len && start.elapsed() < Duration::from_secs(10) {
            let mut port = port.lock().unwrap();
            let (mut status, mut byte) = ([0], [0]);
            port.read(5, &mut status);
            if status[0] & 1 != 0 {
                port.read(0, &mut byte);
                seen.push(byte[0]);
            }
        }
        seen
    }

    #[test]
    fn a_long_paste_arrives_complete() {
        let text: Vec<u8> = (0..2000).map(|n| b'a' + (n % 26) as u8).collect();
        let (reader, mut writer) = io::pipe().unwrap();
        let port = port();
        let feeder = feed(Arc::clone(&port), reader.into()).unwrap();
        writer.write_all(&text).unwrap();
        assert_eq!(typed(&port, text.len()), text);
        drop(writer);
        feeder.stop();
    }

    #[test]
    fn input_from_a_file_arrives() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[b'x'; 300]).unwrap();
        let port = port();
        let feeder = feed(Arc::clone(&port), file.reopen().unwrap().into()).unwrap();
        assert_eq!(typed(&port, 300).len(), 300);
        feeder.stop();
    }
}
