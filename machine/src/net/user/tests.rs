//! A guest with a stack of its own, on the other end of the wire.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr, Ipv4Repr};

use super::*;
use crate::net::testing::{Leaps, Nic};
use crate::net::{LostConnections, SavedConnections};

pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub(super) struct Guest {
    pub(super) network: UserNetwork,
    pub(super) nic: Nic,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    pub(super) time: Leaps,
}

impl Guest {
    pub(super) fn new(forwards: Vec<Forward>, resolver: Option<SocketAddr>) -> Guest {
        Guest::with_resolver(forwards, Resolver::At(resolver.into_iter().collect()))
    }

    pub(super) fn with_resolver(forwards: Vec<Forward>, resolver: Resolver) -> Guest {
        let addresses = Addresses::default();
        let spec = Spec {
            mac: MAC,
            addresses,
            forwards,
            resolver,
            search: vec!["corp.example".into(), "a..b".into(), "example.".into()],
            host_loopback: true,
        };
        let mut nic = Nic::new(usize::from(MTU) + ETHERNET_HEADER);
        let config = Config::new(EthernetAddress(MAC).into());
        let mut interface = Interface::new(config, &mut nic, StackInstant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(addresses.guest.into(), addresses.prefix))
                .unwrap()
        });
        interface
            .routes_mut()
            .add_default_ipv4_route(addresses.gateway)
            .unwrap();
        let time = Leaps::new();
        let network = UserNetwork::with_clock(&spec, time.clock()).unwrap();
        Guest {
            network,
            nic,
            interface,
            sockets: SocketSet::new(Vec::new()),
            time,
        }
    }

    pub(super) fn exchange(&mut self) {
        let now = self.time.instant();
        self.interface.poll(now, &mut self.nic, &mut self.sockets);
        while let Some(frame) = self.nic.from_guest.pop_front() {
            self.network.transmit(&frame);
        }
        self.network.poll();
        let mut buffer = vec![0; usize::from(MTU) + ETHERNET_HEADER];
        while let Some(length) = self.network.receive(&mut buffer) {
            self.nic.to_guest.push_back(buffer[..length].to_vec());
        }
        self.interface.poll(now, &mut self.nic, &mut self.sockets);
    }

    pub(super) fn until<R>(&mut self, mut done: impl FnMut(&mut Guest) -> Option<R>) -> R {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            self.exchange();
            if let Some(result) = done(self) {
                return result;
            }
            assert!(Instant::now() < limit, "nothing happened for too long");
            thread::sleep(Duration::from_micros(200));
        }
    }

    pub(super) fn connect(&mut self, to: (Ipv4Addr, u16), from: u16) -> SocketHandle {
        let handle = self.sockets.add(socket());
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(self.interface.context(), (IpAddress::from(to.0), to.1), from)
            .unwrap();
        handle
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// The next frame for the guest, as it is.
    pub(super) fn frame(&mut self) -> Vec<u8> {
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(frame) = self.raw(&[]) {
                return frame;
            }
            assert!(Instant::now() < limit, "no frame came");
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends a frame as it is and returns what comes back.
    pub(super) fn raw(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        self.network.transmit(frame);
        self.network.poll();
        let mut buffer = vec![0; 70_000];
        self.network
            .receive(&mut buffer)
            .map(|length| buffer[..length].to_vec())
    }
}

pub(super) fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 200_000]);
    tcp::Socket::new(buffer(), buffer())
}

pub(super) fn gateway() -> Ipv4Addr {
    Addresses::default().gateway
}

#[test]
fn bytes_go_both_ways_and_both_ends_close() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n * 7 / 3) as u8).collect();
    let expected = sent.clone();
    let host = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        stream.write_all(&got).unwrap();
        got == expected
    });
    let mut guest = Guest::new(Vec::new(), None);
    let handle = guest.connect((gateway(), port), 50_000);
    let (mut offset, mut got) = (0, Vec::new());
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() && offset < sent.len() {
            offset += socket.send_slice(&sent[offset..]).unwrap();
            if offset == sent.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| (bytes.len(), got.extend_from_slice(bytes)))
                .unwrap();
        }
        (offset == sent.len() && !socket.is_active()).then_some(())
    });
    assert!(
        host.join().unwrap(),
        "the host got other bytes than the guest sent"
    );
    assert_eq!(got.len(), sent.len());
    assert!(got == sent, "the guest got other bytes than it sent");
    guest.until(|guest| guest.network.tcp.is_empty().then_some(()));
}

