//! Receiving packets from the guest, and sending packets to it.

use std::io::Write as _;

use virtio_queue::QueueT;

use super::{Hub, MAX_STREAMS, Peer, RECEIVE, watch};
use crate::event::Poller;
use crate::virtio::determinism::Determinism;
use crate::virtio::ring::{Chain, QueueError};
use crate::virtio::vsock::connection::{Connection, Phase};
use crate::virtio::vsock::packet::{HEADER, Header, STREAM, op, shutdown};
use crate::virtio::vsock::{HOST_CID, unix};
use crate::virtio::worker::{Context, Wake};

/// Largest packet that the guest may send (Linux: 64 KiB).
const MAX_PACKET: u32 = 64 << 10;
/// Packets given to the guest before the worker looks at its other events again.
const MAX_PACKETS_PER_WAKEUP: usize = 256;

impl Hub {
    /// Serves one packet from the guest.
    pub(super) fn packet(
        &mut self,
        poller: &Poller<Wake>,
        determinism: &Determinism,
        chain: &Chain<'_>,
    ) -> Result<(), QueueError> {
        let mut bytes = [0; HEADER];
        if chain.readable.read(0, &mut bytes) != HEADER {
            return Err(QueueError::Request("a vsock packet without a whole header"));
        }
        let header = Header::decode(bytes);
        if header.len > MAX_PACKET || chain.readable.len() - HEADER < header.len as usize {
            return Err(QueueError::Request(
                "a vsock packet with less data than its header says, or too much",
            ));
        }
        if header.src_cid != self.guest_cid {
            return Ok(()); // forged: there is no peer to answer
        }
        if header.kind != STREAM || header.dst_cid != HOST_CID {
            self.reset(&header);
            return Ok(());
        }
        let id = self.by_ports.get(&(header.dst_port, header.src_port)).copied();
        match (id, header.op) {
            (None, op::REQUEST) => self.open(poller, determinism, &header)?,
            (None, op::RST) => {}
            (None, _) => self.reset(&header),
            (Some(id), op::RST) => self.close(id),
            (Some(id), _) => self.on_stream(id, &header, chain),
        }
        Ok(())
    }

    /// The guest asks for a stream.
    fn open(
        &mut self,
        poller: &Poller<Wake>,
        determinism: &Determinism,
        header: &Header,
    ) -> Result<(), QueueError> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", header.dst_port));
        let stream = if self.peers.len() < MAX_STREAMS {
            determinism.opening(header.dst_port, || unix::connect(path.as_ref()).ok())
        } else {
            None
        };
        let Some(stream) = stream else {
            self.reset(header);
            return Ok(());
        };
        let id = self.free_id();
        watch(poller, &stream, id)?;
        let mut connection = Connection::new(stream, header.dst_port, header.src_port, Phase::Open);
        connection.learn_credit(header.buf_alloc, header.fwd_cnt);
        self.by_ports.insert((header.dst_port, header.src_port), id);
        self.peers.insert(id, Peer::Stream(Box::new(connection)));
        self.enqueue(id);
        Ok(())
    }

    /// A packet for the stream `id`.
    fn on_stream(&mut self, id: u32, header: &Header, chain: &Chain<'_>) {
        let Some(Peer::Stream(connection)) = self.peers.get_mut(&id) else {
            return;
        };
        connection.learn_credit(header.buf_alloc, header.fwd_cnt);
        let synchronous = self.synchronous;
        let flush = |connection: &mut Connection| {
            if synchronous {
                connection.flush_or_discard();
                return true;
            }
            connection.flush().is_ok()
        };
        let legal = match (header.op, connection.phase) {
            (op::RESPONSE, Phase::Requested) => {
                connection.phase = Phase::Open;
                // A fresh socket has room for a line.
                writeln!(connection.stream, "OK {}", connection.host_port).is_ok()
            }
            (op::RW, Phase::Open) => {
                self.scratch.resize(header.len as usize, 0);
                chain.readable.read(HEADER, &mut self.scratch);
                connection.guest_shutdown & shutdown::SEND == 0
                    && connection.take(&self.scratch)
                    && flush(connection)
            }
            (op::SHUTDOWN, Phase::Open) => {
                connection.guest_shutdown |= header.flags & shutdown::BOTH;
                if connection.guest_shutdown == shutdown::BOTH {
                    // The guest is done. It waits for the reset, and all that it has sent is here.
                    self.reset(header);
                    return self.close(id);
                }
                flush(connection)
            }
            (op::CREDIT_UPDATE, Phase::Open) => true,
            (op::CREDIT_REQUEST, Phase::Open) => {
                connection.pending.credit_update = true;
                true
            }
            _ => false,
        };
        if legal {
            self.enqueue(id);
        } else {
            self.reset(header);
            self.forget(id);
        }
    }

    /// Gives the guest what there is, as far as it has room.
    pub(super) fn fill(&mut self, context: &mut Context) -> Result<(), QueueError> {
        self.more = false;
        if !context.rings[RECEIVE].queue.ready() {
            return Ok(());
        }
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let ring = &mut rings[RECEIVE];
        let mut chain = Chain::default();
        let mut used = 0;
        while used < MAX_PACKETS_PER_WAKEUP && !(self.resets.is_empty() && self.waiting.is_empty()) {
            if !ring.pop(memory, &mut chain)? {
                if ring.queue.enable_notification(&**memory)? {
                    continue;
                }
                break;
            }
            if chain.writable.len() < HEADER {
                return Err(QueueError::Request(
                    "a vsock receive buffer too small for a header",
                ));
            }
            match self.next_packet(&chain) {
                Some(header) => {
                    chain.writable.write(0, &header.encode());
                    ring.push(memory, chain.head, HEADER as u32 + header.len)?;
                    used += 1;
                }
                // Nothing came after all: the buffer stays available.
                None => ring.undo_pop(),
            }
        }
        self.more = used == MAX_PACKETS_PER_WAKEUP;
        if used > 0 {
            ring.notify(memory, &**interrupt)
        } else {
            Ok(())
        }
    }

    /// The next packet for the guest, its data already in `chain`.
    fn next_packet(&mut self, chain: &Chain<'_>) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(id) = self.waiting.pop_front() {
            let Some(Peer::Stream(connection)) = self.peers.get_mut(&id) else {
                continue;
            };
            let packet = connection.next_packet(chain, self.outside);
            let over = connection.host_shutdown == shutdown::BOTH && !connection.pending.shutdown;
            if let Some((op, len, flags)) = packet {
                let (buf_alloc, fwd_cnt) = connection.announce();
                let header = Header {
                    src_cid: HOST_CID,
                    dst_cid: self.guest_cid,
                    src_port: connection.host_port,
                    dst_port: connection.guest_port,
                    len,
                    kind: STREAM,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                };
                if over {
                    self.forget(id)
                } else {
                    self.enqueue(id)
                }
                return Some(header);
            }
        }
        None
    }
}
