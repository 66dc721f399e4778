//! Malformed and malicious frames, from a generator with a fixed seed: whatever comes, the network neither
//! stops nor grows.

use std::net::{TcpListener, UdpSocket};

use super::tests::{Guest, MAC, gateway, udp_frame};
use super::*;
use crate::entropy::chance::Chance;
use crate::net::metadata::{InstanceDocuments, WithMetadata};

/// Frames of one run.
const FRAMES: usize = 30_000;

/// What may wait for the guest, whatever it sends: packets of the two TCP stacks, other frames, an answer to
/// ARP.
const WAITING_CAP: usize = 128 + 128 + FRAMES_CAP + 1;

/// A frame that is right as far as a driver could make it: what is wrong is put into it afterwards.
fn frame(chance: &mut Chance) -> Vec<u8> {
    let dns = Addresses::default().dns;
    let targets = [
        (gateway(), 67),
        (Ipv4Addr::BROADCAST, 67),
        (dns, 53),
        (gateway(), 80),
        (crate::net::metadata::ADDRESS, 80),
        (Ipv4Addr::new(10, 0, 2, 99), 9),
        (Ipv4Addr::new(127, 0, 0, 1), 22),
    ];
    let target = targets[chance.index(targets.len())];
    let length = chance.index(400);
    let mut frame = match chance.index(4) {
        0 => arp_frame(chance),
        1 => udp_frame(68, (Ipv4Addr::BROADCAST, 67), &dhcp_message(chance)),
        // What is sent to port 53 is for nobody: the resolver of these tests is none.
        _ => udp_frame(chance.any() as u16, target, &chance.bytes(length)),
    };
    if chance.index(3) == 0 {
        // A segment of TCP with flags of any kind, instead of the datagram.
        frame[ETHERNET_HEADER + 9] = 6;
        let flags = ETHERNET_HEADER + 20 + 12;
        if let Some(room) = frame.get_mut(flags..flags + 2) {
            room.copy_from_slice(&[0x50, chance.any() as u8]);
        }
    } else if chance.index(8) == 0 {
        frame[ETHERNET_HEADER + 9] = 1;
    }
    frame
}

fn arp_frame(chance: &mut Chance) -> Vec<u8> {
    let mut frame = [[0xff; 6].as_slice(), &MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    frame.extend(chance.bytes(16));
    let asked = if chance.index(2) == 0 {
        gateway().to_bits()
    } else {
        chance.any() as u32
    };
    frame.extend(asked.to_be_bytes());
    frame
}

/// A message that begins as DHCP's do, with options of any kind.
fn dhcp_message(chance: &mut Chance) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[28..34].copy_from_slice(&MAC);
    message[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    let kind = chance.index(10) as u8;
    message.extend([53, 1, kind]);
    let length = chance.index(80);
    message.extend(chance.bytes(length));
    message
}

/// Cuts it, lets it grow, or changes bytes of its headers.
fn damage(frame: &mut Vec<u8>, chance: &mut Chance) {
    match chance.index(4) {
        0 => frame.truncate(chance.index(frame.len() + 1)),
        1 => {
            let length = chance.index(1500);
            frame.extend(chance.bytes(length));
        }
        _ => {
            for _ in 0..=chance.index(4) {
                let headers = frame.len().min(80);
                let at = chance.index(headers);
                frame[at] = chance.any() as u8;
            }
        }
    }
}

/// Keeps a frame from leaving this test: what would go to somebody outside goes to the gateway, and what
/// would go through it to a service of this host goes to `sink`.
fn confine(frame: &mut [u8], sink: u16) {
    let Some(packet) = frame
        .get_mut(ETHERNET_HEADER..)
        .filter(|packet| packet.len() >= 20)
    else {
        return;
    };
    let destination = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
    let inside = destination == crate::net::metadata::ADDRESS
        || destination.is_broadcast()
        || destination.is_loopback()
        || destination.octets().starts_with(&[10, 0, 2]);
    if !inside {
        packet[16..20].copy_from_slice(&gateway().octets());
    }
    let port = usize::from(packet[0] & 0xf) * 4 + 2;
    if packet[16..20] == gateway().octets()
        && let Some(room) = packet.get_mut(port..port + 2)
        && room != dhcp::SERVER_PORT.to_be_bytes()
    {
        room.copy_from_slice(&sink.to_be_bytes());
    }
}

/// A port of this host that takes connections and datagrams and answers nothing.
fn sink() -> (TcpListener, UdpSocket, u16) {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Another process may have the same number for datagrams.
        if let Ok(socket) = UdpSocket::bind(address) {
            return (listener, socket, address.port());
        }
    }
}

/// Throws the frames at `network` and takes what it answers now and then only, as a guest does that does not
/// listen.
fn send_malformed(network: &mut impl Backend, seed: u64) -> usize {
    let (mut chance, mut answers) = (Chance(seed), 0);
    let (_listener, _socket, port) = sink();
    let mut buffer = vec![0; 70_000];
    for n in 0..FRAMES {
        let mut frame = frame(&mut chance);
        if chance.index(3) > 0 {
            damage(&mut frame, &mut chance);
        }
        confine(&mut frame, port);
        network.transmit(&frame);
        if n % 64 == 63 {
            network.poll();
        }
        if n % 10_000 == 9_999 {
            let mut waiting = 0;
            while network.receive(&mut buffer).is_some() {
                waiting += 1;
            }
            assert!(waiting <= WAITING_CAP, "{waiting} frames wait after {n}");
            answers += waiting;
        }
    }
    answers
}

#[test]
fn malformed_frames_neither_stop_nor_grow_the_network() {
    for seed in [1, 0x5eed, u64::MAX] {
        let mut guest = Guest::new(Vec::new(), None);
        let answers = send_malformed(&mut guest.network, seed);
        assert!(answers > 0, "no malformed frame got an answer");
        assert!(guest.network.udp.len() <= 256, "{}", guest.network.udp.len());
        assert!(guest.network.tcp.len() <= 512, "{}", guest.network.tcp.len());
        // It still does what it is there for.
        let question = udp_frame(68, (Ipv4Addr::BROADCAST, 67), &discover());
        assert!(
            guest.raw(&question).is_some(),
            "no offer after the flood of {seed}"
        );
    }
}

#[test]
fn malformed_frames_neither_stop_nor_grow_the_metadata_service() {
    for seed in [2, 0xfeed] {
        let network = Guest::new(Vec::new(), None).network;
        let mut service = WithMetadata::new(network, InstanceDocuments::default());
        send_malformed(&mut service, seed);
        service.transmit(&udp_frame(68, (Ipv4Addr::BROADCAST, 67), &discover()));
        service.poll();
        let mut buffer = vec![0; 70_000];
        assert!(service.receive(&mut buffer).is_some(), "no offer after {seed}");
    }
}

fn discover() -> Vec<u8> {
    let mut message = dhcp_message(&mut Chance(1));
    message.truncate(240);
    message.extend([53, 1, 1, 255]);
    message
}