#[test]
fn a_refused_connection_is_refused() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut guest = Guest::new(Vec::new(), None);
    let handle = guest.connect((gateway(), port), 50_001);
    let mut established = false;
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        established |= socket.may_send();
        (socket.state() == tcp::State::Closed).then_some(())
    });
    assert!(!established, "the guest believed to be connected");
}

#[test]
fn a_reset_of_the_host_reaches_the_guest() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let host = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        // Closing with unread bytes resets.
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        thread::sleep(Duration::from_millis(50));
    });
    let mut guest = Guest::new(Vec::new(), None);
    let handle = guest.connect((gateway(), port), 50_002);
    let mut said = false;
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() && !said {
            socket.send_slice(b"hello").unwrap();
            said = true;
        }
        (said && socket.state() == tcp::State::Closed).then_some(())
    });
    host.join().unwrap();
}

#[test]
fn a_connection_from_before_a_snapshot_is_reset_by_its_next_segment() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(Vec::new(), None);
    let handle = guest.connect((gateway(), port), 50_003);
    guest.until(|guest| guest.tcp(handle).may_send().then_some(()));
    let (mut host, _) = server.accept().unwrap();
    // The machine goes on in another process, whose network is new.
    let fresh = Guest::new(Vec::new(), None);
    guest.network = fresh.network;
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host's end is closed");
    guest.tcp(handle).send_slice(b"still there?").unwrap();
    guest.until(|guest| (guest.tcp(handle).state() == tcp::State::Closed).then_some(()));
}

#[test]
fn a_forwarded_port_leads_to_the_guest() {
    let forward = Forward {
        protocol: Protocol::Tcp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: 80,
    };
    let mut guest = Guest::new(vec![forward], None);
    let address = guest.network.forwards()[0].host;
    assert!(address.ip().is_loopback() && address.port() != 0);
    let handle = guest.sockets.add(socket());
    guest.tcp(handle).listen(80).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    guest.until(|guest| {
        let socket = guest.tcp(handle);
        if socket.recv_queue() == 3 {
            socket
                .recv(|bytes| (bytes.len(), assert_eq!(bytes, b"GET")))
                .unwrap();
            socket.send_slice(b"found").unwrap();
            socket.close();
        }
        client.is_finished().then_some(())
    });
    assert_eq!(client.join().unwrap(), "found");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = taken.local_addr().unwrap();
    let forwards = vec![Forward {
        protocol: Protocol::Tcp,
        host,
        guest: 80,
    }];
    let addresses = Addresses::default();
    let spec = Spec {
        mac: MAC,
        addresses,
        forwards,
        resolver: Resolver::At(Vec::new()),
        search: Vec::new(),
        host_loopback: false,
    };
    let error = UserNetwork::new(&spec).err().expect("the port is taken");
    assert!(matches!(error, crate::net::Error::Port { address, .. } if address == host));
    assert!(error.to_string().contains(&host.to_string()), "{error}");
}

#[test]
fn the_guest_gets_the_hosts_loopback_only_when_asked_for() {
    let routes = |host_loopback| Routes {
        addresses: Addresses::default(),
        host_loopback,
    };
    let address = |text: &str| (text.parse().unwrap(), 80);
    for nowhere in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.1",
        "255.255.255.255",
        "10.0.2.99",
        "10.0.2.3",
    ] {
        assert_eq!(routes(true).target(address(nowhere)), None, "{nowhere}");
    }
    assert_eq!(routes(false).target(address("10.0.2.2")), None);
    assert_eq!(
        routes(true).target(address("10.0.2.2")),
        Some(Target::Host("127.0.0.1:80".parse().unwrap()))
    );
    assert_eq!(
        routes(false).target(address("192.0.2.1")),
        Some(Target::Host("192.0.2.1:80".parse().unwrap()))
    );
    assert_eq!(routes(false).target(("192.0.2.1".parse().unwrap(), 0)), None);
}

pub(super) fn udp_frame(from: u16, to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = [ethernet::GATEWAY_MAC.as_slice(), &MAC, &[8, 0]].concat();
    udp::append_datagram(&mut frame, (Addresses::default().guest, from), to, payload);
    frame
}

