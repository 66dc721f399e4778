//! ARP towards the one guest on the wire (RFC 826).

use std::net::Ipv4Addr;

use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};

/// Destination, source, type.
const ETHERNET_HEADER: usize = 14;

/// The frame that answers a request for one of `ours`, which have the address `mac`. A probe for the guest's
/// own address stays unanswered, or the guest would take it for a conflict (RFC 5227).
pub fn answer(payload: &[u8], ours: &[Ipv4Addr], mac: [u8; 6]) -> Option<Vec<u8>> {
    let request = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: guest,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = request
    else {
        return None;
    };
    if !ours.contains(&target_protocol_addr) {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: guest,
        target_protocol_addr: source_protocol_addr,
    };
    let mut frame = [guest.as_bytes(), &mac, &[0x08, 0x06]].concat();
    frame.resize(ETHERNET_HEADER + reply.buffer_len(), 0);
    reply.emit(&mut ArpPacket::new_unchecked(&mut frame[ETHERNET_HEADER..]));
    Some(frame)
}
