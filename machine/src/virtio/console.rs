//! The console device with one port (VIRTIO 1.3 §5.3): the guest's `hvc0`.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::QueueT;

use super::ring::{Chain, QueueError};
use super::worker::{Context, Engine, Service, Wake};
use super::{
    Activation, DeviceInterrupt, DeviceState, DeviceTraits, Error, Queue, Unsaved, VirtioDevice,
    read_config_bytes,
};
use crate::event::EventSet;
use crate::sandbox::Kind;
use crate::state::Refused;

/// The device has a size (VIRTIO 1.3 §5.3.3).
const F_SIZE: u64 = 1 << 0;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Descriptors of each queue.
const QUEUE_SIZES: [u16; 2] = [64; 2];
/// Bytes read from a person, or written for one, at a time.
const PIECE: usize = 4096;
/// How long to wait before trying again when the output does not take what the guest prints.
const RETRY: Duration = Duration::from_millis(10);
/// The input's [`Wake::Source`].
const INPUT: u32 = 0;

/// Size of the terminal in characters. Clones are of the same console.
#[derive(Clone, Default)]
pub struct Size {
    inner: Arc<Mutex<SizeInner>>,
}

/// Locked while its interrupt is raised; see `Bus` for what that locks.
#[derive(Default)]
struct SizeInner {
    columns: u16,
    rows: u16,
    interrupt: Option<Arc<dyn DeviceInterrupt>>,
}

impl Size {
    /// A size; 0 by 0 when there is no terminal.
    pub fn new(columns: u16, rows: u16) -> Self {
        Size {
            inner: Arc::new(Mutex::new(SizeInner {
                columns,
                rows,
                interrupt: None,
            })),
        }
    }

    /// Changes the size and notifies the guest.
    pub fn set(&self, columns: u16, rows: u16) {
        let mut inner = self.lock();
        if (inner.columns, inner.rows) != (columns, rows) {
            (inner.columns, inner.rows) = (columns, rows);
            if let Some(interrupt) = &inner.interrupt
                && let Err(error) = interrupt.config()
            {
                tracing::debug!("console: the guest was not notified of its new size: {error}");
            }
        }
    }

    fn config(&self) -> [u8; 4] {
        let inner = self.lock();
        let ([a, b], [c, d]) = (inner.columns.to_le_bytes(), inner.rows.to_le_bytes());
        [a, b, c, d]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, SizeInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A console of a machine.
pub struct ConsoleSpec {
    /// What a person types; `None` for output only.
    pub input: Option<OwnedFd>,
    /// Takes what the guest prints.
    pub output: Box<dyn Write + Send>,
    /// The terminal's size.
    pub size: Size,
}

impl ConsoleSpec {
    /// Builds the device.
    pub fn build(self) -> Console {
        Console::new(self.input, self.output, self.size)
    }
}

/// A console.
pub struct Console {
    size: Size,
    engine: Engine<Port>,
}

impl Console {
    /// A console that gives the guest what `input` gives, and writes to `output` what the guest prints.
    ///
    /// `input` is read only while the guest has room, and never beyond; its end is no end for the guest.
    /// `output` may answer `WouldBlock`: the guest then waits. Any other error of `output` loses what it did
    /// not take.
    pub fn new(input: Option<OwnedFd>, output: Box<dyn Write + Send>, size: Size) -> Self {
        let port = Port {
            input: input.map(std::fs::File::from),
            polled: false,
            always_ready: false,
            output,
            stalled: None,
        };
        Console {
            size,
            engine: Engine::Idle(port),
        }
    }
}

impl VirtioDevice for Console {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            id: VIRTIO_ID_CONSOLE,
            features: F_SIZE,
            queue_sizes: &QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_console_config; max_nr_ports and emerg_wr belong to features that are not offered.
        let mut config = [0; 12];
        config[..4].copy_from_slice(&self.size.config());
        read_config_bytes(&config, offset, data);
    }

    fn start(&mut self, active: Activation) -> Result<(), Error> {
        self.size.lock().interrupt = Some(active.interrupt.clone());
        self.engine.start("console", Kind::Console, active)
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.size.lock().interrupt = None;
        self.engine.stop()
    }

    fn reset(&mut self) {
        if let Engine::Idle(Port {
            input: _,
            polled,
            always_ready: _,
            output: _,
            stalled,
        }) = &mut self.engine
        {
            *polled = false;
            *stalled = None;
        }
    }

    fn save(&self) -> Result<DeviceState, Unsaved> {
        let Console { size: _, engine } = self;
        let Port {
            input: _,
            polled: _,
            always_ready: _,
            output: _,
            stalled,
        } = engine.service()?;
        let stalled = stalled.map(|done| u32::try_from(done).unwrap_or(u32::MAX));
        Ok(DeviceState::Console { stalled })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        let DeviceState::Console { stalled } = *state else {
            return Err(DeviceState::FOREIGN);
        };
        if let Ok(port) = self.engine.service_mut() {
            port.stalled = stalled.map(|done| done as usize);
        }
        Ok(())
    }
}

struct Port {
    input: Option<std::fs::File>,
    /// Whether the input is watched now: only while the guest has room.
    polled: bool,
    /// The input is a plain file, which epoll refuses because it is always readable.
    always_ready: bool,
    output: Box<dyn Write + Send>,
    /// Bytes of the first available chain that were printed before the output stopped taking more.
    stalled: Option<usize>,
}

impl Service for Port {
    fn begin(&mut self, context: &mut Context) -> Result<(), QueueError> {
        self.polled = false;
        self.watch_input(context)
    }

    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        match index {
            TRANSMIT => self.print(context),
            _ => self.watch_input(context),
        }
    }

