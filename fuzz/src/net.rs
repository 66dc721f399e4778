//! The user network with the metadata service in front of it: malformed frames, and the guest's side of TCP,
//! so that connections are established.
//!
//! Nothing leaves the host: connections to outside addresses go to a loopback port that does not answer.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::OnceLock;

use machine::net::metadata::{ADDRESS, InstanceDocuments, WithMetadata};
use machine::net::user::{Resolver, Spec, UserNetwork};
use machine::net::{Addresses, Backend};

use crate::input::Input;

/// Steps of one input at most.
const MAX_STEPS: usize = 200;
/// What may wait for the guest, whatever it sends: packets of two TCP stacks, other frames, an answer to ARP.
const WAITING_CAP: usize = 128 + 128 + 256 + 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ETHERNET: usize = 14;
/// Length of IPv4 and TCP headers without options.
const IPV4: usize = 20;
const TCP: usize = 20;
const DHCP_SERVER: u16 = 67;
/// Flags of TCP (RFC 9293 §3.1).
const SYN: u8 = 2;
const ACK: u8 = 16;

/// The guest's half of one TCP connection, as far as it is needed to be believed.
#[derive(Default, Clone, Copy)]
struct Half {
    sent: u32,
    received: u32,
}

struct Guest {
    network: WithMetadata<UserNetwork>,
    halves: [Half; 4],
    buffer: Vec<u8>,
}

/// Each step is a frame, or a look at what came back.
pub fn run(data: &[u8]) {
    let mut guest = Guest::new();
    let mut input = Input::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        guest.step(&mut input);
    }
    guest.receive();
}

impl Guest {
    fn new() -> Self {
        let spec = Spec {
            mac: MAC,
            addresses: Addresses::default(),
            forwards: Vec::new(),
            resolver: Resolver::At(vec![([127, 0, 0, 1], sink().2).into()]),
            search: vec!["example.org".into()],
            host_loopback: true,
        };
        let network = UserNetwork::new(&spec).expect("the host has a descriptor left");
        let documents = InstanceDocuments {
            user_data: Some(b"#!/bin/sh\n".to_vec()),
            ..InstanceDocuments::example()
        };
        Guest {
            network: WithMetadata::new(network, documents),
            halves: [Half::default(); 4],
            buffer: vec![0; 70_000],
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.byte();
        let mut frame = match kind % 8 {
            0 => {
                let len = input.half() % 2048;
                input.bytes(len.into()).to_vec()
            }
            1 => udp((Ipv4Addr::BROADCAST, DHCP_SERVER), 68, &dhcp(input)),
            2 => {
                let (to, from, len) = (destination(input), input.half(), input.half() % 1500);
                udp(to, from, input.bytes(len.into()))
            }
            3 => arp(input),
            4..7 => self.segment(input),
            _ => {
                self.network.poll();
                self.receive();
                return;
            }
        };
        if kind & 0x80 != 0 {
            let (at, byte) = (usize::from(input.byte()), input.byte());
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        confine(&mut frame, sink().2);
        self.network.transmit(&frame);
        if kind & 0x40 != 0 {
            self.network.poll();
        }
    }

    /// A segment of one of a few connections; believable unless the input says otherwise.
    fn segment(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let (which, flags, len) = (input.byte(), input.byte(), input.half() % 1460);
        let number = usize::from(which % 4);
        let to = match number {
            0 | 1 => (ADDRESS, 80),
            2 => (Addresses::default().gateway, sink().2),
            _ => destination(input),
        };
        let flags = match which & 0x30 {
            0 => SYN,
            0x10 | 0x20 => ACK | flags & 1,
            _ => flags,
        };
        let payload = if flags & SYN != 0 {
            &[]
        } else {
            input.bytes(len.into())
        };
        let mut half = self.halves[number];
        if which & 0xc0 == 0xc0 {
            half.sent = half.sent.wrapping_add(input.word());
            half.received = half.received.wrapping_add(input.word());
        } else {
            let advance = payload.len() as u32 + u32::from(flags & 3 != 0);
            self.halves[number].sent = half.sent.wrapping_add(advance);
        }
        tcp(to, 1000 + number as u16, flags, half, payload)
    }

    /// Takes what waits, and learns from it what the next segments acknowledge.
    fn receive(&mut self) {
        let mut waiting = 0;
        while let Some(len) = self.network.receive(&mut self.buffer) {
            waiting += 1;
            let frame = &self.buffer[..len];
            let Some(packet) = frame.get(ETHERNET..).filter(|packet| packet.len() >= IPV4 + TCP) else {
                continue;
            };
            if packet[9] != 6 {
                continue;
            }
            let port = u16::from_be_bytes([packet[22], packet[23]]);
            let Some(half) = self.halves.get_mut(usize::from(port.wrapping_sub(1000))) else {
                continue;
            };
            let total = u16::from_be_bytes([packet[2], packet[3]]);
            let header = u16::from(packet[32] >> 4) * 4;
            let advance =
                u32::from(total.saturating_sub(IPV4 as u16 + header)) + u32::from(packet[33] & 3 != 0);
            let sequence = u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]);
            half.received = sequence.wrapping_add(advance);
        }
        assert!(waiting <= WAITING_CAP, "{waiting} frames waited");
    }
}

