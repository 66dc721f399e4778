//! The link address of the network interface.

use std::io;

use crate::interface::{self, Request};

/// Gives the first interface that is not loopback the Ethernet address `address`, while it is up. A machine
/// without an interface has nothing to change.
pub fn set_address(address: &[u8; 6]) -> io::Result<()> {
    let Some(interface) = interface::first() else {
        return Ok(());
    };
    // `struct sockaddr` with a link address.
    let mut value = [0; 8];
    value[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
    value[2..].copy_from_slice(address);
    let mut request = Request::new(&interface);
    request.set(&value);
    request.send(&interface::control()?, libc::SIOCSIFHWADDR)
}
