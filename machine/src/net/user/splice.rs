//! One TCP connection: bytes between the guest's end, in our stack, and a socket of the host.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

use super::connect;

/// How long the guest may take to answer: a connection into it, or the answer to its own.
pub const GUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The state of a connection at the host's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The host has not answered yet; the guest's SYN is held.
    Connecting,
    /// Bytes flow.
    Open,
    /// Given up: the stack still has to reset the guest's end.
    Aborted,
}

/// How long an opening connection may stay unanswered. It ends with the handshake: an established connection
/// may be silent for as long as its two ends like, half-closed or not.
#[derive(Debug, Clone, Copy)]
pub struct Handshake {
    /// When it began.
    pub since: Duration,
    /// How long it may take.
    pub limit: Duration,
}

impl Handshake {
    /// When it is given up.
    pub fn deadline(&self) -> Duration {
        self.since + self.limit
    }
}

/// A connection that is about to open.
pub struct Opening {
    /// The host's end.
    pub host: TcpStream,
    /// Other hosts that could answer instead.
    pub left: VecDeque<SocketAddr>,
    /// Whether the host's end has been answered.
    pub phase: Phase,
    /// Until both have.
    pub handshake: Handshake,
}

/// A connection with both its ends.
pub struct Connection {
    /// The guest's end.
    pub socket: SocketHandle,
    /// The host's end.
    pub host: TcpStream,
    /// Other hosts that could answer instead.
    pub left: VecDeque<SocketAddr>,
    /// How far it is.
    pub phase: Phase,
    /// Until both ends have answered.
    pub handshake: Option<Handshake>,
    readable: bool,
    writable: bool,
    /// The host has said that nothing more comes.
    host_ended: bool,
    /// The host's end was shut down for writing: nothing more comes from the guest.
    guest_ended: bool,
}

/// What a round did with a connection.
#[derive(Default)]
pub struct Step {
    /// Bytes or a state have moved.
    pub moved: bool,
    /// Nothing is left of it.
    pub finished: bool,
    /// The host cannot be reached.
    pub failed: Option<io::Error>,
}

impl Connection {
    /// Opens a connection.
    pub fn new(socket: SocketHandle, opening: Opening) -> Connection {
        Connection {
            socket,
            host: opening.host,
            left: opening.left,
            phase: opening.phase,
            handshake: Some(opening.handshake),
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
        }
    }

    /// Goes on with another host, which has not answered yet.
    pub fn restart(&mut self, host: TcpStream, handshake: Handshake) {
        self.host = host;
        self.handshake = Some(handshake);
        self.readable = false;
        self.writable = false;
    }

    /// Tells the guest that the host cannot be reached. Silence is passed on as silence.
    pub fn fail(&mut self, error: &io::Error, socket: &mut Socket<'static>, step: &mut Step) {
        if error.kind() == ErrorKind::TimedOut {
            step.finished = true;
        } else {
            self.abort(socket, step);
        }
    }

    /// Notes what the host's end is ready for.
    pub fn mark(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Whether one of the two ends has yet to answer.
    pub fn is_opening(&self, socket: &Socket<'static>) -> bool {
        self.phase == Phase::Connecting || matches!(socket.state(), State::SynSent | State::SynReceived)
    }

    /// Whether its handshake has taken too long.
    pub fn is_late(&self, socket: &Socket<'static>, now: Duration) -> bool {
        let late = |handshake: Handshake| handshake.deadline() <= now;
        self.is_opening(socket) && self.handshake.is_some_and(late)
    }

    /// Forgets a connection that was not answered. The guest gets nothing, as from a host that is not there:
    /// what it sends again begins anew. A peer that connected to us gets a reset.
    pub fn give_up(&self) {
        if self.phase != Phase::Connecting {
            connect::reset_on_close(&self.host);
        }
    }

    /// Moves what can be moved.
    pub fn step(&mut self, socket: &mut Socket<'static>, now: Duration) -> Step {
        if !self.is_opening(socket) {
            self.handshake = None;
        }
        let mut step = Step::default();
        // A reset takes a socket that was opened by a SYN back to listening.
        match self.phase {
            Phase::Connecting if matches!(socket.state(), State::Closed | State::Listen) => {
                step.finished = true
            }
            Phase::Connecting if self.writable => match connect::finish(&self.host) {
                Ok(()) => {
                    self.left.clear();
                    self.handshake = Some(Handshake {
                        since: now,
                        limit: GUEST_TIMEOUT,
                    });
                    connect::prepare(&self.host);
                    socket.pause_synack(false);
                    self.phase = Phase::Open;
                    step.moved = true;
                }
                Err(error) => step.failed = Some(error),
            },
            Phase::Connecting => {}
            Phase::Aborted => step.finished = true,
            Phase::Open => self.flow(socket, &mut step),
        }
        step
    }

    fn flow(&mut self, socket: &mut Socket<'static>, step: &mut Step) {
        if let Err(_reset) = self
            .send_to_host(socket, step)
            .and_then(|()| self.send_to_guest(socket, step))
        {
            self.abort(socket, step);
        } else if matches!(socket.state(), State::Closed | State::TimeWait | State::Listen) {
            if !(self.guest_ended && self.host_ended) {
                // The guest reset the connection, or never answered: pass that on instead of an orderly end.
                connect::reset_on_close(&self.host);
            }
            step.finished = true;
        }
    }

    fn abort(&mut self, socket: &mut Socket<'static>, step: &mut Step) {
        socket.abort();
        self.phase = Phase::Aborted;
        step.moved = true;
    }

    fn send_to_host(&mut self, socket: &mut Socket<'static>, step: &mut Step) -> io::Result<()> {
        while self.writable && socket.can_recv() {
            let sent = socket.recv(|bytes| match self.host.write(bytes) {
                Ok(n) => (n, Ok(n)),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Ok(Ok(_)) => step.moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        let half_closed = matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if half_closed && !socket.can_recv() && !self.guest_ended {
            self.guest_ended = true;
            step.moved = true;
            // The peer may already be gone; reading finds out.
            let _ = self.host.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn send_to_guest(&mut self, socket: &mut Socket<'static>, step: &mut Step) -> io::Result<()> {
        while self.readable && !self.host_ended && socket.can_send() {
            let read = socket.send(|room| match self.host.read(room) {
                Ok(n) => (n, Ok(n)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.host_ended = true;
                    step.moved = true;
                    socket.close();
                }
                Ok(Ok(_)) => step.moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }
}
