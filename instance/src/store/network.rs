//! An instance's network as its record has it: which kind, and which ports lead into it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

pub use ami::Protocol;
use serde::{Deserialize, Serialize};

/// Length of the prefix of 127.64.0.0/10.
const PUBLIC_PREFIX: u32 = 10;

/// The addresses in 127.64.0.0/10, of which each instance may have one of its own: they are loopback
/// addresses of this host, as all of 127.0.0.0/8 are, and stand for the public addresses that EC2 gives.
pub const fn public_address(number: u32) -> Ipv4Addr {
    let mask = u32::MAX >> PUBLIC_PREFIX;
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 64, 0, 0).to_bits() | number & mask)
}

/// Whether `address` is one of them.
pub const fn is_public(address: Ipv4Addr) -> bool {
    let distance = address.to_bits() ^ Ipv4Addr::new(127, 64, 0, 0).to_bits();
    distance >> (32 - PUBLIC_PREFIX) == 0
}

/// The kind of network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "device")]
pub enum Network {
    /// The built-in one, which needs no privilege.
    #[default]
    User,
    /// The built-in one, and 10.0.2.2 leads to the host's own loopback address: what listens there is open to
    /// the guest.
    UserLoopback,
    /// A tap device of the host.
    Tap(String),
    /// None.
    None,
}

impl FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once('=') {
            None if text == "user" => Ok(Network::User),
            None if text == "user,loopback" => Ok(Network::UserLoopback),
            None if text == "none" => Ok(Network::None),
            Some(("tap", device)) if !device.is_empty() => Ok(Network::Tap(device.into())),
            _ => Err("a network is `user`, `user,loopback`, `tap=DEVICE` or `none`".into()),
        }
    }
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The host's address; the loopback address unless asked otherwise, so that other hosts cannot connect.
    pub address: IpAddr,
    /// The host's port; 0 lets the host choose.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl FromStr for Port {
    type Err = String;

    /// `[[ADDRESS:]HOST:]GUEST[/tcp|/udp]`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (rest, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, protocol)) => (rest, protocol.parse()?),
        };
        let number = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port"));
        let (before, guest) = rest
            .rsplit_once(':')
            .map_or((None, rest), |(before, guest)| (Some(before), guest));
        let guest = number(guest)?;
        if guest == 0 {
            return Err("port 0 of the guest cannot be reached".into());
        }
        let (address, host) =
            match before.map(|b| b.rsplit_once(':').map_or((None, b), |(a, h)| (Some(a), h))) {
                None => (None, 0),
                Some((address, host)) => (address, number(host)?),
            };
        let address = match address.map(|a| a.trim_start_matches('[').trim_end_matches(']')) {
            None => IpAddr::from(Ipv4Addr::LOCALHOST),
            Some(address) => address
                .parse()
                .map_err(|_| format!("{address:?} is not an IP address"))?,
        };
        Ok(Port {
            address,
            host,
            guest,
            protocol,
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} -> {}",
            self.guest,
            self.protocol,
            SocketAddr::new(self.address, self.host)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_bind_loopback_unless_asked_otherwise() {
        for (text, shown) in [
            ("8080:80", "80/tcp -> 127.0.0.1:8080"),
            ("80", "80/tcp -> 127.0.0.1:0"),
            ("0.0.0.0:53:5353/udp", "5353/udp -> 0.0.0.0:53"),
            ("[::1]:8080:80/tcp", "80/tcp -> [::1]:8080"),
            ("192.0.2.1:0:22", "22/tcp -> 192.0.2.1:0"),
        ] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            ":",
            "80:",
            "8080:0",
            "a:80",
            "1:2:3:4",
            "70000:80",
            "8080:80/sctp",
            "x:1:2",
            "-1:80",
        ] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_in_their_block() {
        assert_eq!(public_address(0), Ipv4Addr::new(127, 64, 0, 0));
        assert_eq!(public_address(u32::MAX), Ipv4Addr::new(127, 127, 255, 255));
        assert!(is_public(public_address(0x12_3456)));
        for other in [
            Ipv4Addr::LOCALHOST,
            Ipv4Addr::new(127, 128, 0, 0),
            Ipv4Addr::new(10, 64, 0, 1),
        ] {
            assert!(!is_public(other), "{other}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!("user,loopback".parse(), Ok(Network::UserLoopback));
        assert_eq!("tap=tap0".parse(), Ok(Network::Tap("tap0".into())));
        for text in ["", "tap", "tap=", "bridge", "user,"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