    fn source(&mut self, context: &mut Context, _id: u32, _events: EventSet) -> Result<(), QueueError> {
        self.read(context)
    }

    fn timeout(&mut self) -> Option<Duration> {
        self.stalled.map(|_| RETRY)
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), QueueError> {
        if self.stalled.is_some() {
            self.print(context)
        } else {
            Ok(())
        }
    }
}

impl Port {
    /// Prints what the guest has sent.
    fn print(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let ring = &mut rings[TRANSMIT];
        let mut chain = Chain::default();
        let mut used = false;
        // A ring of requests at most in one go, so that a chatty guest does not keep the worker from anything
        // else.
        for _ in 0..ring.queue.size() {
            if !ring.pop(memory, &mut chain)? {
                if ring.queue.enable_notification(&**memory)? {
                    continue;
                }
                return if used {
                    ring.notify(memory, &**interrupt)
                } else {
                    Ok(())
                };
            }
            let done = self.stalled.take().unwrap_or(0);
            if let Some(done) = self.print_chain(&chain, done) {
                self.stalled = Some(done);
                // The chain stays available, and is taken again later.
                ring.undo_pop();
                return if used {
                    ring.notify(memory, &**interrupt)
                } else {
                    Ok(())
                };
            }
            ring.push(memory, chain.head, 0)?;
            used = true;
        }
        ring.doorbell.write(1)?;
        ring.notify(memory, &**interrupt)
    }

