//! UDP: one connected host socket per pair of guest port and destination, forgotten when idle.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr};

use super::ethernet::{ETHERNET_HEADER, EtherType, Framing};
use super::poller::{Kind, Poller};
use super::{Forward, Frames, MTU, fragments};
use crate::net::clock::{Clock, millis};
use crate::net::{Addresses, Error};

/// Translations at once. When full, the one idle for longest goes.
pub(super) const TRANSLATIONS_CAP: usize = 256;

/// An idle translation is forgotten after this long (RFC 4787, REQ-5: five minutes or more are recommended).
/// More would cost nothing but descriptors; when they are all used, the one idle for longest goes anyway.
const IDLE: Duration = Duration::from_secs(300);

/// Datagrams taken from one socket per poll.
const BATCH: usize = 32;

/// The largest UDP payload over IPv4.
pub const DATAGRAM_CAP: usize = 65_507;

/// Headers in front of a payload.
const HEADERS: usize = 28;

/// An address on the guest's network.
pub type Endpoint = (Ipv4Addr, u16);

struct Translation {
    guest_port: u16,
    /// The destination from the guest's view.
    peer: Endpoint,
    socket: UdpSocket,
    ready: bool,
    used: Duration,
}

struct Listener {
    socket: UdpSocket,
    forward: Forward,
    ready: bool,
    /// Gateway port that stands for each outside peer, most recently used last.
    peers: Vec<(u16, SocketAddr)>,
}

/// Outside peers remembered for each forwarded port. When full, the one idle for longest goes.
const PEERS_CAP: usize = 64;

/// All translations of one network.
pub struct Translations {
    addresses: Addresses,
    clock: Clock,
    translations: BTreeMap<u32, Translation>,
    listeners: Vec<Listener>,
    next_id: u32,
    next_port: u16,
    /// For one datagram of any size; empty as long as no socket has been there that could bring one.
    buffer: Vec<u8>,
}

impl Translations {
    /// None yet.
    pub fn new(addresses: Addresses, clock: Clock) -> Translations {
        Translations {
            addresses,
            clock,
            translations: BTreeMap::new(),
            listeners: Vec::new(),
            next_id: 0,
            next_port: FIRST_PEER_PORT,
            buffer: Vec::new(),
        }
    }

    /// Opens a forwarded port.
    pub fn listen(&mut self, forward: &Forward, poller: &Poller) -> Result<(), Error> {
        let failed = |source| Error::Port {
            address: forward.host,
            source,
        };
        let socket = UdpSocket::bind(forward.host).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let host = socket.local_addr().map_err(failed)?;
        let index = u32::try_from(self.listeners.len()).unwrap_or(u32::MAX);
        poller.add(&socket, Kind::UdpListener, index).map_err(failed)?;
        let forward = Forward { host, ..*forward };
        self.listeners.push(Listener {
            socket,
            forward,
            ready: false,
            peers: Vec::new(),
        });
        Ok(())
    }

    /// The forwarded ports.
    pub fn forwards(&self) -> impl Iterator<Item = Forward> {
        self.listeners.iter().map(|listener| listener.forward)
    }

    /// Sends a datagram that the guest has sent to `to` to `target`, which that stands for.
    pub fn send(&mut self, from: u16, to: Endpoint, target: SocketAddr, payload: &[u8], poller: &Poller) {
        let now = self.clock.now();
        let known = self
            .translations
            .values_mut()
            .find(|known| known.guest_port == from && known.peer == to);
        match known {
            Some(known) => {
                known.used = now;
                // A full socket buffer loses the datagram, as a network may.
                let _ = known.socket.send(payload);
            }
            None => {
                if let Ok(translation) = translate(from, to, target, now) {
                    let _ = translation.socket.send(payload);
                    self.insert(translation, poller);
                }
            }
        }
    }

