use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::packet::{HEADER, Header, STREAM, op, shutdown};
use super::*;
use crate::virtio::testing::Driver;

const GUEST: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const GUEST_BUFFER: u32 = 256 << 10;

/// A guest with its receive queue filled, and the host's directory.
struct Guest {
    driver: Driver,
    dir: tempfile::TempDir,
    forwarded: u32,
}

impl Guest {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = Vsock::bind(GUEST, &dir.path().join("v")).unwrap();
        let mut guest = Guest {
            driver: Driver::started(device, u64::MAX),
            dir,
            forwarded: 0,
        };
        guest.give_room(64);
        guest
    }

    fn give_room(&mut self, buffers: usize) {
        for _ in 0..buffers {
            self.driver.submit(RX, &[], &[4096]);
        }
        self.driver.ring(RX);
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("v")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    fn header(&self, operation: u16, host_port: u32, guest_port: u32) -> Header {
        Header {
            src_cid: GUEST,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: STREAM,
            op: operation,
            buf_alloc: GUEST_BUFFER,
            fwd_cnt: self.forwarded,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let header = Header {
            len: data.len() as u32,
            ..header
        };
        self.driver.request(TX, &[&header.encode(), data], &[]);
    }

    /// A guest that goes on from a snapshot on another device.
    fn go_on(&mut self) {
        self.dir = tempfile::tempdir().unwrap();
        let device = Vsock::bind(GUEST, &self.dir.path().join("v")).unwrap();
        self.driver.go_on_with(device);
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        let used = self.driver.wait_used(RX);
        self.give_room(1);
        let header = Header::decode(used.data[..HEADER].try_into().unwrap());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST));
        assert_eq!(used.data.len(), HEADER + header.len as usize);
        self.forwarded = self.forwarded.wrapping_add(header.len);
        (header, used.data[HEADER..].to_vec())
    }

    fn expect(&mut self, operation: u16) -> (Header, Vec<u8>) {
        let (header, data) = self.receive();
        assert_eq!(header.op, operation, "{header:?}");
        (header, data)
    }

    /// A stream opened by a host process, and its ports.
    fn accept(&mut self, guest_port: u32) -> (BufReader<UnixStream>, u32) {
        let mut host = BufReader::new(self.connect());
        writeln!(host.get_mut(), "CONNECT {guest_port}").unwrap();
        let (request, _) = self.expect(op::REQUEST);
        assert_eq!(request.dst_port, guest_port);
        self.forwarded = 0; // counted from the start of each stream
        self.send(self.header(op::RESPONSE, request.src_port, guest_port), &[]);
        let mut line = String::new();
        host.read_line(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", request.src_port));
        (host, request.src_port)
    }
}

#[test]
fn a_host_process_talks_to_the_guest() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.accept(52);
    host.get_mut().write_all(b"hello guest").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"hello guest");
    guest.send(guest.header(op::RW, port, 52), b"hello host");
    let mut got = [0; 10];
    host.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello host");
}

#[test]
fn the_guest_talks_to_a_host_service() {
    let mut guest = Guest::new();
    let service = UnixListener::bind(guest.dir.path().join("v_8080")).unwrap();
    guest.send(guest.header(op::REQUEST, 8080, 1000), &[]);
    let (response, _) = guest.expect(op::RESPONSE);
    assert_eq!((response.src_port, response.dst_port), (8080, 1000));
    let (mut stream, _) = service.accept().unwrap();
    stream.write_all(b"welcome").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"welcome");
    guest.send(guest.header(op::REQUEST, 8080, 1000), &[]);
    assert_eq!(guest.expect(op::RST).0.dst_port, 1000, "the ports are taken");
    guest.send(guest.header(op::REQUEST, 8081, 1000), &[]);
    guest.expect(op::RST);
}

