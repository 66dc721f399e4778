//! The guest's console devices, connected to the instance's console.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::process::console::Console;
use crate::{Error, Result};
use machine::Serial;
use machine::virtio::console::{ConsoleSpec, Size as HvcSize};

/// The console devices. What a person types goes to the guest's device `main`. The serial port is always
/// there: until the driver of `hvc0` is loaded, it alone can say why a kernel does not come up.
pub fn consoles(
    main: &str,
    console: &Console,
    terminal: Option<(u16, u16)>,
) -> Result<(Option<ConsoleSpec>, Serial)> {
    let input = keyboard(console)?;
    if !main.starts_with("hvc") {
        return Ok((
            None,
            Serial {
                output: Box::new(console.clone()),
                input: Some(input),
            },
        ));
    }
    let (columns, rows) = terminal.map_or((0, 0), |(rows, columns)| (columns, rows));
    let main = Arc::new(AtomicBool::new(false));
    let size = HvcSize::new(columns, rows);
    let guest_size = size.clone();
    console.connect_size(Some(Box::new(move |columns, rows| guest_size.set(columns, rows))));
    let hvc = ConsoleSpec {
        input: Some(input),
        output: Box::new(Main(console.clone(), Arc::clone(&main))),
        size,
    };
    Ok((
        Some(hvc),
        Serial {
            output: Box::new(Early(console.clone(), main)),
            input: None,
        },
    ))
}

/// The main console's output.
struct Main(Console, Arc<AtomicBool>);

impl Write for Main {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.store(true, Ordering::Relaxed);
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port's output, until the main console has taken over: the kernel prints the same on both.
struct Early(Console, Arc<AtomicBool>);

impl Write for Early {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            Ok(bytes.len())
        } else {
            self.0.write(bytes)
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A stream that brings what a person types.
fn keyboard(console: &Console) -> Result<OwnedFd> {
    let failed = "connecting the console";
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let (keys, device) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)
        .map_err(|error| Error::os(failed)(error.into()))?;
    let keys = UnixStream::from(keys);
    // What does not fit is dropped, as on a line without flow control: a guest that does not read must not
    // stop its host.
    console.connect_input(Some(Box::new(move |bytes| {
        let _ = (&keys).write(bytes);
    })));
    Ok(device)
}
