//! The built-in user-mode network: the guest gets a network of its own, and its connections become ordinary
//! sockets of this process. No privilege, no host configuration.
//!
//! | address | what answers |
//! |---|---|
//! | 10.0.2.2 | gateway, DHCP server, ICMP echo; source of forwarded connections |
//! | 10.0.2.3 | DNS, relayed to the host's resolvers ([`resolvers`]) |
//! | 10.0.2.15 | the guest |
//!
//! TCP is terminated by our own stack and spliced to a host socket ([`tcp`]); a connection is accepted only
//! after the host's has been, so the guest sees refusals as refusals. UDP is translated datagram by datagram
//! ([`udp`]). Nothing reaches the host's loopback addresses from the guest. Nothing reaches the guest but
//! through a forwarded port.

#[allow(unsafe_code)]
mod connect;
mod dhcp;
mod dns;
mod ethernet;
mod fragments;
mod poller;
mod resolvers;
mod splice;
mod tcp;
mod udp;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;

use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket, UdpPacket};

use super::clock::Clock;
use super::stack::Stack;
use super::{Addresses, Backend, Error, TcpConnection, arp};
pub use ami::Protocol;
use ethernet::{ETHERNET_HEADER, EtherType, Framing, GATEWAY_MAC};
use fragments::Fragments;
use poller::{Poller, Source};
use resolvers::Resolvers;
pub use resolvers::{RESOLVERS, Resolver};

/// The MTU of the guest's network. The wire is memory, so the largest that IPv4 and virtio-net take together
/// gives the fewest packets; what leaves the host is segmented by the host.
const MTU: u16 = 65_520;

const DNS_PORT: u16 = 53;

/// Sockets at once, but for those of published ports: connections, translations of datagrams, and questions
/// for names with all servers.
pub const SOCKETS_CAP: usize =
    tcp::CONNECTIONS_CAP + udp::TRANSLATIONS_CAP + dns::QUESTIONS_CAP * resolvers::SERVERS_CAP;

/// Frames for the guest that do not come from the TCP stack (DHCP, ARP, UDP). A flood beyond it is dropped.
const FRAMES_CAP: usize = 256;

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
    /// Domains that short names are looked up in, for a guest that asks the DHCP server.
    pub search: Vec<String>,
    /// Whether the gateway's address leads to the host's loopback address. Off unless asked for: what listens
    /// there was not meant for a guest.
    pub host_loopback: bool,
}

/// The user-mode network of one guest.
pub struct UserNetwork {
    addresses: Addresses,
    routes: Routes,
    search: Vec<String>,
    framing: Framing,
    clock: Clock,
    stack: Stack,
    fragments: Fragments,
    resolvers: Resolvers,
    tcp: tcp::Connections,
    udp: udp::Translations,
    dns: dns::Questions,
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
            search,
            host_loopback,
        } = spec;
        let routes = Routes {
            addresses: *addresses,
            host_loopback: *host_loopback,
        };
        let poller = Poller::new()?;
        let mut tcp = tcp::Connections::new(*addresses, clock.clone());
        let mut udp = udp::Translations::new(*addresses, clock.clone());
        for forward in forwards {
            match forward.protocol {
                Protocol::Tcp => tcp.listen(forward, &poller)?,
                Protocol::Udp => udp.listen(forward, &poller)?,
            }
        }
        Ok(UserNetwork {
            addresses: *addresses,
            routes,
            search: search.clone(),
            framing: Framing { guest: *mac },
            stack: Stack::new(addresses.gateway, addresses.prefix, MTU, true, clock.clone()),
            fragments: Fragments::default(),
            resolvers: Resolvers::new(resolver.clone(), clock.clone()),
            tcp,
            udp,
            dns: dns::Questions::new(*addresses, clock.clone()),
            clock,
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
        let bytes = &bytes[..length];
        if packet.more_frags() || packet.frag_offset() != 0 {
            // What comes out is whole, so this goes no deeper.
            if let Some(whole) = self.fragments.add(bytes, self.clock.now()) {
                self.ipv4(&whole);
            }
            return;
        }
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
            let targets = match self.routes.target(to) {
                Some(Target::Host(target)) => vec![target],
                Some(Target::Resolver) => self.resolvers.in_order(),
                None => Vec::new(),
            };
            self.tcp
                .open(segment.src_port(), to, targets, &mut self.stack, &self.poller);
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
            let lease = dhcp::Lease {
                addresses: &self.addresses,
                mtu: MTU,
                search: &self.search,
            };
            if let Some(reply) = dhcp::answer(datagram.payload(), &self.framing, &lease) {
                self.frames.push(reply);
            }
        } else if source == self.addresses.guest {
            let (from, to) = (datagram.src_port(), (destination, datagram.dst_port()));
            self.outgoing(from, to, datagram.payload());
        }
    }

    fn outgoing(&mut self, from: u16, to: (Ipv4Addr, u16), payload: &[u8]) {
        if to.0 == self.addresses.gateway && self.udp.reply_to_peer(from, to.1, payload) {
            return;
        }
        match self.routes.target(to) {
            Some(Target::Host(target)) => self.udp.send(from, to, target, payload, &self.poller),
            Some(Target::Resolver) => self.dns.ask(from, payload, &mut self.resolvers, &self.poller),
            None => {}
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
            Source::Dns(id) => self.dns.mark(id),
        }
    }
}

