//! The link address of the network interface.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `struct ifreq` (linux/if.h) with a link address.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    family: libc::sa_family_t,
    address: [u8; 22],
}

/// Gives the first interface that is not loopback the Ethernet address `address`, while it is up. A machine
/// without an interface has nothing to change.
pub fn set_address(address: &[u8; 6]) -> io::Result<()> {
    let Some(interface) = crate::interface::first() else {
        return Ok(());
    };
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        family: libc::ARPHRD_ETHER,
        address: [0; 22],
    };
    let length = interface.len().min(libc::IFNAMSIZ - 1);
    request.name[..length].copy_from_slice(&interface.as_bytes()[..length]);
    request.address[..6].copy_from_slice(address);
    // SAFETY: SIOCSIFHWADDR reads one ifreq, which `request` is in size and layout; it lives until the call
    // returns.
    let result = unsafe {
        libc::ioctl(
            control.as_raw_fd(),
            libc::SIOCSIFHWADDR as _,
            std::ptr::from_mut(&mut request),
        )
    };
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
