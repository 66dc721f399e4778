//! The network interfaces that there are, and requests to them (netdevice(7)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// The first interface that is not loopback, by name.
pub fn first() -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/net").ok()?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lo").min()
}

/// A socket for requests.
pub fn control() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// `struct ifreq` (linux/if.h).
#[repr(C)]
pub struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl Request {
    /// One about `interface`, with a value of zeros.
    pub fn new(interface: &str) -> Request {
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            value: [0; 24],
        };
        let length = interface.len().min(libc::IFNAMSIZ - 1);
        request.name[..length].copy_from_slice(&interface.as_bytes()[..length]);
        request
    }

    /// Sets the first bytes of the value, 24 at most.
    pub fn set(&mut self, value: &[u8]) {
        self.value[..value.len()].copy_from_slice(value);
    }

    /// The first two bytes of the value.
    pub fn get(&self) -> [u8; 2] {
        [self.value[0], self.value[1]]
    }

    /// Has the kernel carry out `operation`, one that takes an `ifreq`.
    pub fn send(&mut self, control: &OwnedFd, operation: libc::c_ulong) -> io::Result<()> {
        // SAFETY: every operation used here reads or writes one ifreq, which this is, in size and layout.
        let result = unsafe { libc::ioctl(control.as_raw_fd(), operation as _, std::ptr::from_mut(self)) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