/// Where a destination of the guest leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// To this address, seen from the host.
    Host(SocketAddr),
    /// To the host's name servers.
    Resolver,
}

/// Where the guest's destinations lead.
#[derive(Debug, Clone, Copy)]
struct Routes {
    addresses: Addresses,
    host_loopback: bool,
}

impl Routes {
    /// What a destination of the guest leads to, if it may go there: not to the host's loopback unless
    /// asked for, not to "this network", broadcast or multicast, and not to neighbours that do not exist.
    fn target(&self, (address, port): (Ipv4Addr, u16)) -> Option<Target> {
        let Addresses {
            guest,
            prefix,
            gateway,
            dns,
        } = self.addresses;
        if address == dns {
            return (port == DNS_PORT).then_some(Target::Resolver);
        }
        if address == gateway {
            let loopback = Target::Host((Ipv4Addr::LOCALHOST, port).into());
            return self.host_loopback.then_some(loopback);
        }
        let neighbour = (address.to_bits() ^ guest.to_bits()).leading_zeros() >= u32::from(prefix);
        let nowhere = address.is_loopback()
            || address.octets()[0] == 0
            || address.is_multicast()
            || address.is_broadcast();
        (!neighbour && !nowhere && port != 0).then_some(Target::Host((address, port).into()))
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
        // Each round can free buffers that the next one fills. The bound keeps one busy connection from
        // holding the worker.
        for _ in 0..4 {
            let moved = self.tcp.splice(&mut self.stack, &self.poller);
            let changed = self.stack.poll();
            if !moved && !changed {
                break;
            }
        }
        let unanswered = self.tcp.expire(&mut self.stack, &self.poller);
        let (framing, frames) = (&self.framing, &mut self.frames);
        self.udp.receive(framing, frames);
        self.dns
            .receive(framing, frames, &mut self.resolvers, &self.poller);
        let timers = [
            self.stack.next_timer(),
            unanswered,
            self.udp.expire(),
            self.dns.next_timer(),
            self.tcp.is_busy().then_some(0),
        ];
        timers.into_iter().flatten().min()
    }

    fn connections(&self) -> Vec<TcpConnection> {
        self.tcp.established(&self.stack)
    }

    fn mtu(&self) -> u16 {
        MTU
    }
}

#[cfg(test)]
mod dns_tests;
#[cfg(test)]
mod fragments_tests;
#[cfg(test)]
mod malformed_tests;
#[cfg(test)]
mod silence_tests;
#[cfg(test)]
mod tests;
