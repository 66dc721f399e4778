//! The guest's own TCP ports: waiting until something listens, and a way in that needs no network.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{fail, failed};
use crate::proto::frame::PAYLOAD_CAP;
use crate::proto::{Error, Failure, Kind, Reason, read_frame, write_frame};

/// Linux announces when a socket stops listening, not when one begins: so the guest itself reads the table
/// again after this long.
const PAUSE: Duration = Duration::from_millis(50);

/// And after this many times what the reading took, so that waiting never takes more than a small part of a
/// slow processor.
const REST: u32 = 15;

/// State of a listening socket in `/proc/net/tcp` (`TCP_LISTEN` of linux/tcp_states.h).
const LISTEN: &str = "0A";

/// Returns when something listens on TCP `port`, or fails when the host does not wait any more.
pub fn wait(port: u16, connection: &File) -> Result<(), Failure> {
    loop {
        let begun = Instant::now();
        for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
            // A kernel without IPv6 has no second table.
            if listens(&fs::read_to_string(table).unwrap_or_default(), port) {
                return Ok(());
            }
        }
        let mut host = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
        let pause = PAUSE.max(begun.elapsed() * REST);
        match poll(
            &mut host,
            PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX),
        ) {
            // Nothing more is to come from a host that waits: it has gone.
            Ok(1..) => {
                return Err(Failure {
                    reason: Reason::Other,
                    message: "nobody waits any more".to_owned(),
                });
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(failed("waiting for the port", error)),
        }
    }
}

/// Whether a socket in this table listens on `port`.
fn listens(table: &str, port: u16) -> bool {
    let local = format!(":{port:04X}");
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        fields.next().is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some(LISTEN)
    })
}

/// Connects to `port` of the guest's loopback address and passes bytes both ways until either side ends.
pub fn connect(port: u16, mut connection: File) -> Result<(), Error> {
    let streams = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).and_then(|to| Ok((to.try_clone()?, to)));
    let (mut from_service, to_service) = match streams {
        Ok(streams) => streams,
        Err(error) => return fail(&mut connection, &failed(format_args!("port {port}"), error)),
    };
    let from_host = connection.try_clone()?;
    write_frame(&mut connection, Kind::Started, b"")?;
    thread::scope(|scope| {
        scope.spawn(move || feed(from_host, to_service));
        let mut chunk = vec![0; PAYLOAD_CAP];
        loop {
            match from_service.read(&mut chunk) {
                Ok(0) | Err(_) => break write_frame(&mut connection, Kind::Done, b""),
                Ok(n) => {
                    if let Err(gone) = write_frame(&mut connection, Kind::Output, &chunk[..n]) {
                        let _ = from_service.shutdown(Shutdown::Both);
                        break Err(gone);
                    }
                }
            }
        }
    })
}

/// What the host sends, to the service, until the host goes.
fn feed(mut from_host: File, mut to_service: TcpStream) {
    loop {
        let done = match read_frame(&mut from_host) {
            Ok(Some(frame)) if frame.kind == Kind::Input => to_service.write_all(&frame.payload).is_err(),
            Ok(Some(frame)) if frame.kind == Kind::InputEnd => {
                // It may have something to say yet.
                to_service.shutdown(Shutdown::Write).is_err()
            }
            _ => true,
        };
        if done {
            let _ = to_service.shutdown(Shutdown::Both);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
           0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n\
           1: 0F02000A:1F90 0202000A:C001 01 00000000:00000000 00:00000000 00000000     0        0 2\n\
           2: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 0:0 0\n";

    #[test]
    fn only_sockets_that_listen_count() {
        assert!(listens(TABLE, 80));
        assert!(listens(TABLE, 22), "IPv6");
        assert!(!listens(TABLE, 8080), "a connection from that port");
        assert!(!listens(TABLE, 443));
        assert!(!listens("", 80));
    }
}
