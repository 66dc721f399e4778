//! TCP connections of a guest that goes on from a snapshot: the guest has them, and the network, which is of
//! another process now, does not. Each is reset at once, whether the guest sends or waits to receive.
//!
//! A reset has to name the sequence number that the guest expects (RFC 5961 §3.2), which nobody here knows. So
//! the guest is asked for it: an acknowledgement from outside of its window makes it send one of its own (RFC
//! 9293 §3.10.7.4), and the reset that answers has its number. What the guest sends on such a connection by
//! itself is answered in the same way.
//!
//! Until the guest's interface has the address of its new instance, it takes and sends frames by the one that
//! it was saved with; so the frames here go to, and come from, either.

use std::net::SocketAddrV4;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Packet, Ipv4Repr,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use super::clock::Clock;
use crate::entropy;
use crate::state::Refused;

/// Connections that are remembered at most: more than a network has.
const CAP: usize = 1024;
/// How often the guest is asked about each connection, and how long it has to answer: a receive queue that is
/// full, or an interface that just changes its address, loses a frame. Linux answers such segments of one
/// connection twice a second at most.
const ROUNDS: u32 = 5;
const ROUND: Duration = Duration::from_secs(1);
/// The far end's hardware address. The guest does not look at it.
const SOURCE: EthernetAddress = EthernetAddress([0x02, 0x4b, 0x69, 0x6c, 0x6e, 0x02]);
/// Hops that a packet may make.
const HOP_LIMIT: u8 = 64;

/// A TCP connection of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TcpConnection {
    /// The guest's end.
    pub guest: SocketAddrV4,
    /// The other end.
    pub peer: SocketAddrV4,
}

/// What a snapshot holds of a network card's connections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedConnections {
    /// The guest's hardware address, as its last frame had it.
    pub address: [u8; 6],
    /// In order, each once.
    pub connections: Vec<TcpConnection>,
}

/// The connections that a guest has and its network has not.
pub struct LostConnections {
    /// The guest's hardware address, as its last frame has it.
    address: EthernetAddress,
    connections: Vec<TcpConnection>,
    clock: Clock,
    /// When the first round began.
    since: Duration,
    /// Rounds that have begun.
    rounds: u32,
    /// The next connection of this round to ask about.
    next: usize,
    /// A sequence number of the first round.
    number: u32,
}

impl LostConnections {
    /// None.
    pub fn none() -> LostConnections {
        LostConnections::with_clock(&SavedConnections::default(), Clock::monotonic())
    }

    /// Those of a snapshot.
    ///
    /// # Errors
    /// When there are more than any network has.
    pub fn restored(saved: &SavedConnections) -> Result<LostConnections, Refused> {
        let few = saved.connections.len() <= CAP;
        Refused::unless(few, "the number of connections")?;
        Ok(LostConnections::with_clock(saved, Clock::monotonic()))
    }

    /// The same, with time on `clock`.
    pub(super) fn with_clock(saved: &SavedConnections, clock: Clock) -> LostConnections {
        let SavedConnections { address, connections } = saved;
        LostConnections {
            address: EthernetAddress(*address),
            connections: connections.clone(),
            since: clock.now(),
            clock,
            rounds: 1,
            next: 0,
            number: u32::from_le_bytes(entropy::bytes()),
        }
    }

    /// What the next snapshot needs: these, and the `known` ones of the network.
    pub fn save(&self, known: Vec<TcpConnection>) -> SavedConnections {
        let mut connections = [known, self.connections.clone()].concat();
        connections.sort_unstable();
        connections.dedup();
        connections.truncate(CAP);
        SavedConnections {
            address: self.address.0,
            connections,
        }
    }

