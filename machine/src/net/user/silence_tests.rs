//! Timeouts, on a clock that the test advances: established connections have none, unanswered ones do.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::tests::{Guest, gateway, socket, udp_frame, udp_payload};
use super::*;

const PORT: u16 = 80;

fn forward(protocol: Protocol) -> Forward {
    Forward {
        protocol,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: PORT,
    }
}

/// A connection into the guest, established on all sides: the host's end and the guest's.
fn into_the_guest(guest: &mut Guest) -> (TcpStream, SocketHandle) {
    let handle = guest.sockets.add(socket());
    guest.tcp(handle).listen(PORT).unwrap();
    let host = TcpStream::connect(guest.network.forwards()[0].host).unwrap();
    guest.until(|guest| (guest.tcp(handle).state() == State::Established).then_some(()));
    (host, handle)
}

/// The same out of the guest.
fn out_of_the_guest(guest: &mut Guest) -> (TcpStream, SocketHandle) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connect((gateway(), server.local_addr().unwrap().port()), 50_000);
    guest.until(|guest| (guest.tcp(handle).state() == State::Established).then_some(()));
    (server.accept().unwrap().0, handle)
}

/// Lets a day pass in which no packet is sent. Both stacks look at their timers after each second that
/// mattered once, and after each hour.
fn silence(guest: &mut Guest) {
    for seconds in [1, 9, 9, 1, 1, 39, 1, 60, 180, 300].into_iter().chain([3600; 24]) {
        guest.time.leap(Duration::from_secs(seconds));
        guest.exchange();
        guest.exchange();
    }
}

fn host_says(guest: &mut Guest, host: &mut TcpStream, handle: SocketHandle, words: &[u8]) {
    host.write_all(words).unwrap();
    let mut got = Vec::new();
    guest.until(|guest| {
        let end = guest.tcp(handle);
        assert!(end.may_recv(), "the connection is gone: {}", end.state());
        while end.can_recv() {
            end.recv(|bytes| (bytes.len(), got.extend_from_slice(bytes)))
                .unwrap();
        }
        (got.len() >= words.len()).then_some(())
    });
    assert_eq!(got, words);
}

fn guest_says(guest: &mut Guest, host: &mut TcpStream, handle: SocketHandle, words: &[u8]) {
    guest.tcp(handle).send_slice(words).unwrap();
    assert_eq!(read(guest, host), words);
}

/// What the host reads next; nothing is the end.
fn read(guest: &mut Guest, host: &mut TcpStream) -> Vec<u8> {
    host.set_nonblocking(true).unwrap();
    let mut buffer = [0; 100];
    let length = guest.until(|_| match host.read(&mut buffer) {
        Ok(length) => Some(length),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    });
    buffer[..length].to_vec()
}

type Open = fn(&mut Guest) -> (TcpStream, SocketHandle);
const WAYS: [Open; 2] = [into_the_guest, out_of_the_guest];

#[test]
fn an_established_connection_may_be_silent_for_a_day() {
    for open in WAYS {
        let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
        let (mut host, handle) = open(&mut guest);
        for _ in 0..2 {
            silence(&mut guest);
            host_says(&mut guest, &mut host, handle, b"still there?");
            silence(&mut guest);
            guest_says(&mut guest, &mut host, handle, b"still here");
        }
        assert_eq!(guest.network.tcp.len(), 1);
    }
}

#[test]
fn keep_alive_probes_of_the_guest_are_answered() {
    for open in WAYS {
        let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
        let (mut host, handle) = open(&mut guest);
        let end = guest.tcp(handle);
        end.set_keep_alive(Some(smoltcp::time::Duration::from_secs(60)));
        // Without an answer to its probes, the guest gives the connection up.
        end.set_timeout(Some(smoltcp::time::Duration::from_secs(150)));
        for _ in 0..100 {
            guest.time.leap(Duration::from_secs(60));
            guest.exchange();
            guest.exchange();
        }
        guest_says(&mut guest, &mut host, handle, b"still here");
    }
}

#[test]
fn a_half_closed_connection_may_be_silent_for_a_day() {
    for open in WAYS {
        // The host has said all, and waits for the answer.
        let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
        let (mut host, handle) = open(&mut guest);
        host.shutdown(Shutdown::Write).unwrap();
        guest.until(|guest| (guest.tcp(handle).state() == State::CloseWait).then_some(()));
        silence(&mut guest);
        guest_says(&mut guest, &mut host, handle, b"the answer");
        guest.tcp(handle).close();
        assert_eq!(read(&mut guest, &mut host), b"");

        // The guest has, and does.
        let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
        let (mut host, handle) = open(&mut guest);
        guest.tcp(handle).close();
        assert_eq!(read(&mut guest, &mut host), b"");
        silence(&mut guest);
        host_says(&mut guest, &mut host, handle, b"the answer");
        drop(host);
        guest.until(|guest| guest.network.tcp.is_empty().then_some(()));
    }
}

/// Lets the network work while the guest takes what comes and sends nothing.
fn without_the_guest(guest: &mut Guest, mut done: impl FnMut(&mut UserNetwork) -> bool) {
    let mut buffer = vec![0; 70_000];
    guest.until(|guest| {
        guest.nic.to_guest.clear();
        while guest.network.receive(&mut buffer).is_some() {}
        done(&mut guest.network).then_some(())
    });
}

