//! The instance metadata service at 169.254.169.254, as EC2 has it (IMDSv2), from inside the network device:
//! it stands in front of any backend, so it works with the user network and a tap device alike.

pub mod documents;
mod http;
mod token;

use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::time::Duration;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use super::clock::{Clock, millis};
use super::stack::Stack;
use super::{Backend, TcpConnection, arp};
pub use documents::{InstanceDocuments, PublicKey};
pub use http::{Answer, LiveTags, Service};

/// Where EC2 has it.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The MAC address that answers for it where the guest takes it for a neighbour.
const MAC: [u8; 6] = [0x02, 0x4b, 0x69, 0x6c, 0x6e, 0xfe];

const PORT: u16 = 80;
const ETHERNET_HEADER: usize = 14;
/// Offset of the destination address in an IPv4 frame.
const IPV4_DESTINATION: usize = ETHERNET_HEADER + 16;

/// Connections at once. A guest that floods the service waits for itself.
const CONNECTIONS: usize = 8;

/// Bytes of a request or a piece of a response that a connection holds.
const BUFFER: usize = 16 * 1024;

/// A connection on which nothing has moved for this long is closed, and reset after as long again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The service's MTU: what every guest interface can take.
const MTU: u16 = 1500;

/// One connection of the guest to the service.
struct Connection {
    socket: SocketHandle,
    request: Vec<u8>,
    response: Vec<u8>,
    /// The client wants no more after this response.
    closing: bool,
    /// When it was opened, or bytes last moved.
    moved: Duration,
}

/// A backend with the metadata service in front of it.
pub struct WithMetadata<B> {
    backend: B,
    service: Service,
    stack: Stack,
    clock: Clock,
    /// None until the guest's first packet for the service: most guests never do, and their buffers are the
    /// larger part of what a network holds.
    connections: Vec<Connection>,
    /// The guest's MAC address as its last frame to us had it, and where it sent that frame.
    guest: [u8; 6],
    router: [u8; 6],
    replies: Vec<Vec<u8>>,
}

impl<B: Backend> WithMetadata<B> {
    /// Serves `documents` in front of `backend`.
    pub fn new(backend: B, documents: InstanceDocuments) -> WithMetadata<B> {
        WithMetadata::with_clock(backend, documents, Clock::monotonic())
    }

    /// The same, with time-outs and the lifetime of tokens on `clock`.
    pub(crate) fn with_clock(backend: B, documents: InstanceDocuments, clock: Clock) -> WithMetadata<B> {
        let mut stack = Stack::new(ADDRESS, 32, MTU, false, clock.clone());
        // The guest is reached whatever its address: there is one wire. Two routes fit, this is the first.
        let _ = stack.interface.routes_mut().add_default_ipv4_route(ADDRESS);
        WithMetadata {
            backend,
            service: Service::new(documents, clock.clone()),
            stack,
            clock,
            connections: Vec::new(),
            guest: [0; 6],
            router: MAC,
            replies: Vec::new(),
        }
    }

    /// What changes the tags that the guest reads.
    pub fn tags(&self) -> LiveTags {
        self.service.tags()
    }

