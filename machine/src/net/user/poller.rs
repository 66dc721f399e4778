//! One epoll descriptor for all host sockets of a network: the device's worker watches this one.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::super::{Error, os};

/// Events taken per poll. More wait for the next one, so that no flood holds the worker.
const BATCH: usize = 64;

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A listening TCP socket, by index.
    TcpListener(u32),
    /// The host's end of a TCP connection.
    Tcp {
        /// Its number.
        id: u32,
        /// There are bytes, the end, or an error to read.
        readable: bool,
        /// There is room, or the connection is established or has failed.
        writable: bool,
    },
    /// A forwarded UDP port, by index.
    UdpListener(u32),
    /// The host's end of a UDP translation, by number.
    Udp(u32),
    /// A socket of a question for a name, by the question's number.
    Dns(u32),
}

/// What a descriptor is registered as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// See [`Source::TcpListener`].
    TcpListener,
    /// See [`Source::Tcp`].
    Tcp,
    /// See [`Source::UdpListener`].
    UdpListener,
    /// See [`Source::Udp`].
    Udp,
    /// See [`Source::Dns`].
    Dns,
}

const KINDS: [Kind; 5] = [
    Kind::TcpListener,
    Kind::Tcp,
    Kind::UdpListener,
    Kind::Udp,
    Kind::Dns,
];

/// The epoll descriptor. Closing a socket takes it out by itself.
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// An empty one.
    pub fn new() -> Result<Poller, Error> {
        Ok(Poller {
            epoll: Epoll::new().map_err(os("epoll_create1"))?,
        })
    }

    /// The descriptor to watch.
    pub fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Watches a socket under `kind` and `id`. Connections are watched for edges, since what they report
    /// stays true until the splice has used it up.
    pub fn add(&self, socket: &impl AsRawFd, kind: Kind, id: u32) -> io::Result<()> {
        let events = match kind {
            Kind::Tcp => EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED,
            Kind::TcpListener | Kind::UdpListener => EventSet::IN,
            Kind::Udp | Kind::Dns => EventSet::IN | EventSet::EDGE_TRIGGERED,
        };
        let token = (kind as u64) << 32 | u64::from(id);
        self.epoll.ctl(
            ControlOperation::Add,
            socket.as_raw_fd(),
            EpollEvent::new(events, token),
        )
    }

    /// What is ready now.
    pub fn ready(&self) -> Vec<Source> {
        let mut events = [EpollEvent::default(); BATCH];
        // An interrupted or failed wait is the same as nothing ready: the next poll asks again.
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        events[..count].iter().filter_map(source).collect()
    }
}

fn source(event: &EpollEvent) -> Option<Source> {
    let id = event.data() as u32;
    let set = event.event_set();
    let failed = set.intersects(EventSet::ERROR | EventSet::HANG_UP);
    Some(match KINDS.get((event.data() >> 32) as usize)? {
        Kind::TcpListener => Source::TcpListener(id),
        Kind::Tcp => Source::Tcp {
            id,
            readable: failed || set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
            writable: failed || set.contains(EventSet::OUT),
        },
        Kind::UdpListener => Source::UdpListener(id),
        Kind::Udp => Source::Udp(id),
        Kind::Dns => Source::Dns(id),
    })
}
