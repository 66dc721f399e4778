//! The service on the guest's network.

use super::*;
use crate::net::Addresses;
use crate::net::testing::{Leaps, Nic};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, IpCidr};
use std::time::Instant;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A wire that leads nowhere and counts what goes onto it.
#[derive(Default)]
struct Nowhere {
    taken: usize,
}
impl Backend for Nowhere {
    fn transmit(&mut self, _: &[u8]) {
        self.taken += 1;
    }
    fn receive(&mut self, _: &mut [u8]) -> Option<usize> {
        None
    }
    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        Vec::new()
    }
    fn poll(&mut self) -> Option<u64> {
        None
    }
}

/// Asks as a client on a guest would, with the address on-link (cloud-init) or behind a router.
fn fetch(service: &mut WithMetadata<Nowhere>, request: &[u8], port: u16) -> Vec<u8> {
    let mut nic = Nic::new(1514);
    let mut interface = Interface::new(
        Config::new(EthernetAddress(GUEST_MAC).into()),
        &mut nic,
        StackInstant::ZERO,
    );
    interface.update_ip_addrs(|list| {
        list.push(IpCidr::new(Addresses::default().guest.into(), 24))
            .unwrap();
        list.push(IpCidr::new(Ipv4Addr::new(169, 254, 0, 1).into(), 16))
            .unwrap();
    });
    let mut sockets = SocketSet::new(Vec::new());
    let buffer = || SocketBuffer::new(vec![0; 100_000]);
    let handle = sockets.add(Socket::new(buffer(), buffer()));
    let socket = sockets.get_mut::<Socket>(handle);
    socket.set_ack_delay(None);
    socket
        .connect(
            interface.context(),
            (smoltcp::wire::IpAddress::Ipv4(ADDRESS), PORT),
            port,
        )
        .unwrap();
    let (start, mut sent, mut got) = (Instant::now(), 0, Vec::new());
    loop {
        let now = StackInstant::from_micros(start.elapsed().as_micros() as i64);
        interface.poll(now, &mut nic, &mut sockets);
        while let Some(frame) = nic.from_guest.pop_front() {
            service.transmit(&frame);
        }
        service.poll();
        let mut frame = vec![0; 2000];
        while let Some(length) = service.receive(&mut frame) {
            assert_eq!(&frame[..6], &GUEST_MAC);
            nic.to_guest.push_back(frame[..length].to_vec());
        }
        let socket = sockets.get_mut::<Socket>(handle);
        if socket.can_send() && sent < request.len() {
            sent += socket.send_slice(&request[sent..]).unwrap();
            if sent == request.len() {
                socket.close();
            }
        }
        while socket.can_recv() {
            socket
                .recv(|bytes| (bytes.len(), got.extend_from_slice(bytes)))
                .unwrap();
        }
        if sent == request.len() && matches!(socket.state(), State::TimeWait | State::Closed) {
            // The last acknowledgement is still to go.
            interface.poll(now, &mut nic, &mut sockets);
            nic.from_guest
                .drain(..)
                .for_each(|frame| service.transmit(&frame));
            service.poll();
            return got;
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "port {port}: {:?} after {got:?}; the service: {:?}",
            sockets.get::<Socket>(handle).state(),
            service.states()
        );
    }
}

