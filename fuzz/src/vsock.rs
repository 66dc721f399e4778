//! The socket device between a guest that sends well-formed headers with any content and host processes that
//! come and go.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use machine::virtio::testing::{Driver, Request};
use machine::virtio::vsock::packet::{Header, STREAM, op};
use machine::virtio::vsock::{HOST_CID, MIN_GUEST_CID, Vsock};

use crate::input::Input;
use crate::scratch;

const RX: usize = 0;
const TX: usize = 1;
/// Steps of one input at most.
const MAX_STEPS: usize = 200;
/// Host processes at once.
const MAX_HOSTS: usize = 4;
/// Longer than any packet may take on a loaded machine: a device that is silent for this long hangs.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Buffers for the guest's receive queue at once.
const ROOM: usize = 32;

struct Session {
    driver: Driver,
    folder: tempfile::TempDir,
    hosts: Vec<UnixStream>,
    service: UnixListener,
    /// Ports of the host that packets to the guest came from: the guest may answer them.
    seen: Vec<(u32, u32)>,
    room: usize,
}

/// Each step is a packet of the guest, more room for it, or something that a host process does.
pub fn run(data: &[u8]) {
    let folder = scratch::folder();
    let path = folder.path().join("v");
    let device = Vsock::bind(MIN_GUEST_CID, &path).expect("a socket");
    let service = UnixListener::bind(folder.path().join("v_7")).expect("a socket");
    service.set_nonblocking(true).expect("a socket");
    let mut session = Session {
        driver: Driver::started(device, u64::MAX),
        folder,
        hosts: Vec::new(),
        service,
        seen: Vec::new(),
        room: 0,
    };
    let mut input = Input::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() || session.driver.needs_reset() {
            break;
        }
        session.step(&mut input);
        session.receive();
    }
    session.driver.start(u64::MAX);
    assert!(!session.driver.needs_reset(), "a good driver was turned away");
}

impl Session {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..6 => self.send(input),
            6 => self.give_room(usize::from(input.byte() % 16), input),
            7..9 => self.connect(input),
            9..11 => {
                let count = input.half() % 2048;
                let bytes = input.bytes(count.into()).to_vec();
                if let Some(host) = self.host(input) {
                    let _ = host.write_all(&bytes);
                }
            }
            11..13 => {
                if let Some(host) = self.host(input) {
                    let _ = host.read(&mut [0; 4096]);
                }
            }
            13 => {
                if let Ok((stream, _)) = self.service.accept() {
                    self.adopt(stream);
                }
            }
            14 => {
                let how = input.one_of(&[std::net::Shutdown::Read, std::net::Shutdown::Write]);
                if let Some(host) = self.host(input) {
                    let _ = host.shutdown(how);
                }
            }
            _ => {
                let at = usize::from(input.byte());
                if !self.hosts.is_empty() {
                    self.hosts.remove(at % self.hosts.len());
                }
            }
        }
    }

    /// A packet of the guest: mostly about a stream that may exist.
    fn send(&mut self, input: &mut Input<'_>) {
        let shape = input.byte();
        let (host_port, guest_port) = match self.seen.last() {
            Some(&ports) if shape & 1 == 0 => ports,
            _ => (u32::from(input.byte() % 16), u32::from(input.byte() % 8)),
        };
        let operations = [
            op::REQUEST,
            op::RESPONSE,
            op::RST,
            op::SHUTDOWN,
            op::RW,
            op::CREDIT_UPDATE,
        ];
        let operation = match input.byte() {
            odd @ 240.. => u16::from(odd),
            byte => match operations.get(usize::from(byte % 8)) {
                Some(operation) => *operation,
                None => op::CREDIT_REQUEST,
            },
        };
        let count = match shape & 2 {
            0 => 0,
            _ => usize::from(input.half() % 4096),
        };
        let data = input.bytes(count).to_vec();
        let mut header = Header {
            src_cid: MIN_GUEST_CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            kind: STREAM,
            op: operation,
            flags: u32::from(input.byte() % 8),
            buf_alloc: 1 << 16,
            fwd_cnt: 0,
            len: data.len() as u32,
        };
        if shape & 4 != 0 {
            (header.buf_alloc, header.fwd_cnt) = (input.word(), input.word());
        }
        if shape & 0xf8 == 0xf8 {
            (header.src_cid, header.dst_cid) = (input.long(), input.long());
            (header.kind, header.len) = (input.half(), input.word());
        }
        let encoded = header.encode();
        let parts: &[&[u8]] = match data.is_empty() {
            true => &[&encoded],
            false => &[&encoded, &data],
        };
        let sent = self.driver.submit(TX, parts, &[]);
        self.driver.ring(TX);
        self.await_sent(&sent);
    }

    fn await_sent(&mut self, sent: &Request) {
        let start = Instant::now();
        let mut spins = 0u32;
        while self.driver.take_used(TX).is_none() {
            if self.driver.needs_reset() {
                return;
            }
            spins += 1;
            if spins > 200 {
                std::thread::sleep(Duration::from_micros(50));
            } else {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < TIMEOUT, "{sent:?} was never taken");
        }
    }

    fn give_room(&mut self, buffers: usize, input: &mut Input<'_>) {
        for _ in 0..buffers {
            if self.room < ROOM {
                let len = input.one_of(&[4096, 44, 45, 100, 10]);
                self.driver.submit(RX, &[], &[len]);
                self.room += 1;
            }
        }
        self.driver.ring(RX);
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        let Ok(stream) = UnixStream::connect(self.folder.path().join("v")) else {
            return;
        };
        self.adopt(stream);
        let greeting = match input.byte() {
            odd @ 224.. => input.bytes(usize::from(odd) - 220).to_vec(),
            port => format!("CONNECT {}\n", port % 8).into_bytes(),
        };
        if let Some(host) = self.hosts.last_mut() {
            let _ = host.write_all(&greeting);
        }
    }

    fn adopt(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket");
        if self.hosts.len() < MAX_HOSTS {
            self.hosts.push(stream);
        }
    }

    fn host(&mut self, input: &mut Input<'_>) -> Option<&mut UnixStream> {
        let at = usize::from(input.byte());
        let count = self.hosts.len().max(1);
        self.hosts.get_mut(at % count)
    }

    /// What came for the guest, which must be well-formed.
    fn receive(&mut self) {
        while let Some(used) = self.driver.take_used(RX) {
            self.room -= 1;
            let Some((header, data)) = used.data.split_first_chunk() else {
                continue;
            };
            let header = Header::decode(*header);
            assert_eq!(header.len as usize, data.len(), "{header:?}");
            self.seen.push((header.src_port, header.dst_port));
        }
    }
}
