//! The network, when PID 1 stays ours: loopback, and the first interface as the machine says.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use super::mounts;
use crate::command_line::StaticNetwork;
use crate::interface::{self, Request};

/// Who may send ICMP echo requests without privilege: every group, as systemd has it
/// (sysctl.d/50-default.conf). Debian's `ping` has no capability and relies on it.
const PING_GROUPS: (&str, &str) = ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");

/// Brings loopback up, and the first interface if the machine gave it an address. Failures are said: a
/// machine without network still has its console and agent.
pub fn up(network: Option<&StaticNetwork>, search: &[String]) {
    // A kernel without IPv4 has no such file.
    let _ = fs::write(PING_GROUPS.0, PING_GROUPS.1);
    let result = (|| {
        let control = interface::control()?;
        raise(&control, "lo")?;
        match (network, interface::first()) {
            (Some(network), Some(interface)) => configure(&control, &interface, network, search),
            _ => Ok(()),
        }
    })();
    if let Err(error) = result {
        mounts::say(&format!("guest-init: the network could not be set up: {error}"));
    }
}

fn configure(
    control: &OwnedFd,
    interface: &str,
    network: &StaticNetwork,
    search: &[String],
) -> io::Result<()> {
    let StaticNetwork {
        address,
        prefix,
        gateway,
        dns,
        mtu,
    } = *network;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    set_address(control, interface, libc::SIOCSIFADDR, address)?;
    set_address(
        control,
        interface,
        libc::SIOCSIFNETMASK,
        Ipv4Addr::from_bits(mask),
    )?;
    let mut request = Request::new(interface);
    request.set(&i32::from(mtu).to_ne_bytes());
    // A device that cannot take packets so large keeps its own MTU.
    let _ = request.send(control, libc::SIOCSIFMTU);
    raise(control, interface)?;
    add_default_route(control, gateway)?;
    // An image that manages its resolver itself has a link there.
    if !fs::symlink_metadata("/etc/resolv.conf").is_ok_and(|metadata| metadata.is_symlink()) {
        fs::write("/etc/resolv.conf", resolver(dns, search))?;
    }
    Ok(())
}

/// The text of `/etc/resolv.conf`.
fn resolver(dns: Ipv4Addr, search: &[String]) -> String {
    let mut text = format!("nameserver {dns}\n");
    if !search.is_empty() {
        text += &format!("search {}\n", search.join(" "));
    }
    text
}

/// `struct sockaddr_in` without a port.
fn socket_address(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

fn set_address(
    control: &OwnedFd,
    interface: &str,
    operation: libc::c_ulong,
    address: Ipv4Addr,
) -> io::Result<()> {
    let mut request = Request::new(interface);
    request.set(&socket_address(address));
    request.send(control, operation)
}

fn raise(control: &OwnedFd, interface: &str) -> io::Result<()> {
    let mut request = Request::new(interface);
    request.send(control, libc::SIOCGIFFLAGS)?;
    let flags = i16::from_ne_bytes(request.get()) | libc::IFF_UP as i16;
    request.set(&flags.to_ne_bytes());
    request.send(control, libc::SIOCSIFFLAGS)
}

fn add_default_route(control: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: rtentry is plain data, for which all zeros is a value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = to_sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = to_sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = to_sockaddr(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads one rtentry, which `route` is; its device pointer is null, which means any.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCADDRT as _, &raw const route) };
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() != Some(libc::EEXIST) {
        Err(error)
    } else {
        Ok(())
    }
}

fn to_sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    // SAFETY: both are 16 bytes of plain data.
    unsafe { std::mem::transmute(socket_address(address)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resolver_has_the_machines_search_list() {
        let dns = Ipv4Addr::new(10, 0, 2, 3);
        assert_eq!(resolver(dns, &[]), "nameserver 10.0.2.3\n");
        let search = ["a.example".to_owned(), "b.example".to_owned()];
        assert_eq!(
            resolver(dns, &search),
            "nameserver 10.0.2.3\nsearch a.example b.example\n"
        );
    }

    #[test]
    fn the_kernels_structures_have_their_sizes() {
        assert_eq!(size_of::<Request>(), 40);
        assert_eq!(size_of::<libc::sockaddr>(), 16);
        assert_eq!(
            socket_address(Ipv4Addr::new(10, 0, 2, 15))[..8],
            [2, 0, 0, 0, 10, 0, 2, 15]
        );
    }
}
