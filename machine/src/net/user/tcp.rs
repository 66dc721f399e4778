//! TCP: the guest's connections, each spliced to a socket of the host.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::IpAddress;

use super::poller::{Kind, Poller};
use super::splice::{Connection, GUEST_TIMEOUT, Handshake, Opening, Phase};
use super::{Forward, Protocol, connect};
use crate::net::clock::{Clock, millis};
use crate::net::stack::Stack;
use crate::net::{Addresses, Error, TcpConnection};

/// Buffer for each direction of a connection: four segments of the largest size, and a megabit for each
/// millisecond of delay. Pages are touched only as they fill.
const BUFFER: usize = 256 * 1024;

/// Connections at once, for the guest and into it together: 512 full ones hold 256 MiB. One more takes the
/// place of the one that has been unanswered for longest; when all are established, it is refused.
pub(super) const CONNECTIONS_CAP: usize = 512;

/// Connections taken from one listening socket per poll, so that a flood there does not hold the worker.
const ACCEPT_BATCH: usize = 16;

/// How long a host may take to answer the guest. Linux sends its sixth SYN after 31 s and the last one after
/// 63 s; a destination that is still silent then is dead, and the guest's next SYN asks it again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long one of several hosts may take that answer for the same address, before the next one is tried.
const TURN: Duration = Duration::from_secs(2);

/// All connections of one network.
pub struct Connections {
    addresses: Addresses,
    clock: Clock,
    listeners: Vec<(TcpListener, Forward)>,
    connections: BTreeMap<u32, Connection>,
    next_id: u32,
    next_port: u16,
    /// A read or write stopped because of the bound per round, not for want of bytes or room.
    busy: bool,
}