    /// Looks at a frame of the guest. Returns the frame that answers it, if it is of a lost connection; it is
    /// not for the network then.
    pub fn answer(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        self.address = ethernet.src_addr();
        if self.connections.is_empty() || ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        if packet.next_header() != IpProtocol::Tcp || packet.frag_offset() != 0 {
            return None;
        }
        let segment = TcpPacket::new_checked(packet.payload()).ok()?;
        let connection = TcpConnection {
            guest: SocketAddrV4::new(packet.src_addr(), segment.src_port()),
            peer: SocketAddrV4::new(packet.dst_addr(), segment.dst_port()),
        };
        let at = self.connections.iter().position(|lost| *lost == connection)?;
        // Whatever it is, the guest has no such connection after it. A new one is the network's.
        self.forget(at);
        if segment.syn() || segment.rst() || !segment.ack() {
            return None;
        }
        Some(self.frame(&connection, TcpControl::Rst, segment.ack_number(), None))
    }

    fn forget(&mut self, at: usize) {
        self.connections.remove(at);
        self.next -= usize::from(at < self.next);
    }

    /// The next frame by which the guest is asked.
    pub fn ask(&mut self) -> Option<Vec<u8>> {
        if self.rounds < ROUNDS && self.clock.now() >= self.since + self.rounds * ROUND {
            self.rounds += 1;
            self.next = 0;
        }
        let connection = *self.connections.get(self.next)?;
        self.next += 1;
        // A number may by chance be in the window; in the next round it is half of all numbers away.
        let number = self.number.wrapping_add((self.rounds & 1) << 31);
        let number = TcpSeqNumber(number.cast_signed());
        Some(self.frame(&connection, TcpControl::None, number, Some(number)))
    }

    /// How long until there is more to ask.
    pub fn timeout(&self) -> Option<Duration> {
        if self.connections.is_empty() {
            return None;
        }
        if self.next < self.connections.len() {
            return Some(Duration::ZERO);
        }
        let next = self.since + self.rounds * ROUND;
        (self.rounds < ROUNDS).then(|| next.saturating_sub(self.clock.now()))
    }