#[test]
fn a_guest_gets_a_token_and_its_instance_id() {
    let documents = InstanceDocuments {
        instance_id: "i-0".to_owned(),
        ..InstanceDocuments::default()
    };
    let mut service = WithMetadata::new(Nowhere::default(), documents);
    let put = b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let answer = String::from_utf8(fetch(&mut service, put, 5000)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let token = answer.rsplit("\r\n\r\n").next().unwrap().to_owned();
    // More requests than there are connections: each is given back.
    for port in 5001..5020 {
        let get = format!(
            "GET /latest/meta-data/instance-id HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n"
        );
        let answer = String::from_utf8(fetch(&mut service, get.as_bytes(), port)).unwrap();
        assert!(answer.ends_with("\r\n\r\ni-0"), "{answer}");
    }
    assert_eq!(service.backend().taken, 0, "nothing of it may reach the backend");
}

/// A request as a guest without a stack sends it: SYN, then an acknowledgement with the request. Returns the
/// TTLs of packets that came back, each with whether it carries data.
fn ttls(service: &mut WithMetadata<Nowhere>, port: u16, requests: &[&[u8]]) -> Vec<(u8, bool)> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let (mut sent, mut received, mut ttls) = (0_u32, 0_u32, Vec::new());
    let segments = requests.iter().map(|request| (ACK, *request));
    for (flags, payload) in std::iter::once((SYN, &b""[..])).chain(segments) {
        let mut frame = [MAC, GUEST_MAC].concat();
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15]);
        frame.extend(ADDRESS.octets());
        frame.extend(port.to_be_bytes());
        frame.extend(PORT.to_be_bytes());
        frame.extend(sent.to_be_bytes());
        frame.extend(received.to_be_bytes());
        frame.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        sent += payload.len() as u32 + u32::from(flags & SYN != 0);
        service.transmit(&frame);
        service.poll();
        let mut buffer = [0; 2000];
        while let Some(length) = service.receive(&mut buffer) {
            let packet = &buffer[ETHERNET_HEADER..length];
            let data = length - ETHERNET_HEADER - 20 - usize::from(packet[32] >> 4) * 4;
            let sequence = u32::from_be_bytes([packet[24], packet[25], packet[26], packet[27]]);
            received = sequence + data as u32 + u32::from(packet[33] & 3 != 0);
            ttls.push((packet[8], data > 0));
        }
    }
    ttls
}

/// EC2's `HttpPutResponseHopLimit` is 1 unless its user asks for more: what carries a token dies at the first
/// router in the guest.
#[test]
fn a_token_does_not_leave_the_instance() {
    let mut service = WithMetadata::new(Nowhere::default(), InstanceDocuments::default());
    let put = b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let closing = b"PUT /latest/api/token HTTP/1.1\r\nConnection: close\r\n\
                    X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let get = b"GET /latest/meta-data/ HTTP/1.1\r\n\r\n";
    let with_data = |ttls: Vec<(u8, bool)>| -> Vec<u8> {
        ttls.iter()
            .filter(|(_, data)| *data)
            .map(|(ttl, _)| *ttl)
            .collect()
    };
    assert_eq!(with_data(ttls(&mut service, 1000, &[put])), [1]);
    assert_eq!(with_data(ttls(&mut service, 1001, &[closing])), [1]);
    assert_eq!(with_data(ttls(&mut service, 1002, &[get])), [64]);
    assert_eq!(with_data(ttls(&mut service, 1003, &[put, get, put])), [1, 64, 1]);
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let time = Leaps::new();
    let documents = InstanceDocuments::default();
    let mut service = WithMetadata::with_clock(Nowhere::default(), documents, time.clock());
    let get: &[u8] = b"GET /latest/meta-data/ HTTP/1.1\r\n\r\n";
    assert_eq!(ttls(&mut service, 1000, &[get]).len(), 2);
    let open = |service: &WithMetadata<Nowhere>| {
        let states = service.states();
        states
            .into_iter()
            .filter(|state| *state != State::Listen)
            .collect::<Vec<_>>()
    };
    assert_eq!(open(&service), [State::Established]);
    time.leap(Duration::from_secs(9));
    service.poll();
    assert_eq!(open(&service), [State::Established]);
    time.leap(Duration::from_secs(2));
    service.poll();
    assert_eq!(open(&service), [State::FinWait1], "its client sees the end");
    time.leap(Duration::from_secs(10));
    service.poll();
    service.poll();
    assert_eq!(open(&service), [], "whose client says nothing makes room");
}

#[test]
fn a_large_document_arrives_whole() {
    let user_data: Vec<u8> = (0..16_384_u32).map(|n| n as u8).collect();
    let documents = InstanceDocuments {
        user_data: Some(user_data.clone()),
        ..InstanceDocuments::default()
    };
    let mut service = WithMetadata::new(Nowhere::default(), documents);
    let put = b"PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let answer = String::from_utf8(fetch(&mut service, put, 6000)).unwrap();
    let token = answer.rsplit("\r\n\r\n").next().unwrap().to_owned();
    let get = format!("GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    let answer = fetch(&mut service, get.as_bytes(), 6001);
    assert!(answer.ends_with(&user_data));
}

#[test]
fn everything_else_goes_to_the_backend() {
    let mut service = WithMetadata::new(Nowhere::default(), InstanceDocuments::default());
    for frame in [&[0; 60][..], &[0xff; 14], &[], &[8; 34]] {
        service.transmit(frame);
    }
    assert_eq!(service.backend().taken, 4);
}
