//! The host's name servers at present, and the order in which they are queried.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::DNS_PORT;
use crate::net::clock::Clock;
use crate::sandbox::{self, Kind};

/// Where the host's resolvers are named.
pub const RESOLVERS: &str = "/etc/resolv.conf";

/// Servers that are used of a longer list: glibc's limit (`MAXNS`).
pub(super) const SERVERS_CAP: usize = 3;

/// The file is read again when the guest asks for a name and the last time is this long ago. A laptop changes
/// networks less often, and who has just done so waits no longer.
const REREAD: Duration = Duration::from_secs(5);

/// A server that has missed this many questions in a row is asked last ...
const MISSED_CAP: u32 = 2;

/// ... for this long. In between, the order is that of the file, which the host's administrator chose: the
/// first may know names that the others do not.
const ASKED_LAST: Duration = Duration::from_secs(30);

/// Where the guest's questions for names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolver {
    /// To the servers that a file like resolv.conf(5) names, as it is when they are asked.
    File(PathBuf),
    /// To these.
    At(Vec<SocketAddr>),
}

impl Resolver {
    /// Where the host's own go.
    pub fn host() -> Resolver {
        Resolver::File(RESOLVERS.into())
    }
}

/// A server, and how it has answered.
#[derive(Debug, Clone, Copy)]
struct Server {
    address: SocketAddr,
    missed: u32,
    last_until: Duration,
}

/// The servers of one network.
#[derive(Debug)]
pub struct Resolvers {
    resolver: Resolver,
    clock: Clock,
    servers: Vec<Server>,
    read: Option<Duration>,
}

impl Resolvers {
    /// None is asked, and no file read, before the guest asks.
    pub fn new(resolver: Resolver, clock: Clock) -> Resolvers {
        Resolvers {
            resolver,
            clock,
            servers: Vec::new(),
            read: None,
        }
    }

    /// The servers in the order in which they are to be asked.
    pub fn in_order(&mut self) -> Vec<SocketAddr> {
        self.refresh();
        let now = self.clock.now();
        let mut order: Vec<_> = self.servers.iter().collect();
        // Stable: otherwise as in the file.
        order.sort_by_key(|server| server.last_until > now);
        order.into_iter().map(|server| server.address).collect()
    }

    /// A server has answered something.
    pub fn has_answered(&mut self, address: SocketAddr) {
        for server in self.servers.iter_mut().filter(|server| server.address == address) {
            server.missed = 0;
            server.last_until = Duration::ZERO;
        }
    }

    /// A server has not answered a question in its time.
    pub fn has_missed(&mut self, address: SocketAddr) {
        let now = self.clock.now();
        for server in self.servers.iter_mut().filter(|server| server.address == address) {
            server.missed += 1;
            if server.missed >= MISSED_CAP {
                server.missed = 0;
                server.last_until = now + ASKED_LAST;
            }
        }
    }

    fn refresh(&mut self) {
        let now = self.clock.now();
        if self.read.is_some_and(|read| now.saturating_sub(read) < REREAD) {
            return;
        }
        self.read = Some(now);
        let addresses = match &self.resolver {
            Resolver::At(addresses) => addresses.clone(),
            Resolver::File(path) => match read(path.clone()) {
                Some(text) => parse(&text),
                // It cannot be read, for now perhaps: what was right is more likely to be right than nothing.
                None if !self.servers.is_empty() => return,
                None => parse(""),
            },
        };
        let before = std::mem::take(&mut self.servers);
        let server = |address: SocketAddr| {
            let known = before.iter().find(|server| server.address == address);
            known.copied().unwrap_or(Server {
                address,
                missed: 0,
                last_until: Duration::ZERO,
            })
        };
        self.servers = addresses.into_iter().take(SERVERS_CAP).map(server).collect();
    }
}

/// Reads the file in a thread that may: the one that carries packets opens no files.
fn read(path: PathBuf) -> Option<String> {
    let text = sandbox::ask(Kind::Control, move || sandbox::read_file(&path))
        .ok()?
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// The servers that a file names; where it names none, the host's own, as resolv.conf(5) says.
pub(super) fn parse(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let keyword = words.next().filter(|word| *word == "nameserver");
        keyword.and(words.next())?.parse::<IpAddr>().ok()
    };
    let mut servers: Vec<_> = text.lines().filter_map(address).collect();
    if servers.is_empty() {
        servers.push(Ipv4Addr::LOCALHOST.into());
    }
    servers
        .into_iter()
        .map(|address| (address, DNS_PORT).into())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Leaps;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn resolv_conf_is_read_as_the_c_library_does() {
        let text = "# comment\nsearch example\nnameserver 192.0.2.1\n nameserver\t::1 ; a comment\n\
                    nameserver nonsense\nnameservers 192.0.2.9\n;nameserver 192.0.2.9\n";
        assert_eq!(parse(text), addresses(&["192.0.2.1:53", "[::1]:53"]));
        assert_eq!(parse("search example\n"), addresses(&["127.0.0.1:53"]));
    }

    #[test]
    fn the_file_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, time) = (dir.path().join("resolv.conf"), Leaps::new());
        let mut resolvers = Resolvers::new(Resolver::File(path.clone()), time.clock());
        std::fs::write(&path, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        assert_eq!(resolvers.in_order(), addresses(&["192.0.2.1:53", "192.0.2.2:53"]));
        // Another file of the name, as most programs that change it make one.
        let other = dir.path().join("new");
        std::fs::write(&other, "nameserver 192.0.2.3\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        time.leap(REREAD);
        assert_eq!(resolvers.in_order(), addresses(&["192.0.2.3:53"]));
        // While there is none, the last one holds.
        std::fs::remove_file(&path).unwrap();
        time.leap(REREAD);
        assert_eq!(resolvers.in_order(), addresses(&["192.0.2.3:53"]));
        let many: String = (1..9).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        std::fs::write(&path, many).unwrap();
        time.leap(REREAD);
        assert_eq!(resolvers.in_order().len(), SERVERS_CAP);
    }

    #[test]
    fn a_server_that_is_silent_is_asked_last_for_a_while() {
        let time = Leaps::new();
        let servers = addresses(&["192.0.2.1:53", "192.0.2.2:53"]);
        let mut resolvers = Resolvers::new(Resolver::At(servers.clone()), time.clock());
        let reversed: Vec<_> = servers.iter().rev().copied().collect();
        assert_eq!(resolvers.in_order(), servers);
        resolvers.has_missed(servers[0]);
        resolvers.has_answered(servers[0]);
        resolvers.has_missed(servers[0]);
        assert_eq!(resolvers.in_order(), servers, "it has answered in between");
        resolvers.has_missed(servers[0]);
        assert_eq!(resolvers.in_order(), reversed);
        time.leap(ASKED_LAST);
        assert_eq!(resolvers.in_order(), servers);
    }
}
