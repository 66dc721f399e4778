//! Name servers of the host that answer, refuse, fail or are silent.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::tests::{Guest, udp_frame, udp_payload};
use super::*;

/// A question, as far as anybody here looks at it.
const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04kiln";
/// Long enough for the next server to be asked.
const TURN: Duration = Duration::from_secs(2);

fn answer(code: u8) -> Vec<u8> {
    let mut answer = QUESTION.to_vec();
    answer[2] |= 0x80;
    answer[3] |= code;
    answer
}

fn server() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// A port of loopback at which nothing listens.
fn refusing() -> SocketAddr {
    server().local_addr().unwrap()
}

fn guest(servers: Vec<SocketAddr>) -> Guest {
    Guest::with_resolver(Vec::new(), Resolver::At(servers))
}

fn ask(guest: &mut Guest, port: u16) {
    let frame = udp_frame(port, (Addresses::default().dns, DNS_PORT), QUESTION);
    assert_eq!(guest.raw(&frame), None);
}

/// Waits until a server is asked, and answers.
fn reply(guest: &mut Guest, server: &UdpSocket, bytes: &[u8]) {
    let mut buffer = [0; 100];
    let (length, from) = guest.until(|guest| {
        guest.network.poll();
        server.recv_from(&mut buffer).ok()
    });
    assert_eq!(&buffer[..length], QUESTION);
    server.send_to(bytes, from).unwrap();
}

fn answered(guest: &mut Guest, port: u16, bytes: &[u8]) {
    let frame = guest.frame();
    assert_eq!(
        udp_payload(&frame),
        (Addresses::default().dns, port, bytes.to_vec())
    );
    assert_eq!(guest.network.dns.len(), 0);
}

#[test]
fn a_server_that_refuses_is_passed_over() {
    let second = server();
    let mut guest = guest(vec![refusing(), second.local_addr().unwrap()]);
    ask(&mut guest, 4444);
    reply(&mut guest, &second, &answer(0));
    answered(&mut guest, 4444, &answer(0));
}

#[test]
fn a_server_that_is_silent_has_its_turn_and_may_answer_late() {
    let (first, second) = (server(), server());
    let servers = [&first, &second].map(|server| server.local_addr().unwrap());
    let mut guest = guest(servers.into());
    let asked = |server: &UdpSocket| server.recv_from(&mut [0; 100]).ok();
    ask(&mut guest, 4444);
    let (_, from) = guest.until(|_| asked(&first));
    assert_eq!(asked(&second), None);
    // The guest asks again meanwhile: so does the network, and no more than that.
    ask(&mut guest, 4444);
    assert_eq!(guest.until(|_| asked(&first)).1, from);
    assert_eq!(guest.network.dns.len(), 1);
    guest.time.leap(TURN);
    reply(&mut guest, &second, &answer(0));
    answered(&mut guest, 4444, &answer(0));
    // The next question goes to the first again, as the file says; its answer counts even when the next
    // server was asked.
    ask(&mut guest, 4445);
    let (_, from) = guest.until(|_| asked(&first));
    guest.time.leap(TURN);
    guest.network.poll();
    first.send_to(&answer(3), from).unwrap();
    answered(&mut guest, 4445, &answer(3));
}

#[test]
fn a_server_that_cannot_tell_is_believed_only_when_nobody_can() {
    let (first, second) = (server(), server());
    let servers = [&first, &second].map(|server| server.local_addr().unwrap());
    let mut guest = guest(servers.into());
    ask(&mut guest, 4444);
    reply(&mut guest, &first, &answer(2));
    reply(&mut guest, &second, &answer(0));
    answered(&mut guest, 4444, &answer(0));
    ask(&mut guest, 4445);
    reply(&mut guest, &first, &answer(2));
    reply(&mut guest, &second, &answer(5));
    answered(&mut guest, 4445, &answer(2));
}

#[test]
fn questions_are_bounded_and_end() {
    let silent = server();
    let mut guest = guest(vec![silent.local_addr().unwrap()]);
    for port in 1000..2000 {
        ask(&mut guest, port);
    }
    assert!(guest.network.dns.len() <= 64, "{}", guest.network.dns.len());
    assert_eq!(guest.network.udp.len(), 0, "they take no translation from others");
    guest.time.leap(Duration::from_secs(20));
    guest.network.poll();
    assert_eq!(guest.network.dns.len(), 0);
}

#[test]
fn a_connection_goes_to_the_first_server_that_takes_it() {
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut guest = guest(vec![refusing(), second.local_addr().unwrap()]);
    let handle = guest.connect((Addresses::default().dns, DNS_PORT), 50_000);
    guest.until(|guest| (guest.tcp(handle).state() == State::Established).then_some(()));
    second.accept().unwrap();
}