pub(super) fn udp_payload(frame: &[u8]) -> (Ipv4Addr, u16, Vec<u8>) {
    let packet = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..]).unwrap();
    assert!(packet.verify_checksum());
    let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
    assert!(datagram.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
    (
        packet.src_addr(),
        datagram.dst_port(),
        datagram.payload().to_vec(),
    )
}

/// An echo request from the guest (RFC 792).
fn echo_frame(to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    let echo = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 1,
        data: payload,
    };
    let ip = Ipv4Repr {
        src_addr: Addresses::default().guest,
        dst_addr: to,
        next_header: IpProtocol::Icmp,
        payload_len: echo.buffer_len(),
        hop_limit: 64,
    };
    let mut packet = vec![0; ip.buffer_len() + echo.buffer_len()];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &checksums);
    let body = &mut packet[ip.buffer_len()..];
    echo.emit(&mut Icmpv4Packet::new_unchecked(body), &checksums);
    [&ethernet::GATEWAY_MAC, &MAC, [8, 0].as_slice(), &packet].concat()
}

#[test]
fn the_gateway_answers_an_echo_request_and_the_world_does_not() {
    let mut guest = Guest::new(Vec::new(), None);
    for to in [gateway(), Addresses::default().dns] {
        let frame = guest.raw(&echo_frame(to, b"are you there")).unwrap();
        let packet = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..]).unwrap();
        let answer = Icmpv4Packet::new_checked(packet.payload()).unwrap();
        assert!(packet.verify_checksum() && answer.verify_checksum());
        assert_eq!(
            (packet.src_addr(), answer.msg_type()),
            (to, Icmpv4Message::EchoReply)
        );
        assert_eq!(
            (answer.echo_ident(), answer.data()),
            (7, b"are you there".as_slice())
        );
    }
    let elsewhere = Ipv4Addr::new(192, 0, 2, 1);
    assert_eq!(guest.raw(&echo_frame(elsewhere, b"are you there")), None);
}

#[test]
fn dns_goes_to_the_hosts_resolver_and_comes_back_from_ours() {
    let resolver = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut guest = Guest::new(Vec::new(), resolver.local_addr().ok());
    let dns = Addresses::default().dns;
    assert_eq!(guest.raw(&udp_frame(4444, (dns, 53), b"question")), None);
    let mut buffer = [0; 100];
    let (length, from) = resolver.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"question");
    resolver.send_to(b"answer", from).unwrap();
    let answer = guest.frame();
    assert_eq!(udp_payload(&answer), (dns, 4444, b"answer".to_vec()));
}

#[test]
fn a_forwarded_datagram_is_answered_to_its_sender() {
    let forward = Forward {
        protocol: Protocol::Udp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: 53,
    };
    let mut guest = Guest::new(vec![forward], None);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"ping", guest.network.forwards()[0].host).unwrap();
    let frame = guest.frame();
    let packet = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..]).unwrap();
    let port = UdpPacket::new_checked(packet.payload()).unwrap().src_port();
    assert_eq!(udp_payload(&frame), (gateway(), 53, b"ping".to_vec()));
    guest.raw(&udp_frame(53, (gateway(), port), b"pong"));
    let mut buffer = [0; 10];
    assert_eq!(client.recv(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"pong");
}

#[test]
fn translations_are_bounded() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = sink.local_addr().unwrap().port();
    let mut guest = Guest::new(Vec::new(), None);
    for from in 1..2000 {
        guest.raw(&udp_frame(from, (gateway(), port), b"flood"));
    }
    assert!(guest.network.udp.len() <= 256, "{}", guest.network.udp.len());
}

#[test]
fn connections_are_bounded() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(Vec::new(), None);
    for from in 1000..2000 {
        guest.connect((gateway(), port), from);
        guest.exchange();
    }
    assert!(guest.network.tcp.len() <= 512, "{}", guest.network.tcp.len());
}

#[test]
fn the_guest_finds_its_gateway_and_its_address() {
    let mut guest = Guest::new(Vec::new(), None);
    let arp = |target: [u8; 4]| {
        let mut frame = vec![0xff; 6];
        frame.extend_from_slice(&MAC);
        frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend_from_slice(&MAC);
        frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(&target);
        frame
    };
    let reply = guest.raw(&arp([10, 0, 2, 2])).expect("an answer for the gateway");
    assert_eq!(&reply[..6], &MAC);
    assert_eq!(&reply[22..28], &ethernet::GATEWAY_MAC);
    assert_eq!(
        guest.raw(&arp([10, 0, 2, 15])),
        None,
        "the guest's own address must look free"
    );
}

