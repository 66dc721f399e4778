//! Connecting without waiting, which the standard library does not offer.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Begins to connect to the first of `targets` with which that is possible, and takes those before it and it
/// out.
pub fn start_first(targets: &mut VecDeque<SocketAddr>) -> Option<TcpStream> {
    std::iter::from_fn(|| targets.pop_front()).find_map(|target| start(target).ok())
}

/// Begins to connect to `target`.
fn start(target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: socket takes no pointers.
    let fd = unsafe {
        libc::socket(
            family,
            libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            0,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by socket and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let result = match target {
        SocketAddr::V4(target) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: target.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(target.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: `address` is a live sockaddr_in of the length given.
            unsafe { libc::connect(fd, (&raw const address).cast(), length) }
        }
        SocketAddr::V6(target) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: target.port().to_be(),
                sin6_flowinfo: target.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: target.ip().octets(),
                },
                sin6_scope_id: target.scope_id(),
            };
            let length = size_of_val(&address) as libc::socklen_t;
            // SAFETY: `address` is a live sockaddr_in6 of the length given.
            unsafe { libc::connect(fd, (&raw const address).cast(), length) }
        }
    };
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() != Some(libc::EINPROGRESS) {
        return Err(error);
    }
    Ok(TcpStream::from(socket))
}

/// What every socket of a connection is set to: nothing is held back to fill a packet, and a peer that is
/// gone is noticed. Our stack answers the guest's own probes, so who asks the peer is the host (after two
/// hours of silence, unless it is configured otherwise).
pub fn prepare(stream: &TcpStream) {
    // Neither is worth a connection.
    let _ = stream.set_nodelay(true);
    let on: libc::c_int = 1;
    set(stream, libc::SO_KEEPALIVE, &on);
}

/// How connecting ended, once the socket is writable.
pub fn finish(stream: &TcpStream) -> io::Result<()> {
    stream.take_error()?.map_or(Ok(()), Err)
}

/// Makes closing send a reset instead of an orderly end.
pub fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // A failure only makes the end orderly.
    set(stream, libc::SO_LINGER, &linger);
}

/// Sets an option of the socket level. `T` is the option's C type, which has no padding.
fn set<T>(stream: &TcpStream, option: libc::c_int, value: &T) {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is a live T of the length given, and the kernel only reads it.
    unsafe {
        let pointer = std::ptr::from_ref(value).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, option, pointer, length);
    }
}