    fn insert(&mut self, translation: Translation, poller: &Poller) {
        if self.translations.len() >= TRANSLATIONS_CAP {
            let oldest = self
                .translations
                .iter()
                .min_by_key(|(_, known)| known.used)
                .map(|(&id, _)| id);
            oldest.map(|id| self.translations.remove(&id));
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        if poller.add(&translation.socket, Kind::Udp, id).is_ok() {
            self.translations.insert(id, translation);
        }
    }

    /// Whether the datagram answers an outside peer of a forwarded port; then it was sent.
    pub fn reply_to_peer(&mut self, from: u16, port: u16, payload: &[u8]) -> bool {
        let mut listeners = self.listeners.iter_mut();
        let answered = listeners.find_map(|listener| {
            let same = listener.forward.guest == from;
            let at = listener
                .peers
                .iter()
                .position(|(known, _)| same && *known == port)?;
            let (_, peer) = used(&mut listener.peers, at);
            // A full socket buffer loses the datagram, as a network may.
            let _ = listener.socket.send_to(payload, peer);
            Some(())
        });
        answered.is_some()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.translations.len()
    }

    /// Notes that a translation's socket has datagrams.
    pub fn mark(&mut self, id: u32) {
        if let Some(translation) = self.translations.get_mut(&id) {
            translation.ready = true;
        }
    }

    /// Notes that a forwarded port has datagrams.
    pub fn take(&mut self, index: u32) {
        if let Some(listener) = self.listeners.get_mut(index as usize) {
            listener.ready = true;
        }
    }

    /// Turns what the sockets have into frames for the guest.
    pub(super) fn receive(&mut self, framing: &Framing, frames: &mut Frames) {
        let now = self.clock.now();
        let Translations {
            addresses,
            translations,
            listeners,
            next_port,
            buffer,
            ..
        } = self;
        if translations.is_empty() && listeners.is_empty() {
            return;
        }
        buffer.resize(DATAGRAM_CAP, 0);
        for translation in translations.values_mut().filter(|translation| translation.ready) {
            for _ in 0..BATCH {
                // An error here is the ICMP answer to an earlier datagram: the next read goes on.
                let Ok(length) = translation.socket.recv(buffer) else {
                    translation.ready = false;
                    break;
                };
                translation.used = now;
                let to = (addresses.guest, translation.guest_port);
                push_datagram(frames, framing, translation.peer, to, &buffer[..length]);
            }
        }
        for at in 0..listeners.len() {
            if !std::mem::take(&mut listeners[at].ready) {
                continue;
            }
            for _ in 0..BATCH {
                let Ok((length, peer)) = listeners[at].socket.recv_from(buffer) else {
                    break;
                };
                let from = (addresses.gateway, peer_port(listeners, at, peer, next_port));
                let to = (addresses.guest, listeners[at].forward.guest);
                push_datagram(frames, framing, from, to, &buffer[..length]);
            }
        }
    }

    /// Forgets what is idle and returns milliseconds until the next is.
    pub fn expire(&mut self) -> Option<u64> {
        let now = self.clock.now();
        self.translations
            .retain(|_, translation| now.saturating_sub(translation.used) < IDLE);
        let busy = self.translations.values().any(|translation| translation.ready);
        let oldest = self
            .translations
            .values()
            .map(|translation| translation.used)
            .min()?;
        let left = IDLE.saturating_sub(now.saturating_sub(oldest));
        Some(if busy { 0 } else { millis(left) })
    }
}

/// First of the gateway's ports that stand for outside peers of forwarded ports.
const FIRST_PEER_PORT: u16 = 49_152;

/// The gateway's port that stands for `peer` at the listener with index `at`.
fn peer_port(listeners: &mut [Listener], at: usize, peer: SocketAddr, next: &mut u16) -> u16 {
    let peers = &mut listeners[at].peers;
    if let Some(known) = peers.iter().position(|(_, known)| *known == peer) {
        return used(peers, known).0;
    }
    if peers.len() >= PEERS_CAP {
        peers.remove(0);
    }
    // A peer of long ago keeps its port, which is looked up together with the guest's.
    let guest = listeners[at].forward.guest;
    let taken = |port: u16| {
        let same = listeners
            .iter()
            .filter(|listener| listener.forward.guest == guest);
        same.flat_map(|listener| &listener.peers)
            .any(|(known, _)| *known == port)
    };
    let mut port = *next;
    for _ in FIRST_PEER_PORT..u16::MAX {
        if !taken(port) {
            break;
        }
        port = port.checked_add(1).unwrap_or(FIRST_PEER_PORT);
    }
    *next = port.checked_add(1).unwrap_or(FIRST_PEER_PORT);
    listeners[at].peers.push((port, peer));
    port
}

/// Moves a peer to the end, where the most recently used ones are.
fn used(peers: &mut Vec<(u16, SocketAddr)>, at: usize) -> (u16, SocketAddr) {
    let peer = peers.remove(at);
    peers.push(peer);
    peer
}

fn translate(
    guest_port: u16,
    peer: Endpoint,
    target: SocketAddr,
    now: Duration,
) -> std::io::Result<Translation> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(target)?;
    Ok(Translation {
        guest_port,
        peer,
        socket,
        ready: false,
        used: now,
    })
}

/// Queues a datagram for the guest, in pieces if it is larger than the MTU.
pub(super) fn push_datagram(
    frames: &mut Frames,
    framing: &Framing,
    from: Endpoint,
    to: Endpoint,
    payload: &[u8],
) {
    let mut frame = framing.frame(EtherType::Ipv4, 0);
    frame.reserve(HEADERS + payload.len());
    append_datagram(&mut frame, from, to, payload);
    let (header, packet) = frame.split_at(ETHERNET_HEADER);
    if packet.len() <= usize::from(MTU) {
        frames.push(frame);
        return;
    }
    for piece in fragments::cut(packet, usize::from(MTU)) {
        frames.push([header, &piece].concat());
    }
}

/// Appends an IPv4 packet with one datagram to `frame`. It may be cut: what the guest forwards to a container
/// or a tunnel may have to be, and then needs a number of its own (RFC 6864).
pub fn append_datagram(frame: &mut Vec<u8>, from: Endpoint, to: Endpoint, payload: &[u8]) {
    let udp = UdpRepr {
        src_port: from.1,
        dst_port: to.1,
    };
    let udp_len = udp.header_len() + payload.len();
    let ip = Ipv4Repr {
        src_addr: from.0,
        dst_addr: to.0,
        next_header: IpProtocol::Udp,
        payload_len: udp_len,
        hop_limit: 64,
    };
    let start = frame.len();
    frame.resize(start + ip.buffer_len() + udp_len, 0);
    let checksums = ChecksumCapabilities::default();
    let packet = &mut frame[start..];
    let mut header = Ipv4Packet::new_unchecked(&mut *packet);
    ip.emit(&mut header, &checksums);
    static IDENT: AtomicU16 = AtomicU16::new(1);
    header.set_ident(IDENT.fetch_add(1, Ordering::Relaxed));
    header.set_dont_frag(false);
    header.fill_checksum();
    let mut datagram = UdpPacket::new_unchecked(&mut packet[ip.buffer_len()..]);
    let fill = |room: &mut [u8]| room.copy_from_slice(payload);
    udp.emit(
        &mut datagram,
        &from.0.into(),
        &to.0.into(),
        payload.len(),
        fill,
        &checksums,
    );
}
