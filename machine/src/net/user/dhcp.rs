//! The DHCP server: one client, one lease, always the same answer (RFC 2131).

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

use super::ethernet::{EtherType, Framing};
use super::udp;
use crate::net::Addresses;

/// Where clients send.
pub const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// The lease never changes, so it can be long: a day, in seconds.
const LEASE_SECONDS: u32 = 86_400;

/// Option 26, interface MTU (RFC 2132 §5.1).
const OPTION_MTU: u8 = 26;

/// The frame that answers a client's message, if it deserves one.
pub fn answer(message: &[u8], framing: &Framing, addresses: &Addresses, mtu: u16) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    if request.client_hardware_address != EthernetAddress(framing.guest) {
        return None;
    }
    if request
        .server_identifier
        .is_some_and(|server| server != addresses.gateway)
    {
        return None;
    }
    let wanted = request
        .requested_ip
        .or(Some(request.client_ip).filter(|ip| !ip.is_unspecified()));
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if wanted.is_none_or(|ip| ip == addresses.guest) => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let mtu = mtu.to_be_bytes();
    let options = [DhcpOption {
        kind: OPTION_MTU,
        data: &mtu,
    }];
    let mut reply = reply_to(&request, kind, addresses);
    if kind != DhcpMessageType::Nak {
        reply.additional_options = &options;
    }
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).ok()?;
    // Broadcast: the client may not have its address yet.
    let from = (addresses.gateway, SERVER_PORT);
    let mut frame = framing.frame(EtherType::Ipv4, 0);
    udp::append_datagram(&mut frame, from, (Ipv4Addr::BROADCAST, CLIENT_PORT), &bytes);
    Some(frame)
}

fn reply_to<'a>(request: &DhcpRepr<'_>, kind: DhcpMessageType, addresses: &Addresses) -> DhcpRepr<'a> {
    let granted = kind != DhcpMessageType::Nak;
    let mask = u32::MAX
        .checked_shl(32 - u32::from(addresses.prefix))
        .unwrap_or(0);
    DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: request.client_ip,
        your_ip: if granted {
            addresses.guest
        } else {
            Ipv4Addr::UNSPECIFIED
        },
        server_ip: addresses.gateway,
        router: granted.then_some(addresses.gateway),
        subnet_mask: granted.then_some(Ipv4Addr::from_bits(mask)),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(addresses.gateway),
        parameter_request_list: None,
        dns_servers: granted.then(|| std::iter::once(addresses.dns).collect()),
        max_size: None,
        lease_duration: granted.then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    }
}
