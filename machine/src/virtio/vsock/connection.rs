//! One stream between a host process and the guest: credit, shutdown, buffers (VIRTIO 1.3 §5.10.6.3).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{ReadVolatile, VolatileSlice};

use super::packet::{HEADER, op, shutdown};
use crate::virtio::ring::Chain;

/// Receive buffer of one stream, for what the guest has sent and the host process has not taken. It is what
/// is announced to the guest, so a guest that sends more breaks the protocol. With 512 streams this bounds
/// the device to 64 MiB.
pub const BUFFER: u32 = 128 << 10;
/// The guest gets a credit update when this much was freed since the last one.
const CREDIT_STEP: u32 = BUFFER / 4;

/// Packets that the guest is still to get, apart from data.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pending {
    /// The host asks for a stream.
    pub request: bool,
    /// The host accepts a stream.
    pub response: bool,
    /// How much room there is.
    pub credit_update: bool,
    /// Tell us how much room there is.
    pub credit_request: bool,
    /// What the host will no longer do, when the guest has not got it yet.
    pub shutdown: bool,
}

/// How far a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The host has asked, the guest has not answered.
    Requested,
    /// Data may flow.
    Open,
    /// The guest is done with the stream; the host process still has data to take.
    Draining,
}

/// What reading from the host process gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// That many bytes.
    Data(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again.
    End,
}

/// A stream.
#[derive(Debug)]
pub struct Connection {
    /// The host process's end.
    pub stream: UnixStream,
    /// Port on the host's side.
    pub host_port: u32,
    /// Port on the guest's side.
    pub guest_port: u32,
    /// How far it is.
    pub phase: Phase,
    /// Packets that the guest is still to get.
    pub pending: Pending,
    /// What the host will no longer do: flags of [`shutdown`].
    pub host_shutdown: u32,
    /// What the guest will no longer do.
    pub guest_shutdown: u32,
    /// Whether the stream may have something to read; false after it had nothing.
    pub readable: bool,
    /// From the guest, not yet taken by the host process. At most [`BUFFER`] bytes.
    out: VecDeque<u8>,
    /// Bytes taken by the host process so far.
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    announced: u32,
    /// Bytes sent to the guest so far.
    sent: u32,
    peer_buffer: u32,
    peer_forwarded: u32,
    /// Whether the guest was asked for credit and has not answered.
    asked: bool,
}

impl Connection {
    /// A stream whose guest has no room yet, as far as is known. `stream` does not block.
    pub fn new(stream: UnixStream, host_port: u32, guest_port: u32, phase: Phase) -> Self {
        Connection {
            stream,
            host_port,
            guest_port,
            phase,
            pending: Pending {
                request: phase == Phase::Requested,
                response: phase == Phase::Open,
                ..Pending::default()
            },
            host_shutdown: 0,
            guest_shutdown: 0,
            readable: true,
            out: VecDeque::new(),
            forwarded: 0,
            announced: 0,
            sent: 0,
            peer_buffer: 0,
            peer_forwarded: 0,
            asked: false,
        }
    }

    /// Notes what a packet from the guest says of its receive buffer.
    pub fn learn_credit(&mut self, buffer: u32, forwarded: u32) {
        self.peer_buffer = buffer;
        self.peer_forwarded = forwarded;
        if self.credit() > 0 {
            self.asked = false;
        }
    }

