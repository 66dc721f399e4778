//! The built-in user-mode network: the guest gets a network of its own, and its connections become ordinary sockets of this
//! process. No privilege, no host configuration.
//!
//! | address | what answers |
//! |---|---|
//! | 10.0.2.2 | gateway, DHCP server, ICMP echo; source of forwarded connections |
//! | 10.0.2.3 | DNS, relayed to the host's resolver |
//! | 10.0.2.15 | the guest |
//!
//! TCP is terminated by our own stack and spliced to a host socket ([`tcp`]); a connection is accepted only after the host's has been,
//! so the guest sees refusals as refusals. UDP is translated datagram by datagram ([`udp`]). Nothing reaches
//! the host's loopback addresses from the guest. Nothing reaches the guest but through a forwarded port.

#[allow(unsafe_code)]
mod connect;
mod dhcp;
mod ethernet;
mod poller;
mod splice;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::OnceLock;

use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket, UdpPacket};

use super::clock::Clock;
use super::stack::Stack;
use super::{Addresses, Backend, Error, arp};
use crate::sandbox::{self, Kind};
use ethernet::{ETHERNET_HEADER, EtherType, Framing, GATEWAY_MAC};
use poller::{Poller, Source};

/// The MTU of the guest's network. The wire is memory, so the largest that IPv4 and virtio-net take together
/// gives the fewest packets; what leaves the host is segmented by the host.
const MTU: u16 = 65_520;

const DNS_PORT: u16 = 53;

/// Where the host's resolvers are named.
pub const RESOLVERS: &str = "/etc/resolv.conf";

/// Frames for the guest that do not come from the TCP stack (DHCP, ARP, UDP). A flood beyond it is dropped.
const FRAMES_CAP: usize = 256;

/// Transport protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Where the host listens; port 0 lets the host choose.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest: u16,
}

/// What a user-mode network is made from.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The guest's MAC address.
    pub mac: [u8; 6],
    /// Addresses on the guest's network.
    pub addresses: Addresses,
    /// Forwarded ports.
    pub forwards: Vec<Forward>,
    /// Where the guest's questions for names go.
    pub resolver: Resolver,
    /// Whether the gateway's address leads to the host's loopback address. Off unless asked for: what listens there was not
    /// meant for a guest.
    pub host_loopback: bool,
}

/// A resolver of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolver {
    /// The first one in `/etc/resolv.conf`, looked up when the guest first asks for a name.
    Host,
    /// This one, or none.
    At(Option<SocketAddr>),
}

impl Resolver {
    fn address(self) -> Option<SocketAddr> {
        static HOST: OnceLock<Option<SocketAddr>> = OnceLock::new();
        let look_up = || {
            // The thread that carries packets opens no files.
            let text = sandbox::ask(Kind::Control, || std::fs::read_to_string(RESOLVERS));
            let text = text.and_then(|text| text).unwrap_or_default();
            parse_resolvers(&text).first().copied()
        };
        match self {
            Resolver::Host => *HOST.get_or_init(look_up),
            Resolver::At(address) => address,
        }
    }
}

fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        line.trim()
            .strip_prefix("nameserver")?
            .trim()
            .parse::<IpAddr>()
            .ok()
    };
    text.lines()
        .filter_map(address)
        .map(|address| (address, DNS_PORT).into())
        .collect()
}

/// The user-mode network of one guest.
pub struct UserNetwork {
    addresses: Addresses,
    framing: Framing,
    stack: Stack,
    tcp: tcp::Connections,
    udp: udp::Translations,
    poller: Poller,
    frames: Frames,
}

/// Frames for the guest, bounded.
#[derive(Default)]
struct Frames(VecDeque<Vec<u8>>);

impl Frames {
    fn push(&mut self, frame: Vec<u8>) {
        if self.0.len() < FRAMES_CAP {
            self.0.push_back(frame);
        }
    }
}

impl UserNetwork {
    /// Sets the network up and opens the forwarded ports.
    pub fn new(spec: &Spec) -> Result<UserNetwork, Error> {
        UserNetwork::with_clock(spec, Clock::monotonic())
    }

    /// The same, with time-outs on `clock`.
    pub fn with_clock(spec: &Spec, clock: Clock) -> Result<UserNetwork, Error> {
        let Spec {
            mac,
            addresses,
            forwards,
            resolver,
            host_loopback,
        } = spec;
        let routes = Routes {
            addresses: *addresses,
            resolver: *resolver,
            host_loopback: *host_loopback,
        };
        let poller = Poller::new()?;
        let mut tcp = tcp::Connections::new(routes, clock.clone());
        let mut udp = udp::Translations::new(routes, clock.clone());
        for forward in forwards {
            match forward.protocol {
                Protocol::Tcp => tcp.listen(forward, &poller)?,
                Protocol::Udp => udp.listen(forward, &poller)?,
            }
        }
        Ok(UserNetwork {
            addresses: *addresses,
            framing: Framing { guest: *mac },
            stack: Stack::new(addresses.gateway, addresses.prefix, MTU, true, clock),
            tcp,
            udp,
            poller,
            frames: Frames::default(),
        })
    }

    /// The forwarded ports as they are: where the host was to choose, its choice.
    pub fn forwards(&self) -> Vec<Forward> {
        self.tcp.forwards().chain(self.udp.forwards()).collect()
    }

