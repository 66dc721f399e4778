//! All streams of one guest: virtqueues on one side, Unix sockets on the other.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

mod packets;
mod transport_reset;

use super::connection::{Connection, Phase};
use super::greeting::{Greeting, Said};
use super::packet::{Header, STREAM, op, shutdown};
use super::{HOST_CID, unix};
use transport_reset::TransportReset;

use crate::event::{EventSet, Poller};
use crate::virtio::ring::QueueError;
use crate::virtio::worker::{Context, Service, Wake};

/// Queues of the device (VIRTIO 1.3 §5.10.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const EVENT: usize = 2;
/// Streams and half-made streams at once: each costs a descriptor and up to 128 KiB.
pub const MAX_STREAMS: usize = 512;
/// Resets that wait for the guest to give room for them. A guest that provokes more without taking any loses
/// the rest.
const MAX_RESETS: usize = 512;
/// The host's ports for its own connections begin here, above those that services use.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// The listener's [`Wake::Source`]; streams count up from 1.
const LISTENER: u32 = 0;

/// A host process behind a socket.
enum Peer {
    /// It has not said yet to which port it wants.
    Greeting(Greeting),
    /// A stream.
    Stream(Box<Connection>),
    /// A stream that the guest has ended and whose last bytes the host process may not have read. Only where the
    /// guest waits for that.
    Ended(UnixStream),
}

/// All streams of one guest.
pub struct Hub {
    guest_cid: u64,
    listener: UnixListener,
    path: PathBuf,
    peers: HashMap<u32, Peer>,
    /// Stream by (host port, guest port), as long as the guest knows it.
    by_ports: HashMap<(u32, u32), u32>,
    next_id: u32,
    next_port: u32,
    /// Resets for streams that are gone.
    resets: VecDeque<Header>,
    /// Streams that have, or may have, something for the guest. Each is in it once at most.
    waiting: VecDeque<u32>,
    /// Whether the guest had room when it was last looked.
    more: bool,
    /// Whether host processes may be read from now.
    outside: bool,
    /// Whether the guest waits for what host processes do with what it has sent.
    synchronous: bool,
    /// The guest is still to be told that no stream has outlived a snapshot.
    transport_reset: TransportReset,
    scratch: Vec<u8>,
}

impl Hub {
    pub fn new(guest_cid: u64, listener: UnixListener, path: PathBuf) -> Self {
        Hub {
            guest_cid,
            listener,
            path,
            peers: HashMap::new(),
            by_ports: HashMap::new(),
            next_id: 1,
            next_port: FIRST_HOST_PORT,
            resets: VecDeque::new(),
            waiting: VecDeque::new(),
            more: false,
            outside: true,
            synchronous: false,
            transport_reset: TransportReset::None,
            scratch: Vec::new(),
        }
    }

    /// The guest was reset: no stream outlives that.
    pub fn forget_all(&mut self) {
        let Hub {
            guest_cid: _,
            listener: _,
            path: _,
            peers,
            by_ports,
            next_id: _,
            next_port: _,
            resets,
            waiting,
            more,
            outside: _,
            synchronous: _,
            transport_reset,
            scratch: _,
        } = self;
        *transport_reset = TransportReset::None;
        peers.clear();
        by_ports.clear();
        resets.clear();
        waiting.clear();
        *more = false;
    }

    /// Whether the guest knows of any stream, or is still to be told that one is gone.
    pub fn has_streams(&self) -> bool {
        !self.by_ports.is_empty() || !self.resets.is_empty() || self.transport_reset != TransportReset::None
    }

    /// The guest goes on from a snapshot: its streams are gone, and the event of a transport reset (VIRTIO 1.3
    /// §5.10.6.7) comes before any packet.
    pub fn reset_transport(&mut self) {
        self.transport_reset = TransportReset::Due;
    }