    /// Bytes that the guest has room for. A guest that lies about what it has taken gets nothing more.
    pub fn credit(&self) -> u32 {
        self.peer_buffer
            .saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// What to write into a header about our own receive buffer. The guest knows it from then on.
    pub fn announce(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        self.pending.credit_update = false;
        (BUFFER, self.forwarded)
    }

    /// Whether there is something for the guest, or may be.
    pub fn wants_guest(&mut self) -> bool {
        let may_read = self.may_read();
        if may_read && self.credit() == 0 && !self.asked {
            self.asked = true;
            self.pending.credit_request = true;
        }
        let Pending {
            request,
            response,
            credit_update,
            credit_request,
            shutdown,
        } = self.pending;
        request || response || credit_update || credit_request || shutdown || (may_read && self.credit() > 0)
    }

    /// The host process has closed its socket. What it has sent is still read; what the guest sends goes
    /// nowhere.
    pub fn host_gone(&mut self) {
        let unread = self.guest_shutdown & shutdown::RECEIVE == 0;
        self.host_shutdown |= if unread { shutdown::RECEIVE } else { shutdown::BOTH };
        self.pending.shutdown = true;
    }

    /// Whether the host process may have something for the guest, and the guest would take it.
    pub fn may_read(&self) -> bool {
        self.readable
            && self.phase == Phase::Open
            && self.host_shutdown & shutdown::SEND == 0
            && self.guest_shutdown & shutdown::RECEIVE == 0
    }

    /// Reads from the host process into guest memory, as much as the guest has room for.
    pub fn read_into(&mut self, buffer: &VolatileSlice<'_>) -> Read {
        let room = buffer.len().min(self.credit() as usize);
        let Ok(mut room) = buffer.subslice(0, room) else {
            return Read::Nothing;
        };
        if !self.may_read() || room.is_empty() {
            return Read::Nothing;
        }
        match self.stream.read_volatile(&mut room) {
            Ok(0) => Read::End,
            Ok(count) => {
                self.sent = self.sent.wrapping_add(count as u32);
                Read::Data(count)
            }
            Err(vm_memory::VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Read::Nothing
            }
            Err(vm_memory::VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::Interrupted => {
                Read::Nothing
            }
            // The host process went away without reading everything: no more comes from it.
            Err(_) => Read::End,
        }
    }

    /// The next packet for the guest: operation, length and flags. Its data, read from the host process if
    /// that may be looked at now (`outside`), is in `chain` behind the header's place, for which there is
    /// room.
    pub fn next_packet(&mut self, chain: &Chain<'_>, outside: bool) -> Option<(u16, u32, u32)> {
        let pending = &mut self.pending;
        if std::mem::take(&mut pending.request) {
            return Some((op::REQUEST, 0, 0));
        }
        if std::mem::take(&mut pending.response) {
            return Some((op::RESPONSE, 0, 0));
        }
        if outside && let Some(room) = chain.writable.part(HEADER, chain.writable.len() - HEADER) {
            match self.read_into(&room) {
                Read::Data(len) => return Some((op::RW, len as u32, 0)),
                Read::Nothing => {}
                Read::End => {
                    self.host_shutdown |= shutdown::SEND;
                    self.pending.shutdown = true;
                }
            }
        }
        // While there may be data, the end of the stream waits behind it.
        if self.pending.shutdown && !self.may_read() {
            self.pending.shutdown = false;
            return Some((op::SHUTDOWN, 0, self.host_shutdown));
        }
        let pending = &mut self.pending;
        if std::mem::take(&mut pending.credit_request) {
            return Some((op::CREDIT_REQUEST, 0, 0));
        }
        if std::mem::take(&mut pending.credit_update) {
            return Some((op::CREDIT_UPDATE, 0, 0));
        }
        None
    }

    /// Takes data from the guest; `false` when it is more than the room that was announced to the guest.
    pub fn take(&mut self, data: &[u8]) -> bool {
        if self.out.len() + data.len() > BUFFER as usize {
            return false;
        }
        self.out.extend(data);
        true
    }

    /// Whether the host process still has data to take.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty()
    }

    /// Hands on to the host process what it takes without blocking.
    ///
    /// # Errors
    /// When the host process is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            let (front, _) = self.out.as_slices();
            match self.stream.write(front) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.out.drain(..count);
                    self.forwarded = self.forwarded.wrapping_add(count as u32);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.out.is_empty() && self.guest_shutdown & shutdown::SEND != 0 {
            // The host process reads the end. When it is gone already, its own end is found.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
        if self.forwarded.wrapping_sub(self.announced) >= CREDIT_STEP {
            self.pending.credit_update = true;
        }
        Ok(())
    }

    /// The same where every run has to be the same: how soon a host process is gone is chance, so the guest finds
    /// out when its processor polls, by the stream's end, and not by what it sends meanwhile.
    pub fn flush_or_discard(&mut self) {
        if self.flush().is_err() {
            self.forwarded = self.forwarded.wrapping_add(self.out.len() as u32);
            self.out.clear();
            // Nothing is left to be handed on, so nothing can fail.
            let _ = self.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest learns of its credit must not depend on when the host process has closed the stream.
    #[test]
    fn what_is_sent_to_a_closed_host_process_counts_as_handed_on() {
        let forwarded = |closed: bool| {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let kept = (!closed).then_some(theirs);
            let mut connection = Connection::new(ours, 1025, 5000, Phase::Open);
            assert!(connection.take(b"a report"));
            assert_eq!(connection.flush().is_ok(), kept.is_some());
            connection.flush_or_discard();
            assert!(!connection.has_output());
            connection.forwarded
        };
        assert_eq!(forwarded(true), forwarded(false));
        assert_eq!(forwarded(true), 8);
    }
}