fn destination(input: &mut Input<'_>) -> (Ipv4Addr, u16) {
    let Addresses { gateway, dns, .. } = Addresses::default();
    let address = input.one_of(&[
        gateway,
        dns,
        ADDRESS,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(10, 0, 2, 99),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::UNSPECIFIED,
    ]);
    let port = match input.byte() {
        0..64 => 53,
        64..128 => 80,
        128..160 => DHCP_SERVER,
        160..200 => 0,
        _ => input.half(),
    };
    (address, port)
}

fn ethernet(kind: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &MAC, &kind, payload].concat()
}

fn ipv4(protocol: u8, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((IPV4 + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(Addresses::default().guest.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    ethernet([8, 0], &packet)
}

fn udp((to, port): (Ipv4Addr, u16), from: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [from.to_be_bytes(), port.to_be_bytes()].concat();
    datagram.extend(((8 + payload.len()) as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    ipv4(17, to, &datagram)
}

fn tcp((to, port): (Ipv4Addr, u16), from: u16, flags: u8, half: Half, payload: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), port.to_be_bytes()].concat();
    segment.extend(half.sent.to_be_bytes());
    segment.extend(half.received.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    ipv4(6, to, &segment)
}

fn arp(input: &mut Input<'_>) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 1];
    body.extend(MAC);
    body.extend(input.array::<10>());
    body.extend(destination(input).0.octets());
    ethernet([8, 6], &body)
}

/// A message that begins as DHCP's do, with options of any kind.
fn dhcp(input: &mut Input<'_>) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&MAC);
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    message.extend([53, 1, input.byte() % 10]);
    let len = input.byte();
    message.extend(input.bytes(len.into()));
    message
}

/// Keeps a frame on this host: what would go to somebody outside goes to the gateway, and what would go
/// through it to a service of this host goes to `sink`.
fn confine(frame: &mut [u8], sink: u16) {
    let Some(packet) = frame.get_mut(ETHERNET..).filter(|packet| packet.len() >= IPV4) else {
        return;
    };
    let Addresses { gateway, dns, .. } = Addresses::default();
    let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
    let inside = [gateway, dns, ADDRESS, Ipv4Addr::BROADCAST].contains(&destination);
    if !inside {
        packet[16..20].copy_from_slice(&gateway.octets());
    }
    let port = usize::from(packet[0] & 0xf) * 4 + 2;
    if packet[16..20] == gateway.octets()
        && let Some(room) = packet.get_mut(port..port + 2)
        && room != DHCP_SERVER.to_be_bytes()
    {
        room.copy_from_slice(&sink.to_be_bytes());
    }
}

/// A port of this host that takes connections and datagrams and answers nothing.
fn sink() -> &'static (TcpListener, UdpSocket, u16) {
    static SINK: OnceLock<(TcpListener, UdpSocket, u16)> = OnceLock::new();
    let find = || {
        loop {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port of loopback");
            let address = listener.local_addr().expect("it is bound");
            // Another process may have the same number for datagrams.
            if let Ok(socket) = UdpSocket::bind(address) {
                return (listener, socket, address.port());
            }
        }
    };
    let sink = SINK.get_or_init(find);
    // What waits to be accepted is dropped, so that the next connection finds room.
    sink.0.set_nonblocking(true).expect("a socket");
    while sink.0.accept().is_ok() {}
    sink
}
