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

/// Option 15, domain name (RFC 2132 §3.17): the only domain that old clients know.
const OPTION_DOMAIN: u8 = 15;
/// Option 119, domain search (RFC 3397).
const OPTION_SEARCH: u8 = 119;
/// Bytes of one option's data.
const OPTION_CAP: usize = 255;
/// Bytes of one label of a domain's name (RFC 1035 §2.3.4).
const LABEL_CAP: usize = 63;

/// What a client is given.
#[derive(Debug)]
pub struct Lease<'a> {
    /// Its address and its neighbours'.
    pub addresses: &'a Addresses,
    /// The MTU of its interface.
    pub mtu: u16,
    /// Domains that short names are looked up in.
    pub search: &'a [String],
}

/// The domains as option 119 has them: labels with their lengths before them, an empty one last (RFC 1035
/// §3.1). Those that are no names are left out, and those for which there is no room.
fn encode_search(domains: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for domain in domains {
        let labels: Vec<_> = domain.trim_end_matches('.').split('.').collect();
        let sound = labels.iter().all(|label| (1..=LABEL_CAP).contains(&label.len()));
        let length: usize = labels.iter().map(|label| label.len() + 1).sum::<usize>() + 1;
        if !sound || bytes.len() + length > OPTION_CAP {
            continue;
        }
        for label in labels {
            // At most LABEL_CAP.
            bytes.push(label.len() as u8);
            bytes.extend_from_slice(label.as_bytes());
        }
        bytes.push(0);
    }
    bytes
}

/// The frame that answers a client's message, if it deserves one.
pub fn answer(message: &[u8], framing: &Framing, lease: &Lease<'_>) -> Option<Vec<u8>> {
    let Lease {
        addresses,
        mtu,
        search,
    } = *lease;
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
    let list = encode_search(search);
    let domain = search.first().map_or("", |domain| domain.trim_end_matches('.'));
    let options = [
        (OPTION_MTU, &mtu[..]),
        (OPTION_DOMAIN, domain.as_bytes()),
        (OPTION_SEARCH, &list),
    ];
    let there = |(_, data): &(u8, &[u8])| (1..=OPTION_CAP).contains(&data.len());
    let options: Vec<_> = options
        .into_iter()
        .filter(there)
        .map(|(kind, data)| DhcpOption { kind, data })
        .collect();
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
