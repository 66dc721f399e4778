//! TCP: the guest's connections, each spliced to a socket of the host.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::IpAddress;

use super::poller::{Kind, Poller};
use super::{Forward, Protocol, Routes};
use crate::net::Error;
use crate::net::stack::Stack;

/// Buffer for each direction of a connection: four segments of the largest size, and a megabit for each millisecond of delay.
/// Pages are touched only as they fill.
const BUFFER: usize = 256 * 1024;

/// Connections at once, for the guest and into it together: 512 full ones hold 256 MiB. More are refused.
const CONNECTIONS_CAP: usize = 512;

/// Connections taken from one listening socket per poll, so that a flood there does not hold the worker.
const ACCEPT_BATCH: usize = 16;

/// How long the guest may take to answer a forwarded connection.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection's life, as far as the host's end is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The host has not answered yet; the guest's SYN is held.
    Connecting,
    /// Bytes flow.
    Open,
    /// Given up: the stack still has to tell the guest.
    Aborted,
}

struct Connection {
    socket: SocketHandle,
    host: TcpStream,
    phase: Phase,
    readable: bool,
    writable: bool,
    /// The host has said that nothing more comes.
    host_ended: bool,
    /// The host has been told that nothing more comes from the guest.
    guest_ended: bool,
}

/// All connections of one network.
pub struct Connections {
    routes: Routes,
    listeners: Vec<(TcpListener, Forward)>,
    connections: BTreeMap<u32, Connection>,
    next_id: u32,
    next_port: u16,
    /// A read or write stopped because of the bound per round, not for want of bytes or room.
    busy: bool,
}

impl Connections {
    /// None yet.
    pub fn new(routes: Routes) -> Connections {
        Connections {
            routes,
            listeners: Vec::new(),
            connections: BTreeMap::new(),
            next_id: 0,
            next_port: FIRST_EPHEMERAL,
            busy: false,
        }
    }

    /// Opens a forwarded port.
    pub fn listen(&mut self, forward: &Forward, poller: &Poller) -> Result<(), Error> {
        let failed = |source| Error::Port {
            address: forward.host,
            source,
        };
        let listener = TcpListener::bind(forward.host).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let host = listener.local_addr().map_err(failed)?;
        let index = u32::try_from(self.listeners.len()).unwrap_or(u32::MAX);
        poller.add(&listener, Kind::TcpListener, index).map_err(failed)?;
        self.listeners.push((listener, Forward { host, ..*forward }));
        Ok(())
    }

    /// The forwarded ports.
    pub fn forwards(&self) -> impl Iterator<Item = Forward> {
        self.listeners
            .iter()
            .map(|(_, forward)| *forward)
            .filter(|forward| forward.protocol == Protocol::Tcp)
    }

    /// The guest has sent a SYN: connects from the host first. Without a socket that listens, the stack refuses the SYN.
    pub fn open(&mut self, from: u16, to: (Ipv4Addr, u16), stack: &mut Stack, poller: &Poller) {
        if self.connections.len() >= CONNECTIONS_CAP || self.is_known(from, to, stack) {
            return;
        }
        let Some(target) = self.routes.target(to) else {
            return;
        };
        let Ok(host) = connect::start(target) else { return };
        let mut socket = new_socket();
        socket.pause_synack(true);
        if socket.listen((IpAddress::Ipv4(to.0), to.1)).is_ok() {
            self.insert(socket, host, Phase::Connecting, stack, poller);
        }
    }

    /// Whether the SYN is a retransmission.
    fn is_known(&self, from: u16, to: (Ipv4Addr, u16), stack: &Stack) -> bool {
        self.connections.values().any(|connection| {
            let socket = stack.sockets.get::<Socket>(connection.socket);
            let ends = (socket.local_endpoint(), socket.remote_endpoint());
            matches!(ends, (Some(local), Some(remote))
                if local.addr == to.0.into() && local.port == to.1 && remote.port == from)
        })
    }

    /// Takes connections to a forwarded port and opens them to the guest.
    pub fn accept(&mut self, index: u32, stack: &mut Stack, poller: &Poller) {
        for _ in 0..ACCEPT_BATCH {
            let Some((listener, forward)) = self.listeners.get(index as usize) else {
                return;
            };
            let guest = (IpAddress::Ipv4(self.routes.addresses.guest), forward.guest);
            let Ok((host, _)) = listener.accept() else { return };
            if self.connections.len() >= CONNECTIONS_CAP || host.set_nonblocking(true).is_err() {
                // Dropping the stream closes it: the peer sees that nobody has time.
                continue;
            }
            let _ = host.set_nodelay(true);
            let mut socket = new_socket();
            socket.set_timeout(Some(FORWARD_TIMEOUT));
            let local = (
                IpAddress::Ipv4(self.routes.addresses.gateway),
                self.ephemeral_port(),
            );
            if socket.connect(stack.interface.context(), guest, local).is_ok() {
                self.insert(socket, host, Phase::Open, stack, poller);
            }
        }
    }

