//! An instance's network: which kind, which ports lead into it, and what its metadata service says.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::image::Image;
use super::launch::hostname;
use super::record::{Record, VolumeKind};
use super::{Error, InstanceId, Result};
use machine::net::metadata::{InstanceDocuments, PublicKey, WithMetadata};
use machine::net::tap::Tap;
use machine::net::user::{self, Forward, Resolver, UserNetwork};
use machine::net::{Addresses, Backend};
use machine::virtio::net::Net;

/// The file in the state directory that holds the user data, byte for byte.
pub const USER_DATA: &str = "user-data";
/// The largest user data: EC2's limit.
pub const MAX_USER_DATA: u64 = 16 << 10;
/// Where the ports that are really open are written while the guest runs.
const PORTS: &str = "ports.json";

/// The kind of network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "device")]
pub enum Network {
    /// The built-in one, which needs no privilege.
    #[default]
    User,
    /// The built-in one, and 10.0.2.2 leads to the host's own loopback address: what listens there is open to the guest.
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

/// Transport protocol of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            other => Err(format!("{other:?} is neither tcp nor udp")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The host's address; the loopback address unless asked otherwise, so that nobody else can connect.
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

/// A card for the guest, and what its kernel is told about the network.
pub struct Card {
    /// The device.
    pub device: Net,
    /// Words for the kernel command line, for a guest that does not ask by DHCP.
    pub words: Option<String>,
}

/// The card of one run of the instance, or none; `search` are the domains that short names are looked up in.
pub fn card(record: &Record, directory: &Path, image: &Image, search: &[String]) -> Result<Option<Card>> {
    let mac = mac(&record.id);
    let limits = record.config.limits;
    let failed = |e: machine::net::Error| Error::Network(e.to_string());
    let addresses = Addresses::default();
    Ok(match &record.config.network {
        Network::None => None,
        Network::User | Network::UserLoopback => {
            let ports = &record.config.ports;
            let before = match ports.is_empty() {
                true => Vec::new(),
                false => open_ports(directory)?,
            };
            let mut spec = user::Spec {
                mac,
                addresses,
                forwards: as_before(ports, before),
                resolver: Resolver::host(),
                search: search.to_vec(),
                host_loopback: record.config.network == Network::UserLoopback,
            };
            let network = UserNetwork::new(&spec)
                .or_else(|_| {
                    // Somebody else may have a port now that the host chose earlier.
                    spec.forwards = as_before(ports, Vec::new());
                    UserNetwork::new(&spec)
                })
                .map_err(failed)?;
            if !ports.is_empty() {
                write_ports(directory, &network.forwards())?;
            }
            let words = format!(
                "kiln.ip={}/{},{},{},{}",
                addresses.guest,
                addresses.prefix,
                addresses.gateway,
                addresses.dns,
                network.mtu()
            );
            let documents = documents(record, directory, image, Some(addresses))?;
            let backend = Box::new(WithMetadata::new(network, documents));
            Some(Card {
                device: Net::paced(backend, mac, limits.network(), limits.network()),
                words: Some(words),
            })
        }
        Network::Tap(name) => {
            let tap = Tap::open(name).map_err(failed)?;
            let backend = Box::new(WithMetadata::new(tap, documents(record, directory, image, None)?));
            Some(Card {
                device: Net::paced(backend, mac, limits.network(), limits.network()),
                words: None,
            })
        }
    })
}

/// Checks that the network can be had now: the tap device is there, the ports are free. Leaves nothing behind.
///
/// # Errors
/// The reason for which a launch would be refused.
pub fn check(record: &Record) -> Result<()> {
    let config = &record.config;
    check_device(&config.network)?;
    if !matches!(config.network, Network::User | Network::UserLoopback) {
        return Ok(());
    }
    let spec = user::Spec {
        mac: mac(&record.id),
        addresses: Addresses::default(),
        forwards: as_before(&config.ports, Vec::new()),
        resolver: Resolver::host(),
        search: Vec::new(),
        host_loopback: false,
    };
    UserNetwork::new(&spec)
        .map(drop)
        .map_err(|error| Error::Network(error.to_string()))
}

/// Checks that the device of a network is there, if it has one.
///
/// # Errors
/// When it is not.
pub fn check_device(network: &Network) -> Result<()> {
    match network {
        Network::Tap(name) => Tap::find(name).map_err(|error| Error::Network(error.to_string())),
        Network::User | Network::UserLoopback | Network::None => Ok(()),
    }
}

/// A locally administered address that follows from the id, so that it survives stop and start.
fn mac(id: &InstanceId) -> [u8; 6] {
    let bytes = id.platform_uuid().into_bytes();
    [0x02, bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]]
}

/// What to forward. Where the host is to choose, its choice in the instance's life before is asked for again: a port that
/// changed with each reboot would have to be looked up each time.
fn as_before(ports: &[Port], mut before: Vec<Port>) -> Vec<Forward> {
    let again = |port: &Port| {
        let same = |old: &Port| Port { host: 0, ..*old } == *port;
        let known = before.iter().position(same).map(|at| before.remove(at));
        forward(&known.unwrap_or(*port))
    };
    ports.iter().map(again).collect()
}

