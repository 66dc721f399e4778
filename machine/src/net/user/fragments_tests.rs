//! Fragments in any order, of any kind, and datagrams of any size both ways.

use std::net::UdpSocket;
use std::time::Duration;

use super::ethernet::ETHERNET_HEADER;
use super::fragments::{Fragments, cut};
use super::tests::{Guest, gateway, udp_frame, udp_payload};
use super::*;
use crate::entropy::chance::Chance;

const SMALL_MTU: usize = 1500;
/// Packets that are put together at once.
const PACKETS_CAP: usize = 16;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n / 8 * 7 + n) as u8).collect()
}

fn packet(length: usize) -> Vec<u8> {
    udp_frame(1000, (gateway(), 2000), &bytes(length))[ETHERNET_HEADER..].to_vec()
}

/// Puts pieces together; what came out.
fn put_together<'a>(
    fragments: &mut Fragments,
    pieces: impl IntoIterator<Item = &'a Vec<u8>>,
) -> Vec<Vec<u8>> {
    let add = |piece: &Vec<u8>| fragments.add(piece, Duration::ZERO);
    pieces.into_iter().filter_map(add).collect()
}

#[test]
fn pieces_make_the_packet_in_any_order_and_more_than_once() {
    let whole = packet(8192);
    let pieces = cut(&whole, SMALL_MTU);
    assert!(pieces.len() == 6 && pieces.iter().all(|piece| piece.len() <= SMALL_MTU));
    let mut fragments = Fragments::default();
    assert_eq!(put_together(&mut fragments, &pieces), [whole.as_slice()]);
    assert_eq!(
        put_together(&mut fragments, pieces.iter().rev()),
        [whole.as_slice()]
    );
    let (some, others) = pieces.split_at(3);
    let twice = some.iter().chain(some).chain(others);
    assert_eq!(put_together(&mut fragments, twice), [whole.as_slice()]);
    assert_eq!(fragments.len(), 0);
}

#[test]
fn pieces_that_contradict_each_other_make_nothing() {
    let pieces = cut(&packet(8192), SMALL_MTU);
    // The same packet, cut elsewhere; and one that ends elsewhere.
    let others = cut(&packet(8192), 1000);
    let longer = cut(&packet(9000), SMALL_MTU);
    let mut fragments = Fragments::default();
    for strange in [&others[1], longer.last().unwrap()] {
        let with = pieces[..1].iter().chain([strange]).chain(&pieces[1..]);
        // Each packet has a number of its own; these are to have the same.
        let same: Vec<Vec<u8>> = with
            .map(|piece| {
                let mut piece = piece.clone();
                Ipv4Packet::new_unchecked(&mut piece[..]).set_ident(7);
                piece
            })
            .collect();
        assert!(put_together(&mut fragments, &same).is_empty());
        fragments = Fragments::default();
    }
}

#[test]
fn what_never_becomes_whole_is_bounded_and_forgotten() {
    let mut fragments = Fragments::default();
    for _ in 0..100 {
        fragments.add(&cut(&packet(3000), SMALL_MTU)[1], Duration::ZERO);
    }
    assert_eq!(fragments.len(), PACKETS_CAP);
    fragments.add(&cut(&packet(3000), SMALL_MTU)[0], Duration::from_secs(31));
    assert_eq!(fragments.len(), 1);
}

#[test]
fn random_fragments_cause_no_panic() {
    let mut chance = Chance(0x5eed);
    let mut fragments = Fragments::default();
    for n in 0..20_000 {
        let length = 1 + chance.index(4000);
        let pieces = cut(&packet(length), 28 + chance.index(SMALL_MTU));
        let mut piece = pieces[chance.index(pieces.len())].clone();
        // Few numbers, so that pieces meet; any flags and offset.
        piece[4..6].copy_from_slice(&[0, chance.index(4) as u8]);
        if chance.index(2) == 0 {
            piece[6..8].copy_from_slice(&(chance.any() as u16).to_be_bytes());
        }
        if let Some(whole) = fragments.add(&piece, Duration::from_millis(n)) {
            let whole = Ipv4Packet::new_checked(&whole).unwrap();
            assert!(!whole.more_frags() && whole.frag_offset() == 0 && whole.verify_checksum());
        }
        assert!(fragments.len() <= PACKETS_CAP);
    }
}

#[test]
fn datagrams_of_any_size_go_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let port = server.local_addr().unwrap().port();
    let mut guest = Guest::new(Vec::new(), None);
    // The last is the largest that there is, and larger than the MTU.
    for length in [0, 1472, 8192, 65_000, 65_507] {
        let sent = bytes(length);
        let frame = udp_frame(1000, (gateway(), port), &sent);
        let (header, packet) = frame.split_at(ETHERNET_HEADER);
        for piece in cut(packet, SMALL_MTU) {
            guest.raw(&[header, &piece].concat());
        }
        let mut buffer = vec![0; 70_000];
        let (got, from) = server.recv_from(&mut buffer).unwrap();
        assert!(buffer[..got] == sent, "{got} of {length}");
        server.send_to(&sent, from).unwrap();
        let (mut fragments, mut whole) = (Fragments::default(), None);
        while whole.is_none() {
            let frame = guest.frame();
            assert!(frame.len() <= usize::from(MTU) + ETHERNET_HEADER);
            let piece = Ipv4Packet::new_checked(&frame[ETHERNET_HEADER..]).unwrap();
            assert!(!piece.dont_frag(), "a router in the guest may cut it further");
            whole = match piece.more_frags() || piece.frag_offset() > 0 {
                true => fragments.add(&frame[ETHERNET_HEADER..], Duration::ZERO),
                false => Some(frame[ETHERNET_HEADER..].to_vec()),
            };
        }
        let frame = [header, &whole.unwrap()].concat();
        assert!(udp_payload(&frame) == (gateway(), 1000, sent), "{length}");
    }
}