    fn ephemeral_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port == u16::MAX {
            FIRST_EPHEMERAL
        } else {
            port + 1
        };
        port
    }

    fn insert(
        &mut self,
        socket: Socket<'static>,
        host: TcpStream,
        phase: Phase,
        stack: &mut Stack,
        poller: &Poller,
    ) {
        while self.connections.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        if poller.add(&host, Kind::Tcp, id).is_err() {
            return;
        }
        let socket = stack.sockets.add(socket);
        let connection = Connection {
            socket,
            host,
            phase,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
        };
        self.connections.insert(id, connection);
    }

    /// Notes what the host's end of a connection is ready for.
    pub fn mark(&mut self, id: u32, readable: bool, writable: bool) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.readable |= readable;
            connection.writable |= writable;
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Whether the splice stopped with work left.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Moves bytes both ways wherever there are bytes and room. Returns whether any moved.
    pub fn splice(&mut self, stack: &mut Stack) -> bool {
        let mut moved = false;
        self.busy = false;
        self.connections.retain(|_, connection| {
            let socket = stack.sockets.get_mut::<Socket>(connection.socket);
            let step = connection.step(socket);
            moved |= step.moved;
            if step.finished {
                stack.sockets.remove(connection.socket);
            }
            !step.finished
        });
        self.busy = moved;
        moved
    }
}

/// First of the ports that forwarded connections come from (RFC 6335).
const FIRST_EPHEMERAL: u16 = 49_152;

fn new_socket() -> Socket<'static> {
    let mut socket = Socket::new(
        SocketBuffer::new(vec![0; BUFFER]),
        SocketBuffer::new(vec![0; BUFFER]),
    );
    // The splice writes whole buffers; waiting for more would only add delay.
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

/// What a round did with a connection.
#[derive(Default)]
struct Step {
    moved: bool,
    finished: bool,
}

impl Connection {
    fn step(&mut self, socket: &mut Socket<'static>) -> Step {
        let mut step = Step::default();
        match self.phase {
            // A reset takes a socket that was opened by a SYN back to listening.
            Phase::Connecting if matches!(socket.state(), State::Closed | State::Listen) => {
                step.finished = true
            }
            Phase::Connecting if self.writable => match connect::finish(&self.host) {
                Ok(()) => {
                    let _ = self.host.set_nodelay(true);
                    socket.pause_synack(false);
                    self.phase = Phase::Open;
                    step.moved = true;
                }
                Err(_) => self.abort(socket, &mut step),
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
        } else if matches!(socket.state(), State::Closed | State::TimeWait) {
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

    fn send_to_host(&mut self, socket: &mut Socket<'static>, step: &mut Step) -> std::io::Result<()> {
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
            // The peer may already be gone; reading will tell.
            let _ = self.host.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn send_to_guest(&mut self, socket: &mut Socket<'static>, step: &mut Step) -> std::io::Result<()> {
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

#[allow(unsafe_code)]
mod connect {
    //! Connecting without waiting, which the standard library does not offer.

    use std::io;
    use std::net::{SocketAddr, TcpStream};
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    /// Begins to connect to `target`.
    pub fn start(target: SocketAddr) -> io::Result<TcpStream> {
        let family = if target.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        // SAFETY: socket takes no pointers.
        let fd = unsafe {
            libc::socket(
                family,
                libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just returned by socket and nobody else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let result = match target {
            SocketAddr::V4(target) => {
                let address = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: target.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(target.ip().octets()),
                    },
                    sin_zero: [0; 8],
                };
                let length = size_of_val(&address) as libc::socklen_t;
                // SAFETY: `address` is a live sockaddr_in of the length given.
                unsafe { libc::connect(fd, (&raw const address).cast(), length) }
            }
            SocketAddr::V6(target) => {
                let address = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: target.port().to_be(),
                    sin6_flowinfo: target.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: target.ip().octets(),
                    },
                    sin6_scope_id: target.scope_id(),
                };
                let length = size_of_val(&address) as libc::socklen_t;
                // SAFETY: `address` is a live sockaddr_in6 of the length given.
                unsafe { libc::connect(fd, (&raw const address).cast(), length) }
            }
        };
        let error = io::Error::last_os_error();
        if result < 0 && error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
        Ok(TcpStream::from(socket))
    }

    /// How connecting ended, once the socket is writable.
    pub fn finish(stream: &TcpStream) -> io::Result<()> {
        stream.take_error()?.map_or(Ok(()), Err)
    }

    /// Makes closing send a reset instead of an orderly end.
    pub fn reset_on_close(stream: &TcpStream) {
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        let length = size_of_val(&linger) as libc::socklen_t;
        // SAFETY: `linger` is a live struct linger of the length given. A failure only makes the end orderly.
        unsafe {
            let pointer = (&raw const linger).cast();
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_LINGER,
                pointer,
                length,
            );
        }
    }
}
