//! A tap device of the host: the guest is a machine on the host's own network.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{Backend, Error};

/// `struct ifreq` with the flags variant of its union (linux/if.h): 40 bytes.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

/// The device stays when nobody uses it (linux/if_tun.h).
const IFF_PERSIST: i32 = 0x0800;

/// A tap device, attached by name.
pub struct Tap {
    file: File,
}

impl Tap {
    /// Checks that there is an interface `name`. Changes nothing.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str) -> Result<(), Error> {
        let found = nix::net::if_::if_nametoindex(name);
        found.map(drop).map_err(|source| Error::Tap {
            name: name.to_owned(),
            source: source.into(),
        })
    }

    /// Attaches to the existing tap device `name`.
    ///
    /// # Errors
    /// When there is none, or it is not for this user to use.
    pub fn open(name: &str) -> Result<Tap, Error> {
        let failed = |source| Error::Tap {
            name: name.to_owned(),
            source,
        };
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: 0,
            rest: [0; 22],
        };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(failed(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "a name has 1 to 15 bytes",
            )));
        }
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request.flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(failed)?;
        // SAFETY: `request` is a live, writable ifreq of the size that TUNSETIFF reads and writes; the name
        // ends with a zero byte.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            return Err(failed(std::io::Error::last_os_error()));
        }
        // SAFETY: as above, for TUNGETIFF, which only writes.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
        // One that is there already outlives its users. One that does not was made just now, for root
        // by a name that does not exist, and is removed with the file.
        if result == 0 && i32::from(request.flags) & IFF_PERSIST == 0 {
            return Err(failed(std::io::ErrorKind::NotFound.into()));
        }
        Ok(Tap { file })
    }
}

impl Backend for Tap {
    fn transmit(&mut self, frame: &[u8]) {
        // A full queue drops the frame, as a wire would.
        let _ = self.file.write(frame);
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        self.file.read(buffer).ok().filter(|&len| len > 0)
    }

    fn descriptors(&self) -> Vec<(RawFd, u32)> {
        vec![(self.file.as_raw_fd(), libc::EPOLLIN as u32)]
    }

    fn poll(&mut self) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_size_that_the_kernel_expects() {
        assert_eq!(size_of::<InterfaceRequest>(), 40);
    }

    #[test]
    fn no_device_is_made() {
        for attempt in [
            |name: &str| Tap::find(name),
            |name: &str| Tap::open(name).map(drop),
        ] {
            attempt("kiln-absent0").unwrap_err();
            assert!(nix::net::if_::if_nametoindex("kiln-absent0").is_err());
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        for name in ["", "a-name-that-is-too-long", "no/such"] {
            let error = Tap::open(name)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(error.contains(&format!("device {name} ")), "{error}");
        }
    }
}