    fn ipv4(&mut self, bytes: &[u8]) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else {
            return;
        };
        let length = usize::from(packet.total_len());
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        if packet.more_frags() || packet.frag_offset() != 0 {
            // With this MTU nothing needs to be fragmented.
            return;
        }
        let bytes = &bytes[..length];
        match packet.next_header() {
            IpProtocol::Udp => self.datagram(source, destination, packet.payload()),
            _ if source != self.addresses.guest => {}
            IpProtocol::Tcp => self.segment(destination, packet.payload(), bytes),
            IpProtocol::Icmp
                if destination == self.addresses.gateway || destination == self.addresses.dns =>
            {
                self.stack.push(bytes);
            }
            _ => {}
        }
    }

    fn segment(&mut self, destination: Ipv4Addr, payload: &[u8], packet: &[u8]) {
        let Ok(segment) = TcpPacket::new_checked(payload) else {
            return;
        };
        if segment.syn() && !segment.ack() {
            let to = (destination, segment.dst_port());
            self.tcp
                .open(segment.src_port(), to, &mut self.stack, &self.poller);
        }
        self.stack.push(packet);
        if segment.syn() {
            // A listening socket takes the next SYN for its address: let it be this one.
            self.stack.poll();
        }
    }

    fn datagram(&mut self, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) {
        let Ok(datagram) = UdpPacket::new_checked(payload) else {
            return;
        };
        if datagram.dst_port() == dhcp::SERVER_PORT {
            if let Some(reply) = dhcp::answer(datagram.payload(), &self.framing, &self.addresses, MTU) {
                self.frames.push(reply);
            }
        } else if source == self.addresses.guest {
            let to = (destination, datagram.dst_port());
            self.udp
                .send(datagram.src_port(), to, datagram.payload(), &self.poller);
        }
    }

    fn ready(&mut self, source: Source) {
        match source {
            Source::TcpListener(index) => self.tcp.accept(index, &mut self.stack, &self.poller),
            Source::Tcp {
                id,
                readable,
                writable,
            } => self.tcp.mark(id, readable, writable),
            Source::UdpListener(index) => self.udp.take(index),
            Source::Udp(id) => self.udp.mark(id),
        }
    }
}

/// Where the guest's destinations lead.
#[derive(Debug, Clone, Copy)]
struct Routes {
    addresses: Addresses,
    resolver: Resolver,
    host_loopback: bool,
}

impl Routes {
    /// The host-side address for a destination of the guest, if it may go there: not to the host's loopback unless
    /// asked for, not to "this network", broadcast or multicast, and not to neighbours that do not exist.
    fn target(&self, (address, port): (Ipv4Addr, u16)) -> Option<SocketAddr> {
        let Addresses {
            guest,
            prefix,
            gateway,
            dns,
        } = self.addresses;
        if address == dns {
            return (port == DNS_PORT).then(|| self.resolver.address()).flatten();
        }
        if address == gateway {
            return self.host_loopback.then_some((Ipv4Addr::LOCALHOST, port).into());
        }
        let neighbour = (address.to_bits() ^ guest.to_bits()).leading_zeros() >= u32::from(prefix);
        let nowhere = address.is_loopback()
            || address.octets()[0] == 0
            || address.is_multicast()
            || address.is_broadcast();
        (!neighbour && !nowhere && port != 0).then_some((address, port).into())
    }
}

impl Backend for UserNetwork {
    fn transmit(&mut self, frame: &[u8]) {
        match self.framing.parse(frame) {
            Some((EtherType::Arp, payload)) => {
                let ours = [self.addresses.gateway, self.addresses.dns];
                if let Some(reply) = arp::answer(payload, &ours, GATEWAY_MAC) {
                    self.frames.push(reply);
                }
            }
            Some((EtherType::Ipv4, payload)) => self.ipv4(payload),
            None => {}
        }
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        while let Some(frame) = self.frames.0.pop_front() {
            if let Some(room) = buffer.get_mut(..frame.len()) {
                room.copy_from_slice(&frame);
                return Some(frame.len());
            }
        }
        let header = self.framing.header(EtherType::Ipv4);
        loop {
            let taken = self.stack.pop(|packet| {
                let length = ETHERNET_HEADER + packet.len();
                let room = buffer.get_mut(..length)?;
                room[..ETHERNET_HEADER].copy_from_slice(&header);
                room[ETHERNET_HEADER..].copy_from_slice(packet);
                Some(length)
            })?;
            if taken.is_some() {
                return taken;
            }
        }
    }

    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(self.poller.descriptor(), libc::EPOLLIN as u32)]
    }

    fn poll(&mut self) -> Option<u64> {
        for source in self.poller.ready() {
            self.ready(source);
        }
        // Each round can free buffers that the next one fills. The bound keeps one busy connection from holding the worker.
        for _ in 0..4 {
            let moved = self.tcp.splice(&mut self.stack);
            let changed = self.stack.poll();
            if !moved && !changed {
                break;
            }
        }
        let unanswered = self.tcp.expire(&mut self.stack);
        let framing = &self.framing;
        self.udp.receive(framing, &mut self.frames);
        let expiry = self.udp.expire();
        let busy = self.tcp.is_busy().then_some(0);
        [self.stack.next_timer(), unanswered, expiry, busy]
            .into_iter()
            .flatten()
            .min()
    }

    fn mtu(&self) -> u16 {
        MTU
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod silence_tests;
#[cfg(test)]
mod tests;
