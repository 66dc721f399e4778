//! DNS queries of the guest over UDP. Each goes to the host's name servers one after the other until
//! one answers, as in the C library: the guest knows only one server.

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::ethernet::Framing;
use super::poller::{Kind, Poller};
use super::resolvers::Resolvers;
use super::udp::{DATAGRAM_CAP, push_datagram};
use super::{DNS_PORT, Frames};
use crate::net::Addresses;
use crate::net::clock::{Clock, millis};

/// Questions without an answer at once. One more takes the place of the oldest.
pub(super) const QUESTIONS_CAP: usize = 64;

/// Bytes of a question. One name is asked for in less than 300; extensions add some. Longer ones are not
/// kept, and are dropped.
const QUESTION_CAP: usize = 4096;

/// How long a server has before the next one is asked as well. The guest asks again after five seconds at the
/// earliest (glibc's time-out), and should have its answer then.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the last server has. The guest has given up by then, or has asked again.
const LAST_SERVER_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of a message's header, and where its response code is (RFC 1035 §4.1.1).
const HEADER: usize = 12;
const RESPONSE_CODE: usize = 3;
/// Codes with which a server says that it has no answer: SERVFAIL, NOTIMP, REFUSED. The C library asks the
/// next one then.
const CANNOT_TELL: [u8; 3] = [2, 4, 5];

/// A question that waits for its answer.
struct Question {
    guest_port: u16,
    bytes: Vec<u8>,
    /// Sockets connected to the servers that have been asked, the latest last. A late answer is as good as
    /// one in time.
    asked: Vec<(SocketAddr, UdpSocket)>,
    /// Servers that have not been asked.
    left: VecDeque<SocketAddr>,
    /// When the latest was asked.
    since: Duration,
    /// The answer of a server that failed, in case no better one comes.
    rejection: Option<Vec<u8>>,
    /// A socket may have an answer.
    ready: bool,
    /// A server has refused or failed.
    failed: bool,
}

/// What has become of a question.
enum Progress {
    Waiting,
    /// With its answer, if there is one.
    Finished(Option<Vec<u8>>),
}

/// All questions of one network.
pub struct Questions {
    addresses: Addresses,
    clock: Clock,
    questions: BTreeMap<u32, Question>,
    next_id: u32,
    /// For one datagram of any size; empty until the guest first asks.
    buffer: Vec<u8>,
}

impl Questions {
    /// None yet.
    pub fn new(addresses: Addresses, clock: Clock) -> Questions {
        Questions {
            addresses,
            clock,
            questions: BTreeMap::new(),
            next_id: 0,
            buffer: Vec::new(),
        }
    }

    /// Asks what the guest asks from its port `from`.
    pub fn ask(&mut self, from: u16, bytes: &[u8], resolvers: &mut Resolvers, poller: &Poller) {
        if bytes.len() > QUESTION_CAP {
            return;
        }
        let again = self
            .questions
            .values()
            .find(|known| known.guest_port == from && known.bytes == bytes);
        if let Some(known) = again {
            for (_, socket) in &known.asked {
                // A refusal is seen where answers are read.
                let _ = socket.send(bytes);
            }
            return;
        }
        if self.questions.len() >= QUESTIONS_CAP {
            // Ids rise: the first is the oldest, but for once in 2³² questions.
            self.questions.pop_first();
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut question = Question {
            guest_port: from,
            bytes: bytes.to_vec(),
            asked: Vec::new(),
            left: resolvers.in_order().into(),
            since: Duration::ZERO,
            rejection: None,
            ready: false,
            failed: false,
        };
        if question.ask_next(id, poller, self.clock.now()) {
            self.questions.insert(id, question);
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Notes that a question may have been answered.
    pub fn mark(&mut self, id: u32) {
        if let Some(question) = self.questions.get_mut(&id) {
            question.ready = true;
        }
    }

    /// Turns answers into frames for the guest, and asks the next server where one has failed or let its time
    /// pass.
    pub(super) fn receive(
        &mut self,
        framing: &Framing,
        frames: &mut Frames,
        resolvers: &mut Resolvers,
        poller: &Poller,
    ) {
        if self.questions.is_empty() {
            return;
        }
        self.buffer.resize(DATAGRAM_CAP, 0);
        let Questions {
            addresses,
            clock,
            questions,
            buffer,
            ..
        } = self;
        let (now, dns) = (clock.now(), (addresses.dns, DNS_PORT));
        questions.retain(|&id, question| {
            let mut progress = Progress::Waiting;
            if std::mem::take(&mut question.ready) {
                progress = question.read(buffer, resolvers);
            }
            if matches!(progress, Progress::Waiting) {
                progress = question.go_on(id, resolvers, poller, now);
            }
            let Progress::Finished(answer) = progress else {
                return true;
            };
            if let Some(bytes) = answer {
                let guest = (addresses.guest, question.guest_port);
                push_datagram(frames, framing, dns, guest, &bytes);
            }
            false
        });
    }

    /// Milliseconds until the next server is asked.
    pub fn next_timer(&self) -> Option<u64> {
        let next = self.questions.values().map(Question::deadline).min()?;
        Some(millis(next.saturating_sub(self.clock.now())))
    }
}

impl Question {
    /// Asks the next server that can be asked; false when none is left.
    fn ask_next(&mut self, id: u32, poller: &Poller, now: Duration) -> bool {
        while let Some(server) = self.left.pop_front() {
            if let Ok(socket) = connect(server)
                && socket.send(&self.bytes).is_ok()
                && poller.add(&socket, Kind::Dns, id).is_ok()
            {
                self.asked.push((server, socket));
                self.since = now;
                return true;
            }
        }
        false
    }

    fn deadline(&self) -> Duration {
        let is_last = self.left.is_empty();
        self.since
            + if is_last {
                LAST_SERVER_TIMEOUT
            } else {
                SERVER_TIMEOUT
            }
    }

    /// Asks the next server when one has failed or its time is over, until none is left.
    fn go_on(&mut self, id: u32, resolvers: &mut Resolvers, poller: &Poller, now: Duration) -> Progress {
        let late = self.deadline() <= now;
        if let Some((address, _)) = self.asked.last().filter(|_| late) {
            resolvers.has_missed(*address);
        }
        let failed = std::mem::take(&mut self.failed);
        if (failed || late) && self.ask_next(id, poller, now) {
            return Progress::Waiting;
        }
        if late || self.asked.is_empty() {
            return Progress::Finished(self.rejection.take());
        }
        Progress::Waiting
    }

    /// Reads what servers have said. Servers that refuse or fail are not listened to any more.
    fn read(&mut self, buffer: &mut [u8], resolvers: &mut Resolvers) -> Progress {
        let mut at = 0;
        while let Some((address, socket)) = self.asked.get(at) {
            match socket.recv(buffer) {
                Ok(length) => {
                    let bytes = &buffer[..length];
                    resolvers.has_answered(*address);
                    if !cannot_tell(bytes) {
                        return Progress::Finished(Some(bytes.to_vec()));
                    }
                    self.rejection.get_or_insert_with(|| bytes.to_vec());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    at += 1;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Nothing listens there.
                Err(_) => {}
            }
            self.asked.remove(at);
            self.failed = true;
        }
        Progress::Waiting
    }
}

fn cannot_tell(answer: &[u8]) -> bool {
    answer.len() >= HEADER && CANNOT_TELL.contains(&(answer[RESPONSE_CODE] & 0xf))
}

fn connect(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}