#[test]
fn each_side_can_end_its_half() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.accept(1);
    // The host is done sending; the guest still answers.
    host.get_mut().write_all(b"question").unwrap();
    host.get_mut().shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.expect(op::RW).1, b"question");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, shutdown::SEND);
    guest.send(guest.header(op::RW, port, 1), b"answer");
    let closing = Header {
        flags: shutdown::BOTH,
        ..guest.header(op::SHUTDOWN, port, 1)
    };
    guest.send(closing, &[]);
    guest.expect(op::RST);
    let mut answer = String::new();
    host.read_to_string(&mut answer).unwrap();
    assert_eq!(
        answer, "answer",
        "what was sent before the end arrives, then the end"
    );

    // The guest is done sending; the host still answers.
    let (mut host, port) = guest.accept(2);
    guest.send(guest.header(op::RW, port, 2), b"all");
    guest.send(
        Header {
            flags: shutdown::SEND,
            ..guest.header(op::SHUTDOWN, port, 2)
        },
        &[],
    );
    let mut all = String::new();
    host.read_to_string(&mut all).unwrap();
    assert_eq!(all, "all");
    host.get_mut().write_all(b"thanks").unwrap();
    assert_eq!(guest.expect(op::RW).1, b"thanks");
    drop(host);
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, shutdown::BOTH);
    guest.send(guest.header(op::RW, port, 2), b"anyone?");
    guest.expect(op::RST);
}

#[test]
fn a_refused_connection_reads_its_end() {
    let mut guest = Guest::new();
    let mut host = guest.connect();
    host.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.expect(op::REQUEST);
    guest.send(guest.header(op::RST, request.src_port, 7), &[]);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_bad_greeting_is_refused() {
    let guest = Guest::new();
    for greeting in [
        "HELLO 5\n",
        "CONNECT x\n",
        "CONNECT 4294967296\n",
        "CONNECT 1 2 3 4 5 6 7 8 9 10 11 12 13",
    ] {
        let mut host = guest.connect();
        host.write_all(greeting.as_bytes()).unwrap();
        // A reset instead of the end when the rest of the greeting was never read.
        assert!(matches!(host.read(&mut [0; 8]), Ok(0) | Err(_)), "{greeting}");
    }
}

#[test]
fn both_sides_respect_the_peers_credit() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.accept(9);
    // The guest lets on that it has room for 1000 bytes, and takes none of them.
    let tight = Header {
        buf_alloc: 1000,
        fwd_cnt: 0,
        ..guest.header(op::CREDIT_UPDATE, port, 9)
    };
    guest.send(tight, &[]);
    host.get_mut().write_all(&[7; 5000]).unwrap();
    let mut got = 0;
    while got < 1000 {
        got += guest.expect(op::RW).1.len();
    }
    assert_eq!(got, 1000);
    guest.expect(op::CREDIT_REQUEST);
    std::thread::sleep(Duration::from_millis(10));
    assert_eq!(guest.driver.take_used(RX), None, "no credit, no data");
    guest.send(
        Header {
            buf_alloc: 1000,
            fwd_cnt: 1000,
            ..guest.header(op::CREDIT_UPDATE, port, 9)
        },
        &[],
    );
    assert!(!guest.expect(op::RW).1.is_empty());
    // The other way round: more than the device's buffer breaks the stream.
    let mut guest = Guest::new();
    let (_silent, port) = guest.accept(10);
    let mut left = 100;
    let reset = loop {
        guest.send(guest.header(op::RW, port, 10), &[1; 60000]);
        left -= 1;
        assert!(left > 0, "6 MB were taken for a process that reads nothing");
        std::thread::sleep(Duration::from_millis(1));
        if let Some(used) = guest.driver.take_used(RX) {
            let header = Header::decode(used.data[..HEADER].try_into().unwrap());
            if header.op == op::RST && header.dst_port == 10 {
                break header;
            }
        }
    };
    assert_eq!(reset.src_port, port);
}

