//! Ethernet framing towards the one guest on the wire.

/// Destination, source, type.
pub const ETHERNET_HEADER: usize = 14;

/// Our end of the wire: locally administered, and the same in every instance's own network.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x4b, 0x69, 0x6c, 0x6e, 0x01];

/// The protocols that are implemented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EtherType {
    /// 0x0800
    Ipv4,
    /// 0x0806
    Arp,
}

/// The two ends of the wire.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    /// The guest's MAC address.
    pub guest: [u8; 6],
}

impl Framing {
    /// Splits a frame of the guest. Frames that are neither for us nor for everyone, and other protocols,
    /// give `None`.
    pub fn parse<'a>(&self, frame: &'a [u8]) -> Option<(EtherType, &'a [u8])> {
        let (header, payload) = frame.split_at_checked(ETHERNET_HEADER)?;
        let (destination, rest) = header.split_at(6);
        let (source, kind) = rest.split_at(6);
        let group = destination[0] & 1 == 1;
        if source != self.guest || !(group || destination == GATEWAY_MAC) {
            return None;
        }
        match kind {
            [0x08, 0x00] => Some((EtherType::Ipv4, payload)),
            [0x08, 0x06] => Some((EtherType::Arp, payload)),
            _ => None,
        }
    }

    /// The header of a frame to the guest.
    pub fn header(&self, kind: EtherType) -> [u8; ETHERNET_HEADER] {
        let mut header = [0; ETHERNET_HEADER];
        header[..6].copy_from_slice(&self.guest);
        header[6..12].copy_from_slice(&GATEWAY_MAC);
        header[12..].copy_from_slice(match kind {
            EtherType::Ipv4 => &[0x08, 0x00],
            EtherType::Arp => &[0x08, 0x06],
        });
        header
    }

    /// A whole frame to the guest.
    pub fn frame(&self, kind: EtherType, payload_len: usize) -> Vec<u8> {
        let mut frame = self.header(kind).to_vec();
        frame.resize(ETHERNET_HEADER + payload_len, 0);
        frame
    }
}