    /// The backend behind the service.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Takes a frame that is meant for the service. Returns whether it was.
    fn intercept(&mut self, frame: &[u8]) -> bool {
        let Some((header, payload)) = frame.split_at_checked(ETHERNET_HEADER) else {
            return false;
        };
        match header[12..] {
            [0x08, 0x00] if frame.get(IPV4_DESTINATION..IPV4_DESTINATION + 4) == Some(&ADDRESS.octets()) => {
                self.router.copy_from_slice(&header[..6]);
                self.guest.copy_from_slice(&header[6..12]);
                self.listen();
                self.stack.push(payload);
                true
            }
            [0x08, 0x06] => match arp::answer(payload, &[ADDRESS], MAC) {
                Some(reply) => {
                    self.replies.clear();
                    self.replies.push(reply);
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    fn listen(&mut self) {
        if self.connections.is_empty() {
            let connection = |_| Connection::new(&mut self.stack);
            self.connections = (0..CONNECTIONS).map(connection).collect();
            // Before the stack sees the first packet, which it would refuse otherwise.
            self.serve();
        }
    }

    #[cfg(test)]
    fn states(&self) -> Vec<State> {
        let state = |connection: &Connection| self.stack.sockets.get::<Socket>(connection.socket).state();
        self.connections.iter().map(state).collect()
    }

    fn serve(&mut self) {
        let now = self.clock.now();
        for connection in &mut self.connections {
            connection.serve(&mut self.stack, &mut self.service, now);
        }
    }

    /// Milliseconds until the next connection has been idle for too long.
    fn next_timeout(&self) -> Option<u64> {
        let now = self.clock.now();
        let open = self.connections.iter().filter(|connection| {
            let state = self.stack.sockets.get::<Socket>(connection.socket).state();
            !matches!(state, State::Listen | State::Closed)
        });
        let left = open.map(|connection| {
            let idle = now.saturating_sub(connection.moved);
            let limit = if idle < IDLE_TIMEOUT {
                IDLE_TIMEOUT
            } else {
                IDLE_TIMEOUT * 2
            };
            millis(limit.saturating_sub(idle))
        });
        left.min()
    }
}

impl Connection {
    fn new(stack: &mut Stack) -> Connection {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        let socket = stack.sockets.add(socket);
        Connection {
            socket,
            request: Vec::new(),
            response: Vec::new(),
            closing: false,
            moved: Duration::ZERO,
        }
    }

    fn serve(&mut self, stack: &mut Stack, service: &mut Service, now: Duration) {
        let socket = stack.sockets.get_mut::<Socket>(self.socket);
        let idle = now.saturating_sub(self.moved);
        match socket.state() {
            State::Closed => {
                self.request.clear();
                self.response.clear();
                self.closing = false;
                socket.set_hop_limit(None);
                // A closed socket can always listen.
                let _ = socket.listen(PORT);
                return;
            }
            State::Listen => {
                self.moved = now;
                return;
            }
            // Nothing is delayed by forgetting a finished connection at once: the ports are the guest's.
            State::TimeWait => socket.abort(),
            _ if idle >= IDLE_TIMEOUT * 2 => socket.abort(),
            // A client that keeps the connection for its next request sees its end before it sends that.
            _ if idle >= IDLE_TIMEOUT => socket.close(),
            _ => {}
        }
        self.take_requests(socket, service, now);
        self.send(socket, now);
        if self.response.is_empty() && (self.closing || !socket.may_recv()) && socket.may_send() {
            socket.close();
        }
    }

    fn take_requests(&mut self, socket: &mut Socket<'static>, service: &mut Service, now: Duration) {
        while socket.can_recv() && self.request.len() < BUFFER {
            let room = BUFFER - self.request.len();
            let taken = socket.recv(|bytes| {
                let n = bytes.len().min(room);
                self.request.extend_from_slice(&bytes[..n]);
                (n, n)
            });
            if taken.is_err() {
                break;
            }
            self.moved = now;
        }
        if self.response.is_empty()
            && let Some(answer) = service.take_request(&mut self.request)
        {
            self.response = answer.bytes;
            self.closing = answer.close;
            socket.set_hop_limit(answer.hop_limit);
        }
    }

    fn send(&mut self, socket: &mut Socket<'static>, now: Duration) {
        if !self.response.is_empty() && socket.can_send() {
            // `can_send` was just seen to hold.
            let sent = socket.send_slice(&self.response).unwrap_or(0);
            self.response.drain(..sent);
            self.moved = now;
        }
    }
}

impl<B: Backend> Backend for WithMetadata<B> {
    fn transmit(&mut self, frame: &[u8]) {
        if !self.intercept(frame) {
            self.backend.transmit(frame);
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        if let Some(reply) = self.replies.pop()
            && let Some(room) = buffer.get_mut(..reply.len())
        {
            room.copy_from_slice(&reply);
            return Some(reply.len());
        }
        let header = [self.guest.as_slice(), &self.router, &[0x08, 0x00]].concat();
        let ours = self.stack.pop(|packet| {
            let room = buffer.get_mut(..ETHERNET_HEADER + packet.len())?;
            room[..ETHERNET_HEADER].copy_from_slice(&header);
            room[ETHERNET_HEADER..].copy_from_slice(packet);
            Some(room.len())
        });
        ours.flatten().or_else(|| self.backend.receive(buffer))
    }

    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        self.backend.descriptors()
    }

    fn poll(&mut self) -> Option<u64> {
        self.serve();
        while self.stack.poll() {
            self.serve();
        }
        [self.backend.poll(), self.stack.next_timer(), self.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    fn offloads(&self) -> bool {
        self.backend.offloads()
    }

    fn accept_features(&mut self, features: u64) {
        self.backend.accept_features(features);
    }

    fn connections(&self) -> Vec<TcpConnection> {
        let ours = self.connections.iter();
        let ours = ours.filter_map(|connection| self.stack.connection(connection.socket));
        ours.chain(self.backend.connections()).collect()
    }

    fn mtu(&self) -> u16 {
        self.backend.mtu()
    }
}

#[cfg(test)]
mod tests;
