//! An instance's network while it runs: the device, the ports that are open, and what its metadata service
//! says.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use crate::images::image::Image;
use crate::process::launch::hostname;
use crate::store::network::{Network, Port};
use crate::store::record::{Record, VolumeKind};
use crate::{Error, InstanceId, Result};
use machine::net::metadata::{InstanceDocuments, LiveTags, PublicKey, WithMetadata};
use machine::net::tap::Tap;
use machine::net::user::{self, Forward, Resolver, UserNetwork};
use machine::net::{Addresses, Backend};
use machine::virtio::net::NetSpec;

/// The file in the state directory that holds the user data, byte for byte.
pub const USER_DATA: &str = "user-data";
/// The largest user data: EC2's limit.
const MAX_USER_DATA: u64 = 16 << 10;

/// Refuses user data of which there is more than EC2 takes.
///
/// # Errors
/// When there is.
pub fn check_user_data(data: Option<&[u8]>) -> Result<()> {
    match data {
        Some(data) if data.len() as u64 > MAX_USER_DATA => Err(Error::UserDataTooLong(MAX_USER_DATA >> 10)),
        _ => Ok(()),
    }
}
/// Where the ports that are really open are written while the guest runs.
const PORTS: &str = "ports.json";

/// A card for the guest, and what is on its kernel's command line about the network.
pub struct Card {
    /// The device.
    pub device: NetSpec,
    /// Words for the kernel command line, for a guest that does not ask by DHCP.
    pub words: Option<String>,
    /// What changes the tags in its metadata.
    pub tags: LiveTags,
}

/// The card of one run of the instance, or none; `search` are the domains that short names are looked up in.
pub fn card(record: &Record, directory: &Path, image: &Image, search: &[String]) -> Result<Option<Card>> {
    let mac = mac(&record.id);
    let limits = record.config.limits;
    let with = |backend: Box<dyn Backend>| NetSpec {
        backend,
        mac,
        send: limits.network(),
        receive: limits.network(),
    };
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
            let network = UserNetwork::new(&spec).or_else(|_| {
                // Somebody else may have a port now that the host chose earlier.
                spec.forwards = as_before(ports, Vec::new());
                UserNetwork::new(&spec)
            })?;
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
            let backend = WithMetadata::new(network, documents);
            Some(Card {
                tags: backend.tags(),
                device: with(Box::new(backend)),
                words: Some(words),
            })
        }
        Network::Tap(name) => {
            let tap = Tap::open(name)?;
            let backend = WithMetadata::new(tap, documents(record, directory, image, None)?);
            Some(Card {
                tags: backend.tags(),
                device: with(Box::new(backend)),
                words: None,
            })
        }
    })
}

/// Checks that the network can be had now: the tap device is there, the ports are free. Leaves nothing
/// behind.
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
    UserNetwork::new(&spec)?;
    Ok(())
}

/// Checks that the device of a network is there, if it has one.
///
/// # Errors
/// When it is not.
pub fn check_device(network: &Network) -> Result<()> {
    match network {
        Network::Tap(name) => Ok(Tap::find(name)?),
        Network::User | Network::UserLoopback | Network::None => Ok(()),
    }
}

/// A locally administered address that follows from the id, so that it survives stop and start.
pub fn mac(id: &InstanceId) -> [u8; 6] {
    let bytes = id.platform_uuid().into_bytes();
    [0x02, bytes[11], bytes[12], bytes[13], bytes[14], bytes[15]]
}

/// What to forward. Where the host is to choose, its choice in the run before is asked for again: a port that
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
        protocol: port.protocol,
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
            protocol: f.protocol,
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
pub fn documents(
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
        instance_type: instance_type(record, cpus, memory),
        local_hostname: hostname(record).into(),
        local_ipv4: addresses.map(|a| a.guest),
        public_ipv4: record.public_address(),
        security_groups: record
            .config
            .security_groups
            .iter()
            .map(|g| (g.id.clone(), g.name.clone()))
            .collect(),
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

/// The type that the launch named, or one that says what the machine has.
fn instance_type(record: &Record, cpus: u32, memory: u64) -> String {
    let named = record.config.instance_type.clone();
    named.unwrap_or_else(|| format!("kiln.{cpus}x{}", memory >> 20))
}

/// EC2's virtual names: `ami` and `root` for the first volume, `ebs1` and so on for the others, `ephemeral0`
/// and so on for those that do not outlive a stop.
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
pub fn tags(record: &Record) -> BTreeMap<String, String> {
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
    fn a_port_that_the_host_chose_is_asked_for_again() {
        let port = |text: &str| text.parse::<Port>().unwrap();
        let asked = [port("80"), port("80"), port("8443:443"), port("53/udp")];
        let open = [port("40001:80"), port("40002:80"), port("8443:443")];
        let hosts = |before: &[Port]| -> Vec<u16> {
            let forwards = as_before(&asked, before.to_vec());
            forwards.iter().map(|forward| forward.host.port()).collect()
        };
        assert_eq!(hosts(&[]), [0, 0, 8443, 0], "the first run");
        assert_eq!(hosts(&open), [40001, 40002, 8443, 0]);
        // One of another address, protocol or guest's port is no memory of it.
        for other in ["127.0.0.2:40001:80", "40001:80/udp", "40001:81"] {
            assert_eq!(hosts(&[port(other)])[0], 0, "{other}");
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