    /// Prints a chain from byte `done` on. Where the output takes no more for now, returns how far it came.
    fn print_chain(&mut self, chain: &Chain<'_>, mut done: usize) -> Option<usize> {
        let mut piece = [0; PIECE];
        loop {
            let len = chain.readable.read(done, &mut piece);
            if len == 0 {
                break;
            }
            match self.output.write(&piece[..len]) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(done),
                Err(error) => {
                    tracing::debug!("console output: {error}");
                    break;
                }
            }
        }
        match self.output.flush() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(done),
            _ => None,
        }
    }

    /// Gives the guest what the input has, one buffer at a time: level-triggered polling comes again for the
    /// rest.
    fn read(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let ring = &mut rings[RECEIVE];
        let mut chain = Chain::default();
        if !ring.pop(memory, &mut chain)? {
            return self.watch_input(context);
        }
        if chain.writable.is_empty() {
            return Err(QueueError::Request("a console buffer without room"));
        }
        let mut piece = [0; PIECE];
        let room = chain.writable.len().min(PIECE);
        let got = match &mut self.input {
            Some(input) => input.read(&mut piece[..room]),
            None => Ok(0),
        };
        let end = match got {
            Ok(count) if count > 0 => {
                chain.writable.write(0, &piece[..count]);
                ring.push(memory, chain.head, count as u32)?;
                ring.notify(memory, &**interrupt)?;
                return self.watch_input(context);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            // The end, or an input that is gone: a terminal that was hung up says EIO.
            _ => true,
        };
        ring.undo_pop();
        if end && let Some(input) = self.input.take() {
            if self.polled {
                context.poller.remove(&input)?;
            }
            (self.polled, self.always_ready) = (false, false);
        }
        Ok(())
    }

    /// Watches the input exactly while the guest has room for it.
    fn watch_input(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let Context {
            memory,
            rings,
            poller,
            ..
        } = &mut *context;
        let ring = &mut rings[RECEIVE];
        let Some(input) = &self.input else { return Ok(()) };
        let room = ring.queue.ready()
            && (ring.has_available(memory) || ring.queue.enable_notification(&**memory)?);
        if room == self.polled && !self.always_ready {
            return Ok(());
        }
        if !room {
            if self.polled {
                poller.remove(input)?;
            }
            self.polled = false;
            return Ok(());
        }
        if self.always_ready {
            return self.read(context);
        }
        match poller.add(&Raw(input.as_raw_fd()), EventSet::IN, Wake::Source(INPUT)) {
            Ok(()) => {
                self.polled = true;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                self.always_ready = true;
                self.read(context)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A descriptor that somebody else owns.
struct Raw(RawFd);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Driver;
    use std::io;
    use std::os::unix::net::UnixStream;

    /// What was printed, and whether more is taken.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut paper = self.0.lock().unwrap();
            if paper.1 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let len = bytes.len().min(1000);
            paper.0.extend(&bytes[..len]);
            paper.1 = paper.0.len() > 5000;
            Ok(len)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn console(size: Size) -> (Driver, UnixStream, Paper) {
        let (keyboard, input) = UnixStream::pair().unwrap();
        let paper = Paper::default();
        let device = Console::new(Some(input.into()), Box::new(paper.clone()), size);
        (Driver::started(device, u64::MAX), keyboard, paper)
    }

    #[test]
    fn guest_output_arrives() {
        let (mut driver, _keyboard, paper) = console(Size::default());
        driver.request(TRANSMIT, &[b"hello ", b"world\n"], &[]);
        assert_eq!(paper.0.lock().unwrap().0, b"hello world\n");
    }

    #[test]
    fn a_full_output_makes_the_guest_wait_and_loses_nothing() {
        let (mut driver, _keyboard, paper) = console(Size::default());
        let text: Vec<u8> = (0..9000u32).map(|i| i as u8).collect();
        driver.submit(TRANSMIT, &[&text[..7000], &text[7000..]], &[]);
        driver.ring(TRANSMIT);
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(driver.take_used(TRANSMIT), None);
        while driver.take_used(TRANSMIT).is_none() {
            paper.0.lock().unwrap().1 = false;
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(paper.0.lock().unwrap().0, text);
    }

    #[test]
    fn input_waits_until_the_guest_has_room() {
        let (mut driver, mut keyboard, _paper) = console(Size::default());
        keyboard.write_all(b"typed early").unwrap();
        std::thread::sleep(Duration::from_millis(5));
        let mut got = Vec::new();
        while got.len() < 11 {
            driver.submit(RECEIVE, &[], &[4]);
            driver.ring(RECEIVE);
            got.extend(driver.wait_used(RECEIVE).data);
        }
        assert_eq!(got, b"typed early");
        driver.submit(RECEIVE, &[], &[64]);
        driver.ring(RECEIVE);
        keyboard.write_all(b"later").unwrap();
        assert_eq!(driver.wait_used(RECEIVE).data, b"later");
        drop(keyboard);
        driver.submit(RECEIVE, &[], &[64]);
        driver.ring(RECEIVE);
        driver.request(TRANSMIT, &[b"still there"], &[]);
        assert_eq!(driver.take_used(RECEIVE), None, "the end of the input is no data");
    }

    #[test]
    fn a_plain_file_is_an_input_too() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"script").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let device = Console::new(Some(file.into()), Box::new(io::sink()), Size::default());
        let mut driver = Driver::started(device, u64::MAX);
        for expected in [&b"scr"[..], b"ipt"] {
            driver.submit(RECEIVE, &[], &[3]);
            driver.ring(RECEIVE);
            assert_eq!(driver.wait_used(RECEIVE).data, expected);
        }
    }

    #[test]
    fn the_guest_learns_its_size() {
        let size = Size::new(80, 25);
        let (mut driver, _keyboard, _paper) = console(size.clone());
        assert_eq!(driver.config(0, 4), [80, 0, 25, 0]);
        size.set(132, 43);
        assert_eq!(driver.acknowledge() & crate::virtio::core::isr::CONFIG, 2);
        assert_eq!(driver.config(0, 4), [132, 0, 43, 0]);
        assert_eq!(driver.read(crate::virtio::mmio::register::CONFIG_GENERATION), 1);
    }
}