impl Connections {
    /// None yet.
    pub fn new(addresses: Addresses, clock: Clock) -> Connections {
        Connections {
            addresses,
            clock,
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

    /// The guest has sent a SYN: connects from the host first, to the first of `targets` that answers.
    /// Without a socket that listens, the stack refuses the SYN.
    pub fn open(
        &mut self,
        from: u16,
        to: (Ipv4Addr, u16),
        targets: Vec<SocketAddr>,
        stack: &mut Stack,
        poller: &Poller,
    ) {
        if targets.is_empty() || self.is_known(from, to, stack) || !self.make_room(stack) {
            return;
        }
        let mut left = VecDeque::from(targets);
        let Some(host) = connect::start_first(&mut left) else {
            return;
        };
        let mut socket = new_socket();
        socket.pause_synack(true);
        if socket.listen((IpAddress::Ipv4(to.0), to.1)).is_ok() {
            let handshake = Handshake {
                since: self.clock.now(),
                limit: limit(&left),
            };
            let opening = Opening {
                host,
                left,
                phase: Phase::Connecting,
                handshake,
            };
            self.insert(socket, opening, stack, poller);
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

    /// Makes room for one more connection, if there can be any.
    fn make_room(&mut self, stack: &mut Stack) -> bool {
        if self.connections.len() < CONNECTIONS_CAP {
            return true;
        }
        let opening = |connection: &Connection| {
            let since = connection.handshake?.since;
            let socket = stack.sockets.get::<Socket>(connection.socket);
            connection.is_opening(socket).then_some(since)
        };
        let oldest = self
            .connections
            .iter()
            .filter_map(|(&id, connection)| Some((opening(connection)?, id)))
            .min();
        let Some(connection) = oldest.and_then(|(_, id)| self.connections.remove(&id)) else {
            return false;
        };
        connection.give_up();
        stack.sockets.remove(connection.socket);
        true
    }

    /// Takes connections to a forwarded port and opens them to the guest.
    pub fn accept(&mut self, index: u32, stack: &mut Stack, poller: &Poller) {
        for _ in 0..ACCEPT_BATCH {
            let Some((listener, forward)) = self.listeners.get(index as usize) else {
                return;
            };
            let guest = (IpAddress::Ipv4(self.addresses.guest), forward.guest);
            let Ok((host, _)) = listener.accept() else { return };
            if host.set_nonblocking(true).is_err() || !self.make_room(stack) {
                // Dropping the stream closes it: the peer sees that it is not served.
                continue;
            }
            connect::prepare(&host);
            let mut socket = new_socket();
            let gateway = IpAddress::Ipv4(self.addresses.gateway);
            let local = (gateway, self.ephemeral_port(stack));
            let handshake = Handshake {
                since: self.clock.now(),
                limit: GUEST_TIMEOUT,
            };
            let opening = Opening {
                host,
                left: VecDeque::new(),
                phase: Phase::Open,
                handshake,
            };
            if socket.connect(stack.interface.context(), guest, local).is_ok() {
                self.insert(socket, opening, stack, poller);
            }
        }
    }

    /// A port of the gateway that no connection comes from: one that was established long ago keeps its own.
    /// There are more ports than connections, so there is one.
    fn ephemeral_port(&mut self, stack: &Stack) -> u16 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_EPHEMERAL);
            let taken = self.connections.values().any(|connection| {
                let socket = stack.sockets.get::<Socket>(connection.socket);
                socket.local_endpoint().is_some_and(|local| local.port == port)
            });
            if !taken {
                return port;
            }
        }
    }

    fn insert(&mut self, socket: Socket<'static>, opening: Opening, stack: &mut Stack, poller: &Poller) {
        while self.connections.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        if poller.add(&opening.host, Kind::Tcp, id).is_err() {
            return;
        }
        let socket = stack.sockets.add(socket);
        self.connections.insert(id, Connection::new(socket, opening));
    }

    /// Notes what the host's end of a connection is ready for.
    pub fn mark(&mut self, id: u32, readable: bool, writable: bool) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.mark(readable, writable);
        }
    }

    /// Those that the guest has, or may have by now.
    pub fn established(&self, stack: &Stack) -> Vec<TcpConnection> {
        let connections = self.connections.values();
        connections
            .filter_map(|connection| stack.connection(connection.socket))
            .collect()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Lets the next forwarded connection come from the first port again, as it does after as many as there
    /// are ports.
    #[cfg(test)]
    pub fn come_around(&mut self) {
        self.next_port = FIRST_EPHEMERAL;
    }

    /// Whether the splice stopped with work left.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Gives up what has not been answered in its time, and returns milliseconds until the next time is over.
    /// What the guest has sent must have been looked at before: after a pause, its answer may have waited for
    /// longer than its time.
    pub fn expire(&mut self, stack: &mut Stack, poller: &Poller) -> Option<u64> {
        let now = self.clock.now();
        self.connections.retain(|&id, connection| {
            let late = connection.is_late(stack.sockets.get::<Socket>(connection.socket), now)
                && !try_next(connection, id, now, poller);
            if late {
                connection.give_up();
                stack.sockets.remove(connection.socket);
            }
            !late
        });
        let deadline = |connection: &Connection| Some(connection.handshake?.deadline());
        let next = self.connections.values().filter_map(deadline).min()?;
        Some(millis(next.saturating_sub(now)))
    }

    /// Moves bytes both ways wherever there are bytes and room. Returns whether any moved.
    pub fn splice(&mut self, stack: &mut Stack, poller: &Poller) -> bool {
        let (mut moved, now) = (false, self.clock.now());
        self.connections.retain(|&id, connection| {
            let socket = stack.sockets.get_mut::<Socket>(connection.socket);
            let mut step = connection.step(socket, now);
            if let Some(error) = step.failed.take()
                && !try_next(connection, id, now, poller)
            {
                connection.fail(&error, socket, &mut step);
            }
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

/// How long a host may take when these are left that could answer for it.
fn limit(left: &VecDeque<SocketAddr>) -> Duration {
    if left.is_empty() { CONNECT_TIMEOUT } else { TURN }
}

/// Connects to the next of the hosts that could answer, if there is one.
fn try_next(connection: &mut Connection, id: u32, now: Duration, poller: &Poller) -> bool {
    while connection.phase == Phase::Connecting
        && let Some(host) = connect::start_first(&mut connection.left)
    {
        if poller.add(&host, Kind::Tcp, id).is_ok() {
            let limit = limit(&connection.left);
            connection.restart(host, Handshake { since: now, limit });
            return true;
        }
    }
    false
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