    /// Accepts host processes. Beyond [`MAX_STREAMS`] they are turned away.
    fn accept(&mut self, poller: &Poller<Wake>) -> Result<(), QueueError> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if self.peers.len() < MAX_STREAMS && stream.set_nonblocking(true).is_ok() {
                        let id = self.free_id();
                        watch(poller, &stream, id)?;
                        self.peers.insert(id, Peer::Greeting(Greeting::new(stream)));
                        self.greet(id);
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // No connection is left, or the first one was closed, or the host is out of descriptors: the
                // next event finds out.
                Err(_) => return Ok(()),
            }
        }
    }

    fn free_id(&mut self) -> u32 {
        while self.next_id == LISTENER || self.peers.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        self.next_id
    }

    /// Reads on in the greeting of a host process, and makes its stream when that is all there.
    fn greet(&mut self, id: u32) {
        let Some(Peer::Greeting(greeting)) = self.peers.get_mut(&id) else {
            return;
        };
        let said = greeting.read();
        if said == Said::TooLittle {
            return;
        }
        let Some(Peer::Greeting(Greeting { stream, .. })) = self.peers.remove(&id) else {
            return;
        };
        // A greeting that is none ends the connection: the host process reads the end.
        let Said::Port(guest_port) = said else {
            return;
        };
        let host_port = self.free_port(guest_port);
        self.by_ports.insert((host_port, guest_port), id);
        let connection = Connection::new(stream, host_port, guest_port, Phase::Requested);
        self.peers.insert(id, Peer::Stream(Box::new(connection)));
        self.enqueue(id);
    }

    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&(port, guest_port)) {
                return port;
            }
        }
    }

    /// The guest is done with the stream `id`. What it has sent still goes to the host process, unless the
    /// stream was cut off before the guest said that this was all.
    fn close(&mut self, id: u32) {
        let Some(Peer::Stream(connection)) = self.peers.get_mut(&id) else {
            return;
        };
        self.by_ports
            .remove(&(connection.host_port, connection.guest_port));
        let complete = connection.guest_shutdown & shutdown::SEND != 0;
        if complete && connection.flush().is_ok() && connection.has_output() {
            connection.phase = Phase::Draining;
        } else {
            self.end(id);
        }
    }

    /// Ends the stream `id` when the host process has been sent all there was.
    fn end(&mut self, id: u32) {
        if let Some(Peer::Stream(connection)) = self.peers.remove(&id)
            && self.synchronous
        {
            // The host process reads the end after what it has not read yet, as if this were closed.
            let _ = connection.stream.shutdown(Shutdown::Both);
            self.peers.insert(id, Peer::Ended(connection.stream));
        }
    }

    /// Ends the stream `id` on the host's side.
    fn forget(&mut self, id: u32) {
        if let Some(Peer::Stream(connection)) = self.peers.remove(&id) {
            self.by_ports
                .remove(&(connection.host_port, connection.guest_port));
        }
    }

    /// Answers a packet with a reset.
    fn reset(&mut self, to: &Header) {
        self.push_reset(to.dst_cid, to.dst_port, to.src_port);
    }

    fn push_reset(&mut self, src_cid: u64, src_port: u32, dst_port: u32) {
        if self.resets.len() < MAX_RESETS {
            let kind = STREAM;
            let dst_cid = self.guest_cid;
            self.resets.push_back(Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                kind,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    /// Puts the stream `id` in line if it has something for the guest.
    fn enqueue(&mut self, id: u32) {
        if let Some(Peer::Stream(connection)) = self.peers.get_mut(&id)
            && connection.wants_guest()
            && !self.waiting.contains(&id)
        {
            self.waiting.push_back(id);
        }
    }

    /// Something happened at the host's end of `id`.
    fn host_event(&mut self, id: u32, events: EventSet) {
        match self.peers.get_mut(&id) {
            None | Some(Peer::Ended(_)) => {}
            Some(Peer::Greeting(..)) => self.greet(id),
            Some(Peer::Stream(connection)) => {
                connection.readable |=
                    events.intersects(EventSet::IN | EventSet::HANG_UP | EventSet::READ_HANG_UP);
                let flushed = connection.flush();
                let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
                match connection.phase {
                    Phase::Draining if flushed.is_err() || gone || !connection.has_output() => {
                        self.end(id);
                    }
                    // The host process gave up before the guest answered.
                    Phase::Requested if gone => {
                        let (host_port, guest_port) = (connection.host_port, connection.guest_port);
                        let announced = !connection.pending.request;
                        self.forget(id);
                        if announced {
                            self.push_reset(HOST_CID, host_port, guest_port);
                        }
                    }
                    _ => {
                        if flushed.is_err() || gone {
                            connection.host_gone();
                        }
                        self.enqueue(id);
                    }
                }
            }
        }
    }
}

/// Watches a stream for every change. A stream that is closed is no longer watched.
fn watch(poller: &Poller<Wake>, stream: &UnixStream, id: u32) -> Result<(), QueueError> {
    let changes = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    Ok(poller.add(stream, changes, Wake::Source(id))?)
}

impl Service for Hub {
    fn begin(&mut self, context: &mut Context) -> Result<(), QueueError> {
        self.synchronous = context.determinism.is_enabled();
        context
            .poller
            .add(&self.listener, EventSet::IN, Wake::Source(LISTENER))?;
        // Streams that a pause has left.
        for (&id, peer) in &self.peers {
            match peer {
                Peer::Greeting(greeting) => watch(&context.poller, &greeting.stream, id)?,
                Peer::Stream(connection) => watch(&context.poller, &connection.stream, id)?,
                Peer::Ended(_) => {}
            }
        }
        Ok(())
    }

    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        if index != TRANSMIT {
            return Ok(()); // room in the other queues is used in `tick`
        }
        let Context {
            memory,
            rings,
            interrupt,
            poller,
            determinism,
            ..
        } = context;
        rings[TRANSMIT].drain(memory, &**interrupt, |chain| {
            self.packet(poller, determinism, chain).map(|()| 0)
        })
    }

    fn source(&mut self, context: &mut Context, id: u32, events: EventSet) -> Result<(), QueueError> {
        if id == LISTENER {
            return self.accept(&context.poller);
        }
        self.host_event(id, events);
        Ok(())
    }

    /// Not while a host process has something left to read.
    fn settled(&self) -> bool {
        self.peers.values().all(|peer| match peer {
            Peer::Greeting(..) => true,
            Peer::Stream(connection) => unix::unread(&connection.stream) == 0,
            Peer::Ended(stream) => unix::unread(stream) == 0,
        })
    }

    fn timeout(&mut self) -> Option<Duration> {
        if self.more {
            return Some(Duration::ZERO);
        }
        self.transport_reset.timeout()
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), QueueError> {
        self.outside = context.outside;
        self.transport_reset.advance(context)?;
        if self.synchronous && context.outside {
            // The processor has waited for the host processes that read them.
            self.peers
                .retain(|_, peer| !matches!(peer, Peer::Ended(stream) if unix::unread(stream) == 0));
            // Those that were passed over meanwhile, in an order that every run has.
            let mut ids: Vec<u32> = self.peers.keys().copied().collect();
            ids.sort_unstable();
            ids.into_iter().for_each(|id| self.enqueue(id));
        }
        if self.transport_reset == TransportReset::None {
            self.fill(context)?;
        }
        Ok(())
    }
}