#[test]
fn a_forwarded_connection_that_the_guest_does_not_answer_is_reset() {
    let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
    let mut host = TcpStream::connect(guest.network.forwards()[0].host).unwrap();
    let settle = |guest: &mut Guest| {
        guest.network.poll();
        guest.network.tcp.len()
    };
    without_the_guest(&mut guest, |network| {
        network.poll().is_some() && network.tcp.len() == 1
    });
    guest.time.leap(Duration::from_secs(19));
    assert_eq!(settle(&mut guest), 1);
    guest.time.leap(Duration::from_secs(2));
    assert_eq!(settle(&mut guest), 0);
    let error = host.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A port of the host that answers nobody: no more than one connection waits to be accepted, and the SYNs of
/// others are dropped.
fn dead_port() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listen(&listener, Backlog::new(0).unwrap()).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn destinations_that_do_not_answer_are_given_up() {
    let (_dead, port) = dead_port();
    let mut guest = Guest::new(Vec::new(), None);
    for from in 1000..1100 {
        guest.connect((gateway(), port), from);
    }
    guest.exchange();
    guest.exchange();
    assert_eq!(guest.network.tcp.len(), 100);
    guest.time.leap(Duration::from_secs(61));
    guest.network.poll();
    // A few were taken by the kernel before it dropped the others.
    assert!(guest.network.tcp.len() < 10, "{}", guest.network.tcp.len());
}

#[test]
fn destinations_that_do_not_answer_do_not_keep_others_from_being_reached() {
    let (_dead, dead) = dead_port();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
    let first = guest.connect((gateway(), dead), 999);
    let silent: Vec<_> = (1000..2000)
        .map(|from| {
            let handle = guest.connect((gateway(), dead), from);
            guest.exchange();
            handle
        })
        .collect();
    let handle = guest.connect((gateway(), port), 50_000);
    guest.until(|guest| (guest.tcp(handle).state() == State::Established).then_some(()));
    assert!(guest.network.tcp.len() <= 512, "{}", guest.network.tcp.len());
    // No server has refused them: they may be asked again.
    let refused = silent
        .iter()
        .filter(|handle| guest.tcp(**handle).state() == State::Closed);
    assert_eq!(refused.count(), 0);
    assert_ne!(guest.tcp(first).state(), State::Closed);
    // Nor do they keep anybody out.
    let (mut host, handle) = into_the_guest(&mut guest);
    host_says(&mut guest, &mut host, handle, b"in");
}

/// A segment of a guest without a stack.
fn segment(to_port: u16, sequence: u32, flags: u8) -> Vec<u8> {
    let mut frame = udp_frame(50_000, (gateway(), to_port), &[0; 12]);
    frame[ETHERNET_HEADER + 9] = 6;
    let segment = &mut frame[ETHERNET_HEADER + 20..];
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].fill(0);
    segment[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    frame
}

#[test]
fn a_guest_that_resets_a_connection_before_it_is_open_leaves_nothing() {
    const SYN: u8 = 2;
    const RST: u8 = 4;
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(Vec::new(), None);
    if guest.raw(&segment(port, 0, SYN)).is_none() {
        guest.frame();
    }
    assert_eq!(guest.network.tcp.len(), 1);
    guest.raw(&segment(port, 1, RST));
    guest.network.poll();
    assert!(guest.network.tcp.is_empty());
}

#[test]
fn a_port_of_the_gateway_is_not_given_away_while_a_connection_comes_from_it() {
    let mut guest = Guest::new(vec![forward(Protocol::Tcp)], None);
    let (mut host, handle) = into_the_guest(&mut guest);
    guest.network.tcp.come_around();
    let (mut other, second) = into_the_guest(&mut guest);
    let ports = [handle, second].map(|end| guest.tcp(end).remote_endpoint().unwrap().port);
    assert_ne!(ports[0], ports[1]);
    host_says(&mut guest, &mut host, handle, b"first");
    host_says(&mut guest, &mut other, second, b"second");
}

#[test]
fn a_datagram_is_answered_after_minutes() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(Vec::new(), None);
    guest.raw(&udp_frame(4444, (gateway(), port), b"slow question"));
    let (_, from) = server.recv_from(&mut [0; 100]).unwrap();
    // Five minutes are what RFC 4787 recommends.
    guest.time.leap(Duration::from_secs(295));
    guest.network.poll();
    server.send_to(b"answer", from).unwrap();
    assert_eq!(udp_payload(&guest.frame()).2, b"answer");
    guest.time.leap(Duration::from_secs(301));
    guest.network.poll();
    assert_eq!(guest.network.udp.len(), 0);
}

#[test]
fn the_peer_of_a_forwarded_port_that_is_in_use_is_not_forgotten() {
    let mut guest = Guest::new(vec![forward(Protocol::Udp)], None);
    let address: SocketAddr = guest.network.forwards()[0].host;
    let port_of = |guest: &mut Guest, client: &UdpSocket| {
        client.send_to(b"ping", address).unwrap();
        let frame = guest.frame();
        u16::from_be_bytes([frame[34], frame[35]])
    };
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let first = port_of(&mut guest, &client);
    // More others than are remembered, and now and then the one again.
    let others: Vec<_> = (0..100)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    for some in others.chunks(20) {
        for other in some {
            port_of(&mut guest, other);
        }
        assert_eq!(port_of(&mut guest, &client), first);
    }
}