fn forward(port: &Port) -> Forward {
    Forward {
        protocol: match port.protocol {
            Protocol::Tcp => user::Protocol::Tcp,
            Protocol::Udp => user::Protocol::Udp,
        },
        host: SocketAddr::new(port.address, port.host),
        guest: port.guest,
    }
}

fn write_ports(directory: &Path, open: &[Forward]) -> Result<()> {
    let ports: Vec<_> = open
        .iter()
        .map(|f| Port {
            address: f.host.ip(),
            host: f.host.port(),
            guest: f.guest,
            protocol: match f.protocol {
                user::Protocol::Tcp => Protocol::Tcp,
                user::Protocol::Udp => Protocol::Udp,
            },
        })
        .collect();
    let path = directory.join(PORTS);
    fs::write(&path, serde_json::to_vec(&ports).unwrap_or_default()).map_err(Error::file("writing", &path))
}

/// The ports that are open while the instance kept in `directory` runs.
pub fn open_ports(directory: &Path) -> Result<Vec<Port>> {
    let path = directory.join(PORTS);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| Error::file("reading", &path)(e.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(Error::file("reading", &path)(e)),
    }
}

/// The user data kept in `directory`, if there is any.
pub fn user_data(directory: &Path) -> Result<Option<Vec<u8>>> {
    let path = directory.join(USER_DATA);
    match fs::read(&path) {
        Ok(data) => Ok(Some(data)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::file("reading", &path)(e)),
    }
}

/// What the metadata service knows.
fn documents(
    record: &Record,
    directory: &Path,
    image: &Image,
    addresses: Option<Addresses>,
) -> Result<InstanceDocuments> {
    let manifest = image.manifest();
    let cpus = record.config.cpus.unwrap_or(manifest.default_cpus);
    let memory = record.config.memory.unwrap_or(manifest.default_memory);
    let key = |(index, key): (usize, &String)| {
        let comment = key.split_ascii_whitespace().nth(2).map(str::to_owned);
        PublicKey {
            name: comment.unwrap_or_else(|| format!("key-{index}")),
            key: key.clone(),
        }
    };
    Ok(InstanceDocuments {
        ami_id: record.image.id.clone(),
        ami_launch_index: record.launch_index,
        instance_id: record.id.to_string(),
        instance_type: format!("kiln.{cpus}x{}", memory >> 20),
        local_hostname: hostname(record).into(),
        local_ipv4: addresses.map(|a| a.guest),
        prefix: addresses.map_or(0, |a| a.prefix),
        mac: mac(&record.id),
        public_keys: record.config.ssh_keys.iter().enumerate().map(key).collect(),
        block_device_mapping: block_devices(record),
        reservation_id: record.reservation.to_string(),
        launched: record.launched,
        architecture: manifest.architecture.to_string(),
        tags: tags(record),
        user_data: user_data(directory)?,
    })
}

/// EC2's virtual names: `ami` and `root` for the first volume, `ebs1` and so on for the others, `ephemeral0` and so on for
/// those that do not outlive a stop.
fn block_devices(record: &Record) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut ephemeral = 0;
    for (index, volume) in record.volumes.iter().enumerate() {
        if volume.kind == VolumeKind::Ephemeral {
            let device = volume.device.trim_start_matches("/dev/");
            all.push((format!("ephemeral{ephemeral}"), device.into()));
            ephemeral += 1;
        } else if index == 0 {
            all.push(("ami".into(), volume.device.trim_start_matches("/dev/").into()));
            all.push(("root".into(), volume.device.clone()));
        } else {
            all.push((
                format!("ebs{index}"),
                volume.device.trim_start_matches("/dev/").into(),
            ));
        }
    }
    all
}

/// The tags, and the name as the tag that it is on EC2.
fn tags(record: &Record) -> BTreeMap<String, String> {
    let mut tags = record.tags.clone();
    if let Some(name) = &record.name {
        tags.entry("Name".into()).or_insert_with(|| name.clone());
    }
    tags
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
    fn a_port_that_the_host_chose_is_asked_for_again() {
        let port = |text: &str| text.parse::<Port>().unwrap();
        let asked = [port("80"), port("80"), port("8443:443"), port("53/udp")];
        let open = [port("40001:80"), port("40002:80"), port("8443:443")];
        let hosts = |before: &[Port]| -> Vec<u16> {
            let forwards = as_before(&asked, before.to_vec());
            forwards.iter().map(|forward| forward.host.port()).collect()
        };
        assert_eq!(hosts(&[]), [0, 0, 8443, 0], "the first life");
        assert_eq!(hosts(&open), [40001, 40002, 8443, 0]);
        // One of another address, protocol or guest's port is no memory of it.
        for other in ["127.0.0.2:40001:80", "40001:80/udp", "40001:81"] {
            assert_eq!(hosts(&[port(other)])[0], 0, "{other}");
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

    #[test]
    fn the_mac_address_is_local_unicast_and_stays() {
        let id = InstanceId::random();
        let address = mac(&id);
        assert_eq!(address[0] & 0b11, 0b10);
        assert_eq!(address, mac(&id));
        assert_ne!(address, mac(&InstanceId::random()));
    }
}