#[test]
fn freed_credit_is_announced() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.accept(9);
    let mut taken = 0;
    let mut announced = 0;
    while announced < 64 << 10 {
        guest.send(guest.header(op::RW, port, 9), &[3; 8192]);
        let mut data = [0; 8192];
        host.read_exact(&mut data).unwrap();
        taken += 8192;
        while let Some(used) = guest.driver.take_used(RX) {
            let header = Header::decode(used.data[..HEADER].try_into().unwrap());
            assert_eq!(
                (header.op, header.buf_alloc),
                (op::CREDIT_UPDATE, connection::BUFFER)
            );
            announced = header.fwd_cnt;
            assert!(announced <= taken);
        }
        assert!(taken < 10 << 20);
    }
}

#[test]
fn large_transfers_arrive_complete_on_many_streams() {
    let mut guest = Guest::new();
    let mut streams: Vec<_> = (0..20).map(|port| guest.accept(100 + port)).collect();
    let mut received = vec![Vec::new(); streams.len()];
    let writers: Vec<_> = streams
        .iter_mut()
        .enumerate()
        .map(|(index, (host, _))| {
            let mut stream = host.get_ref().try_clone().unwrap();
            std::thread::spawn(move || stream.write_all(&vec![index as u8; 100_000]).unwrap())
        })
        .collect();
    let mut forwarded = vec![0u32; streams.len()];
    while received.iter().any(|data| data.len() < 100_000) {
        let (header, data) = guest.expect(op::RW);
        let index = header.dst_port as usize - 100;
        forwarded[index] += header.len;
        received[index].extend(data);
        let update = guest.header(op::CREDIT_UPDATE, header.src_port, header.dst_port);
        guest.send(
            Header {
                fwd_cnt: forwarded[index],
                ..update
            },
            &[],
        );
    }
    for (index, data) in received.iter().enumerate() {
        assert!(data.iter().all(|&byte| byte == index as u8));
    }
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn unexpected_packets_are_answered_or_ignored() {
    let mut guest = Guest::new();
    guest.send(guest.header(op::RW, 5, 6), b"to nobody");
    guest.expect(op::RST);
    guest.send(
        Header {
            kind: 2,
            ..guest.header(op::REQUEST, 5, 6)
        },
        &[],
    );
    guest.expect(op::RST);
    guest.send(
        Header {
            dst_cid: 99,
            ..guest.header(op::REQUEST, 5, 6)
        },
        &[],
    );
    // The reset comes from where the packet went to.
    let used = guest.driver.wait_used(RX);
    assert_eq!(
        Header::decode(used.data[..HEADER].try_into().unwrap()).src_cid,
        99
    );
    guest.send(
        Header {
            src_cid: 99,
            ..guest.header(op::REQUEST, 5, 6)
        },
        &[],
    );
    guest.send(guest.header(op::RST, 5, 6), &[]);
    guest.send(guest.header(99, 5, 6), &[]);
    guest.expect(op::RST);
    let (_host, port) = guest.accept(4);
    guest.send(guest.header(op::RESPONSE, port, 4), &[]);
    guest.expect(op::RST);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn malformed_packets_cost_the_device() {
    let cases: [&[&[u8]]; 3] = [&[&[0; 43]], &[&[0xff; HEADER]], &[]];
    for case in cases {
        let mut guest = Guest::new();
        guest
            .driver
            .submit(TX, case, if case.is_empty() { &[64] } else { &[] });
        guest.driver.ring(TX);
        guest.driver.wait_needs_reset();
    }
    let mut guest = Guest::new();
    while guest.driver.take_used(RX).is_some() {}
    guest.driver.start(u64::MAX);
    guest.driver.submit(RX, &[], &[43]);
    guest.driver.ring(RX);
    guest.connect().write_all(b"CONNECT 5\n").unwrap();
    guest.driver.wait_needs_reset();
}

#[test]
fn a_reset_ends_every_stream() {
    let mut guest = Guest::new();
    let (mut host, _) = guest.accept(4);
    guest.driver.start(u64::MAX);
    assert_eq!(host.read(&mut [0; 8]).unwrap(), 0);
    guest.forwarded = 0;
    guest.give_room(8);
    guest.accept(5);
}

#[test]
fn a_pause_keeps_streams() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.accept(4);
    guest.driver.transport().pause();
    host.get_mut().write_all(b"while you slept").unwrap();
    guest.driver.transport().resume();
    assert_eq!(guest.expect(op::RW).1, b"while you slept");
    guest.send(guest.header(op::RW, port, 4), b"!");
    let mut got = [0; 1];
    host.read_exact(&mut got).unwrap();
}

#[test]
fn the_guest_reads_its_context_id() {
    let mut guest = Guest::new();
    assert_eq!(guest.driver.config(0, 8), GUEST.to_le_bytes());
}

#[test]
fn a_guest_that_goes_on_is_told_first_that_its_streams_are_gone() {
    let mut guest = Guest::new();
    for _ in 0..4 {
        guest.driver.submit(EVENT, &[], &[4]);
    }
    guest.driver.ring(EVENT);
    let (mut old, _) = guest.accept(7);
    guest.go_on();
    assert_eq!(
        old.read(&mut [0; 1]).unwrap(),
        0,
        "the host process reads the end"
    );
    // Host processes that come at once have to wait.
    let mut host = BufReader::new(guest.connect());
    writeln!(host.get_mut(), "CONNECT 8").unwrap();
    let event = guest.driver.wait_used(EVENT);
    assert_eq!(event.data, [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    // What the guest sends meanwhile goes its way: its packets are taken.
    let header = guest.header(op::RST, 1, 7);
    guest.send(header, &[]);
    assert!(guest.driver.take_used(RX).is_none(), "it comes after the event");
    // The driver has closed its streams and gives the buffer back.
    guest.driver.submit(EVENT, &[], &[4]);
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 8);
    guest.forwarded = 0;
    guest.send(guest.header(op::RESPONSE, request.src_port, 8), &[]);
    let mut line = String::new();
    host.read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {}\n", request.src_port));
}

#[test]
fn a_guest_that_goes_on_before_its_driver_has_given_buffers_gets_the_event_then() {
    let mut guest = Guest::new();
    let (_old, _) = guest.accept(7);
    guest.go_on();
    // Nor does it forget when that happens twice.
    guest.go_on();
    let mut host = BufReader::new(guest.connect());
    writeln!(host.get_mut(), "CONNECT 8").unwrap();
    guest.driver.submit(EVENT, &[], &[4]);
    guest.driver.ring(EVENT);
    guest.driver.wait_used(EVENT);
    assert!(guest.driver.take_used(RX).is_none());
    guest.driver.submit(EVENT, &[], &[4]);
    guest.expect(op::REQUEST);
}

#[test]
fn a_guest_without_streams_has_nothing_to_be_told() {
    let mut guest = Guest::new();
    guest.driver.submit(EVENT, &[], &[4]);
    guest.driver.ring(EVENT);
    let (host, port) = guest.accept(7);
    drop(host);
    // That nothing more is sent and that nothing more is read may be two packets.
    while guest.receive().0.flags != shutdown::BOTH {}
    let header = guest.header(op::RST, port, 7);
    guest.send(header, &[]);
    guest.go_on();
    guest.accept(8);
    assert!(guest.driver.take_used(EVENT).is_none());
}

#[test]
fn a_machine_that_was_saved_and_goes_on_itself_keeps_its_streams() {
    let mut guest = Guest::new();
    let (mut host, port) = guest.accept(7);
    guest.driver.transport().pause();
    guest.driver.transport().save().unwrap();
    guest.driver.transport().resume();
    host.get_mut().write_all(b"on").unwrap();
    let (header, data) = guest.expect(op::RW);
    assert_eq!((header.src_port, &data[..]), (port, &b"on"[..]));
}
