//! Stream sockets of the vsock family, as files.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, connect as connect_to, getpeername,
    listen as listen_on, setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The host's context id (VIRTIO 1.3 §5.10.4).
const HOST: u32 = 2;

fn stream() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?)
}

/// Listens on `port`.
pub fn listen(port: u32) -> io::Result<OwnedFd> {
    let listener = stream()?;
    bind(listener.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    listen_on(&listener, Backlog::new(64)?)?;
    Ok(listener)
}

/// Waits for the next connection of the host. Others on the port (a process in the guest, over the loopback
/// transport) are turned away: what the agent does, it does as root.
pub fn accept(listener: &OwnedFd) -> io::Result<File> {
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    let connection = own(fd);
    let peer: VsockAddr = getpeername(connection.as_raw_fd())?;
    if peer.cid() != HOST {
        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
    }
    Ok(File::from(connection))
}

/// Connects to `port` of the host.
pub fn connect(port: u32) -> io::Result<File> {
    let stream = stream()?;
    connect_to(stream.as_raw_fd(), &VsockAddr::new(HOST, port))?;
    Ok(File::from(stream))
}

/// Waits until the peer has closed `connection`, for `limit` at most.
pub fn wait_closed(connection: &mut File, limit: Duration) {
    let limit = TimeVal::seconds(limit.as_secs() as i64);
    if setsockopt(connection, ReceiveTimeout, &limit).is_ok() {
        let _ = io::copy(connection, &mut io::sink());
    }
}

#[allow(unsafe_code)]
fn own(fd: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: accept4 has just returned `fd`, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