    /// A segment from the far end without data.
    fn frame(
        &self,
        connection: &TcpConnection,
        control: TcpControl,
        number: TcpSeqNumber,
        acknowledged: Option<TcpSeqNumber>,
    ) -> Vec<u8> {
        let TcpConnection { guest, peer } = *connection;
        let segment = TcpRepr {
            src_port: peer.port(),
            dst_port: guest.port(),
            control,
            seq_number: number,
            ack_number: acknowledged,
            window_len: 0,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let packet = Ipv4Repr {
            src_addr: *peer.ip(),
            dst_addr: *guest.ip(),
            next_header: IpProtocol::Tcp,
            payload_len: segment.buffer_len(),
            hop_limit: HOP_LIMIT,
        };
        let ethernet = EthernetRepr {
            src_addr: SOURCE,
            dst_addr: self.address,
            ethertype: EthernetProtocol::Ipv4,
        };
        let checksums = ChecksumCapabilities::default();
        let mut frame = vec![0; ethernet.buffer_len() + packet.buffer_len() + segment.buffer_len()];
        let mut whole = EthernetFrame::new_unchecked(&mut frame[..]);
        ethernet.emit(&mut whole);
        let mut inner = Ipv4Packet::new_unchecked(whole.payload_mut());
        packet.emit(&mut inner, &checksums);
        let (source, destination) = ((*peer.ip()).into(), (*guest.ip()).into());
        let mut innermost = TcpPacket::new_unchecked(inner.payload_mut());
        segment.emit(&mut innermost, &source, &destination, &checksums);
        frame
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::net::testing::Leaps;
    use std::net::Ipv4Addr;

    const GUEST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 15), 40_000);
    const PEER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 443);
    const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 7];

    pub(crate) fn connection(port: u16) -> TcpConnection {
        TcpConnection {
            guest: SocketAddrV4::new(*GUEST.ip(), port),
            peer: PEER,
        }
    }

    fn lost(ports: &[u16]) -> (LostConnections, Leaps) {
        let time = Leaps::new();
        let saved = SavedConnections {
            address: ADDRESS,
            connections: ports.iter().map(|port| connection(*port)).collect(),
        };
        (LostConnections::with_clock(&saved, time.clock()), time)
    }

    /// A segment, decoded: destination address of its frame, ports, number, acknowledgement, whether it resets.
    fn decode(frame: &[u8]) -> ([u8; 6], u16, u16, i32, Option<i32>, bool) {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        let packet = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        assert!(packet.verify_checksum());
        let segment = TcpPacket::new_checked(packet.payload()).unwrap();
        assert!(segment.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
        (
            ethernet.dst_addr().0,
            segment.src_port(),
            segment.dst_port(),
            segment.seq_number().0,
            segment.ack().then(|| segment.ack_number().0),
            segment.rst(),
        )
    }

    /// A segment of the guest on a connection, from an interface with this address.
    pub(crate) fn from_guest(
        port: u16,
        address: [u8; 6],
        control: TcpControl,
        acknowledged: Option<i32>,
    ) -> Vec<u8> {
        let turned = LostConnections::none();
        let TcpConnection { guest, peer } = connection(port);
        let connection = TcpConnection {
            guest: peer,
            peer: guest,
        };
        let acknowledged = acknowledged.map(TcpSeqNumber);
        let mut frame = turned.frame(&connection, control, TcpSeqNumber(5), acknowledged);
        frame[6..12].copy_from_slice(&address);
        frame
    }

    #[test]
    fn the_guest_is_asked_and_its_answer_is_reset() {
        let (mut lost, time) = lost(&[40_000, 40_001]);
        assert_eq!(lost.timeout(), Some(Duration::ZERO));
        let asked = decode(&lost.ask().unwrap());
        assert_eq!(
            (asked.0, asked.1, asked.2, asked.5),
            (ADDRESS, 443, 40_000, false)
        );
        assert!(asked.4.is_some());
        assert_eq!(decode(&lost.ask().unwrap()).2, 40_001);
        assert_eq!(lost.ask(), None);
        // It has another address by now.
        let new = [2, 0, 0, 0, 0, 9];
        let reply = lost.answer(&from_guest(40_000, new, TcpControl::None, Some(77)));
        assert_eq!(decode(&reply.unwrap()), (new, 443, 40_000, 77, None, true));
        // What comes after it is the network's, and what was not answered is asked for again, with a number
        // half of all away.
        let more = from_guest(40_000, new, TcpControl::None, Some(77));
        assert_eq!(lost.answer(&more), None);
        time.leap(ROUND);
        let again = decode(&lost.ask().unwrap());
        assert_eq!((again.0, again.2), (new, 40_001));
        assert_eq!(again.3, asked.3 ^ i32::MIN);
        assert_eq!(lost.ask(), None);
        for _ in 2..ROUNDS {
            time.leap(ROUND);
            assert!(lost.ask().is_some());
        }
        time.leap(ROUND);
        assert_eq!((lost.ask(), lost.timeout()), (None, None), "it is asked no more");
        let late = lost.answer(&from_guest(40_001, new, TcpControl::None, Some(78)));
        assert!(decode(&late.unwrap()).5, "what it sends is answered");
    }

    #[test]
    fn a_new_connection_and_one_that_the_guest_resets_are_left_alone() {
        for (control, acknowledged) in [
            (TcpControl::Syn, None),
            (TcpControl::Syn, Some(1)),
            (TcpControl::Rst, Some(1)),
        ] {
            let (mut lost, _) = lost(&[40_000]);
            let frame = from_guest(40_000, ADDRESS, control, acknowledged);
            assert_eq!(lost.answer(&frame), None);
            assert_eq!(lost.timeout(), None, "nothing is left of it");
        }
        let (mut lost, _) = lost(&[40_000]);
        for frame in [
            &[][..],
            &[0; 14],
            &from_guest(40_000, ADDRESS, TcpControl::None, Some(1))[..40],
        ] {
            assert_eq!(lost.answer(frame), None);
        }
        assert_eq!(lost.timeout(), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_lost_is_saved_again_with_what_is_known() {
        let (lost, _) = lost(&[40_001, 40_000]);
        let known = vec![connection(9), connection(40_000)];
        let saved = lost.save(known);
        assert_eq!(saved.address, ADDRESS);
        assert_eq!(saved.connections, [9, 40_000, 40_001].map(connection));
        assert!(LostConnections::restored(&saved).is_ok());
        let saved = SavedConnections {
            connections: vec![connection(1); CAP + 1],
            ..saved
        };
        assert!(LostConnections::restored(&saved).is_err());
    }
}
