//! Waiting for the root disk by the kernel's device events, without polling.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::{Error, os};

/// A disk that is not there by now will not come, unless the command line says otherwise: virtio disks appear
/// within milliseconds of their driver.
pub const WAIT: Duration = Duration::from_secs(20);

/// The kernel's multicast group for device events.
const KERNEL_EVENTS: u32 = 1;

/// Returns when the node `device` exists, or fails after `limit`.
pub fn wait_for(device: &str, limit: Duration) -> Result<(), Error> {
    let path = Path::new(device);
    if path.exists() {
        return Ok(());
    }
    // Listen first, look second: an event between the two is not lost.
    let events = listen().map_err(os("listening for devices"))?;
    let start = Instant::now();
    while !path.exists() {
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(Error::NoDisk {
                device: device.to_owned(),
                seconds: limit.as_secs(),
            });
        }
        wait(&events, left);
    }
    Ok(())
}

fn listen() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let events = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_EVENTS))?;
    Ok(events)
}

/// Waits for an event and throws it away: what matters is whether the node is there.
fn wait(events: &OwnedFd, limit: Duration) {
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    // An interrupted wait is followed by another look.
    let _ = poll(&mut fds, timeout);
    let mut buffer = [0; 4096];
    while recv(events.as_raw_fd(), &mut buffer, MsgFlags::empty()).is_ok() {}
}
