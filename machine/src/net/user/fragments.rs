//! IPv4 fragmentation (RFC 791 §3.2): fragments from the guest are reassembled, and packets to it that are
//! larger than its MTU are fragmented.
//!
//! The MTU is almost the largest packet there is, but a guest may have set a smaller one, and containers in
//! it usually have.

use std::net::Ipv4Addr;
use std::time::Duration;

use smoltcp::wire::{IpProtocol, Ipv4Packet};

/// Packets of which pieces are kept. One more takes the place of the oldest. 64 KiB each.
const PACKETS_CAP: usize = 16;

/// A packet whose pieces have not all come by then is forgotten (Linux's `ipfrag_time`).
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of the largest packet.
const PACKET_CAP: usize = 65_535;

/// Pieces begin at multiples of this.
const UNIT: usize = 8;

/// What the pieces of one packet have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpProtocol,
    ident: u16,
}

/// A packet that is not whole yet.
#[derive(Debug)]
struct Partial {
    key: Key,
    since: Duration,
    /// Of the first piece.
    header: Option<Vec<u8>>,
    payload: Vec<u8>,
    /// Which units of the payload are there.
    present: Vec<bool>,
    /// Bytes of the whole payload, once the last piece is there.
    total: Option<usize>,
}

/// The packets of one guest that are not whole yet.
#[derive(Debug, Default)]
pub struct Fragments(Vec<Partial>);

impl Fragments {
    /// Takes a piece, and gives the packet when that was the last one missing.
    pub fn add(&mut self, bytes: &[u8], now: Duration) -> Option<Vec<u8>> {
        let piece = Ipv4Packet::new_checked(bytes).ok()?;
        let key = Key {
            source: piece.src_addr(),
            destination: piece.dst_addr(),
            protocol: piece.next_header(),
            ident: piece.ident(),
        };
        self.0
            .retain(|partial| now.saturating_sub(partial.since) < TIMEOUT);
        let known = self.0.iter().position(|partial| partial.key == key);
        let mut partial = match known {
            Some(at) => self.0.remove(at),
            None => Partial::new(key, now),
        };
        // One that contradicts the others drops them all: which of them is right cannot be known.
        partial.add(&piece)?;
        if let Some(whole) = partial.whole() {
            return Some(whole);
        }
        if self.0.len() >= PACKETS_CAP
            && let Some((oldest, _)) = self.0.iter().enumerate().min_by_key(|(_, partial)| partial.since)
        {
            self.0.remove(oldest);
        }
        self.0.push(partial);
        None
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Partial {
    fn new(key: Key, since: Duration) -> Partial {
        Partial {
            key,
            since,
            header: None,
            payload: Vec::new(),
            present: Vec::new(),
            total: None,
        }
    }

    /// `None` when the piece does not fit to the others.
    fn add(&mut self, piece: &Ipv4Packet<&[u8]>) -> Option<()> {
        let (start, data) = (usize::from(piece.frag_offset()), piece.payload());
        let end = start + data.len();
        let header = usize::from(piece.header_len());
        let more = piece.more_frags();
        let fits = header + end <= PACKET_CAP && !data.is_empty();
        let beyond = self
            .total
            .is_some_and(|total| end > total || (!more && end != total));
        let cut = !more && end < self.payload.len();
        if !fits || beyond || cut || (more && !data.len().is_multiple_of(UNIT)) {
            return None;
        }
        let units = start / UNIT..end.div_ceil(UNIT);
        if self.present.len() < units.end {
            self.present.resize(units.end, false);
            self.payload.resize(end.max(self.payload.len()), 0);
        }
        let there = self.present[units.clone()].iter().filter(|there| **there).count();
        if there == units.len() {
            // Once more: the guest's driver may send twice.
            return Some(());
        }
        if there > 0 {
            return None;
        }
        self.payload[start..end].copy_from_slice(data);
        self.present[units].fill(true);
        if start == 0 {
            self.header = Some(piece.as_ref()[..header].to_vec());
        }
        if !more {
            self.total = Some(end);
        }
        Some(())
    }

    fn whole(&self) -> Option<Vec<u8>> {
        let (total, header) = (self.total?, self.header.as_ref()?);
        let length = u16::try_from(header.len() + total).ok()?;
        if !self.present.iter().all(|there| *there) {
            return None;
        }
        let mut bytes = [header.as_slice(), &self.payload[..total]].concat();
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
        packet.set_total_len(length);
        packet.clear_flags();
        packet.set_frag_offset(0);
        packet.fill_checksum();
        Some(bytes)
    }
}

/// Cuts a packet without options into pieces of at most `mtu` bytes, `mtu` being larger than a header and a
/// unit.
pub fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    if packet.len() <= mtu {
        return vec![packet.to_vec()];
    }
    let (header, payload) = packet.split_at(smoltcp::wire::IPV4_HEADER_LEN);
    let room = (mtu - header.len()) / UNIT * UNIT;
    let count = payload.len().div_ceil(room);
    let piece = |(index, data): (usize, &[u8])| {
        let mut bytes = [header, data].concat();
        // Both are less than the packet's length, which is of 16 bits.
        let (length, offset) = (bytes.len() as u16, (index * room) as u16);
        let mut piece = Ipv4Packet::new_unchecked(&mut bytes[..]);
        piece.set_total_len(length);
        piece.set_more_frags(index + 1 < count);
        piece.set_frag_offset(offset);
        piece.fill_checksum();
        bytes
    };
    payload.chunks(room).enumerate().map(piece).collect()
}