#[test]
fn dhcp_offers_the_address_the_mtu_the_resolver_and_the_search_list() {
    // The reply is exercised with the message that a client builds.
    let mut packet = vec![0; 244];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[4..8].copy_from_slice(&[1, 2, 3, 4]);
    packet[28..34].copy_from_slice(&MAC);
    packet[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    packet[240..244].copy_from_slice(&[53, 1, 1, 255]);
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&MAC);
    frame.extend_from_slice(&[8, 0]);
    udp::append_datagram(
        &mut frame,
        (Ipv4Addr::UNSPECIFIED, 68),
        (Ipv4Addr::BROADCAST, 67),
        &packet,
    );
    let mut guest = Guest::new(Vec::new(), None);
    let offer = guest.raw(&frame).expect("an offer");
    let (server, port, payload) = udp_payload(&offer);
    assert_eq!((server, port), (gateway(), 68));
    let message = smoltcp::wire::DhcpPacket::new_checked(&payload[..]).unwrap();
    let repr = smoltcp::wire::DhcpRepr::parse(&message).unwrap();
    assert_eq!(repr.message_type, smoltcp::wire::DhcpMessageType::Offer);
    assert_eq!(repr.your_ip, Addresses::default().guest);
    assert_eq!(repr.transaction_id, 0x0102_0304);
    assert_eq!(repr.router, Some(gateway()));
    let option = |kind| {
        let found = message.options().find(|option| option.kind == kind);
        found.map(|option| option.data.to_vec())
    };
    assert_eq!(option(26), Some(MTU.to_be_bytes().to_vec()));
    assert_eq!(option(15), Some(b"corp.example".to_vec()));
    // What is not a name is left out.
    assert_eq!(option(119), Some(b"\x04corp\x07example\0\x07example\0".to_vec()));
}

proptest::proptest! {
    #[test]
    fn random_frames_cause_no_panic(
        frames in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..200), 0..50),
        kind in 0_u8..4,
    ) {
        let mut guest = Guest::new(Vec::new(), None);
        for mut frame in frames {
            // Most random frames would end at the first check: dress some up to get further.
            let dress: &[u8] = match kind {
                0 => &[],
                1 => &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
                2 => &[8, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2],
                _ => &[8, 0, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 3],
            };
            if !dress.is_empty() {
                frame.splice(0..0, [ethernet::GATEWAY_MAC.as_slice(), &MAC, dress].concat());
            }
            guest.raw(&frame);
        }
    }
}

#[test]
fn a_connection_that_the_network_has_lost_is_reset_though_the_guest_only_waits() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = Addresses::default().gateway;
    let mut guest = Guest::new(Vec::new(), None);
    assert_eq!(guest.network.connections(), []);
    let handle = guest.connect((gateway, port), 40_000);
    guest.until(|guest| guest.tcp(handle).may_recv().then_some(()));
    let connections = guest.network.connections();
    let [TcpConnection { guest: end, peer }] = connections[..] else {
        panic!("{connections:?}")
    };
    assert_eq!((end.port(), *peer.ip(), peer.port()), (40_000, gateway, port));

    // Another process goes on with it.
    guest.network = Guest::new(Vec::new(), None).network;
    let saved = SavedConnections {
        address: MAC,
        connections,
    };
    let mut lost = LostConnections::with_clock(&saved, guest.time.clock());
    guest.until(|guest| {
        guest.nic.to_guest.extend(lost.ask());
        let now = guest.time.instant();
        guest.interface.poll(now, &mut guest.nic, &mut guest.sockets);
        let sent = std::mem::take(&mut guest.nic.from_guest);
        let resets = sent.iter().filter_map(|frame| lost.answer(frame));
        guest.nic.to_guest.extend(resets);
        // smoltcp, other than Linux, looks at the acknowledgement first, and ignores an old one.
        guest.time.leap(Duration::from_secs(1));
        (!guest.tcp(handle).is_open()).then_some(())
    });
    assert_eq!(lost.timeout(), None);
}
