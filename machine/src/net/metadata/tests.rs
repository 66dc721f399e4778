//! The service on the wire.

use super::*;
use crate::net::Addresses;
use crate::net::testing::Nic;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{EthernetAddress, IpCidr};

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
