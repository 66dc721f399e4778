//! The guest's console on the host's side: one log with a cap, any number of viewers, and detection of the
//! kernel's panic message.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::process::subscription::{Subscribers, Subscription};
use machine::block::space;
use machine::sandbox::{self, Kind};

/// The log is turned over at this size and one old log is kept: a guest that babbles cannot fill the host's
/// disk.
pub const LOG_CAP: u64 = 1 << 20;
/// Chunks a viewer may lag behind before it is cut off: it must not slow the guest or the others down.
const VIEWER_BACKLOG: usize = 1024;
/// Longest line in which a panic message is looked for; longer lines are looked at in part.
const LINE_CAP: usize = 512;
/// What Linux prints first when it panics.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";

/// Takes what a person types to the guest.
pub type Input = Box<dyn Fn(&[u8]) + Send>;
/// Tells the guest the size of its terminal: columns, rows.
pub type Resize = Box<dyn Fn(u16, u16) + Send>;

/// The console of one instance. Cloning gives another handle to the same console.
#[derive(Clone)]
pub struct Console {
    // A leaf: nothing else is locked while it is held. A terminal that does not take output (Ctrl-S) holds
    // it, and so the guest's output waits, as it does on a real line.
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    log: Log,
    terminal: Option<Box<dyn Write + Send>>,
    /// Why the terminal does not show the output any more.
    unshown: Option<io::Error>,
    viewers: Subscribers<Vec<u8>>,
    input: Option<Input>,
    resize: Option<Resize>,
    line: Vec<u8>,
    panic: Option<String>,
}

impl Console {
    /// A console that logs into `directory`.
    pub fn new(directory: &Path) -> Console {
        Console {
            inner: Arc::new(Mutex::new(Inner {
                log: Log::new(directory),
                terminal: None,
                unshown: None,
                viewers: Subscribers::default(),
                input: None,
                resize: None,
                line: Vec::new(),
                panic: None,
            })),
        }
    }

    /// Opens the log, which the first output would otherwise have to wait for.
    pub fn prepare(&self) {
        // The first output tries again, and says why it cannot be kept.
        let _ = self.lock().log.prepare();
    }

    /// Takes what the guest has printed.
    pub fn output(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.log.append(bytes);
        inner.watch(bytes);
        if let Some(terminal) = &mut inner.terminal
            && let Err(error) = terminal.write_all(bytes).and_then(|()| terminal.flush())
        {
            inner.terminal = None;
            inner.unshown = Some(error);
        }
        if !inner.viewers.is_empty() {
            inner.viewers.publish(&bytes.to_vec());
        }
    }

    /// Hands what a person has typed to the guest. Dropped while no guest is there.
    pub fn input(&self, bytes: &[u8]) {
        if let Some(input) = &self.lock().input {
            input(bytes);
        }
    }

    /// Where input goes from now on.
    pub fn connect_input(&self, input: Option<Input>) {
        self.lock().input = input;
    }

    /// Where changes of the terminal's size go from now on.
    pub fn connect_size(&self, resize: Option<Resize>) {
        self.lock().resize = resize;
    }

    /// The terminal has another size now. Of no interest to a guest without such a console.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(resize) = &self.lock().resize {
            resize(columns, rows);
        }
    }

    /// Prints on this process's own terminal (or whatever its standard output is) as well.
    pub fn show_on(&self, terminal: Box<dyn Write + Send>) {
        self.lock().terminal = Some(terminal);
    }

    /// Why output could not be shown since the last call, if it could not.
    pub fn take_unshown(&self) -> Option<io::Error> {
        self.lock().unshown.take()
    }

    /// The last `replay` bytes of the log, and everything from here on; nothing is lost or repeated between
    /// the two. The subscription ends when the console does, or when its reader lags too far behind.
    ///
    /// # Errors
    /// When no descriptor is available.
    pub fn view(&self, replay: u64) -> io::Result<(Vec<u8>, Subscription<Vec<u8>>)> {
        let mut inner = self.lock();
        let live = inner.viewers.add(VIEWER_BACKLOG)?;
        Ok((inner.log.tail(replay), live))
    }

    /// The kernel's panic message since the last call, if there was one.
    pub fn take_panic(&self) -> Option<String> {
        self.lock().panic.take()
    }

    /// The last lines of the log, for an error message.
    pub fn last_lines(&self, count: usize) -> String {
        let tail = self.lock().log.tail(8 << 10);
        let text = String::from_utf8_lossy(&tail);
        let mut lines: Vec<_> = text
            .lines()
            .map(str::trim_end)
            .filter(|l| !l.is_empty())
            .collect();
        // What led to a panic stands before it; the trace behind it says nothing to most people.
        let panics = |line: &&str| line.as_bytes().windows(PANIC.len()).any(|w| w == PANIC);
        if let Some(panic) = lines.iter().position(panics) {
            lines.truncate(panic + 1);
        }
        lines[lines.len().saturating_sub(count)..].join("\n")
    }

    /// Lets go of all viewers: their channels close.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.viewers.clear();
        inner.terminal = None;
        inner.input = None;
        inner.resize = None;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inner {
    /// Looks for a panic message, line by line.
    fn watch(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            let room = LINE_CAP.saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                if let Some(at) = self.line.windows(PANIC.len()).position(|w| w == PANIC) {
                    let message = String::from_utf8_lossy(&self.line[at + PANIC.len()..]);
                    self.panic = Some(message.trim_end().to_owned());
                }
                self.line.clear();
            }
        }
    }
}

/// A file that is rotated once when it reaches [`LOG_CAP`]. A log that cannot be written is given up, not
/// the guest. One for which there is no space goes on when there is, and says how much is missing.
struct Log {
    path: PathBuf,
    state: LogState,
    /// Bytes that found no space since the last ones that did.
    missing: usize,
}

enum LogState {
    /// Opened when there is something to write: a launch does not wait for it.
    Unopened,
    Open {
        file: File,
        size: u64,
    },
    GivenUp,
}

impl Log {
    fn new(directory: &Path) -> Log {
        Log {
            path: log_path(directory),
            state: LogState::Unopened,
            missing: 0,
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_append(bytes) {
            if space::is_full(&error) {
                self.miss(bytes.len(), error);
                return;
            }
            tracing::warn!(path = %self.path.display(), %error, "the console log is given up");
            self.state = LogState::GivenUp;
        }
    }

    /// Notes that there was no space for so many bytes; says so once, until there is again.
    fn miss(&mut self, count: usize, error: io::Error) {
        if self.missing == 0 {
            let path = self.path.clone();
            let why = sandbox::ask(Kind::Control, move || space::explain(&path, &error));
            let why = why.unwrap_or_else(|error| error.to_string());
            tracing::warn!("output of the guest is missing in {}: {why}", self.path.display());
        }
        self.missing = self.missing.saturating_add(count.max(1));
    }

    fn try_append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &self.state {
            LogState::Unopened => self.open()?,
            LogState::Open { size, .. } if *size >= LOG_CAP => {
                let path = self.path.clone();
                sandbox::ask(Kind::Control, move || std::fs::rename(&path, old_log_path(&path)))??;
                self.open()?;
            }
            LogState::Open { .. } | LogState::GivenUp => {}
        }
        if let LogState::Open { file, size } = &mut self.state {
            if self.missing > 0 {
                let gap = format!(
                    "\r\n[{} bytes are missing: the host had no space]\r\n",
                    self.missing
                );
                file.write_all(gap.as_bytes())?;
                *size += gap.len() as u64;
                self.missing = 0;
            }
            file.write_all(bytes)?;
            *size += bytes.len() as u64;
        }
        Ok(())
    }

    /// The threads that bring output open no files themselves.
    fn open(&mut self) -> io::Result<()> {
        let path = self.path.clone();
        self.state = sandbox::ask(Kind::Control, move || {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .read(true)
                .open(&path)?;
            let size = file.metadata()?.len();
            io::Result::Ok(LogState::Open { file, size })
        })??;
        Ok(())
    }

    fn prepare(&mut self) -> io::Result<()> {
        match self.state {
            LogState::Unopened => self.open(),
            LogState::Open { .. } | LogState::GivenUp => Ok(()),
        }
    }

    fn tail(&self, count: u64) -> Vec<u8> {
        read_log(&self.path, count).unwrap_or_default()
    }
}

fn log_path(directory: &Path) -> PathBuf {
    directory.join("console.log")
}

fn old_log_path(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// The whole log kept in an instance's `directory`, old part first.
pub fn read_whole_log(directory: &Path) -> io::Result<Vec<u8>> {
    read_log(&log_path(directory), u64::MAX)
}

/// The last `count` bytes of the log at `path` and the one before it.
fn read_log(path: &Path, count: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for part in [old_log_path(path), path.to_path_buf()] {
        match File::open(part) {
            // A log in the middle of being turned over may be a chunk longer than the cap.
            Ok(file) => drop(file.take(2 * LOG_CAP).read_to_end(&mut bytes)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    let skip = (bytes.len() as u64).saturating_sub(count);
    Ok(bytes.split_off(skip as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> (tempfile::TempDir, Console) {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::new(dir.path());
        (dir, console)
    }

    #[test]
    fn a_viewer_gets_the_log_once_and_then_new_output() {
        let (_dir, console) = console();
        console.output(b"one ");
        let (past, mut live) = console.view(u64::MAX).unwrap();
        console.output(b"two");
        assert_eq!(past, b"one ");
        assert_eq!(live.next().unwrap(), b"two");
        console.close();
        assert!(live.next().is_none());
    }

    #[test]
    fn a_slow_viewer_is_disconnected_and_delays_no_other() {
        let (_dir, console) = console();
        let (_, sleeper) = console.view(0).unwrap();
        for _ in 0..2 * VIEWER_BACKLOG {
            console.output(b"x");
        }
        assert_eq!(sleeper.count(), VIEWER_BACKLOG);
    }

    #[test]
    fn a_failing_terminal_is_reported_and_the_log_goes_on() {
        let (dir, console) = console();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        console.show_on(Box::new(full));
        console.output(b"one ");
        console.output(b"two");
        assert_eq!(console.take_unshown().unwrap().kind(), io::ErrorKind::StorageFull);
        assert!(console.take_unshown().is_none());
        assert_eq!(read_whole_log(dir.path()).unwrap(), b"one two");
    }

    #[test]
    fn the_log_is_bounded_and_keeps_the_end() {
        let (dir, console) = console();
        let chunk = vec![b'a'; 64 << 10];
        for _ in 0..100 {
            console.output(&chunk);
        }
        console.output(b"the end");
        let log = read_whole_log(dir.path()).unwrap();
        assert!(
            log.len() as u64 <= 2 * LOG_CAP + chunk.len() as u64,
            "{}",
            log.len()
        );
        assert!(log.len() as u64 > LOG_CAP);
        assert!(log.ends_with(b"the end"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_without_space_goes_on_when_there_is_and_says_what_is_missing() {
        let (dir, console) = console();
        console.output(b"one\n");
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let log = std::mem::replace(
            &mut console.lock().log.state,
            LogState::Open { file: full, size: 0 },
        );
        console.output(b"two\n");
        console.output(b"three\n");
        console.lock().log.state = log;
        console.output(b"four\n");
        console.output(b"five\n");
        let log = String::from_utf8(read_whole_log(dir.path()).unwrap()).unwrap();
        assert_eq!(
            log,
            "one\n\r\n[10 bytes are missing: the host had no space]\r\nfour\nfive\n"
        );
    }

    #[test]
    fn a_panic_message_split_across_writes_is_noticed() {
        let (_dir, console) = console();
        let text = b"[ 1.0] ok\r\n[ 1.2] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n\
                     [ 1.3] more\r\n";
        for size in [1, 7, text.len()] {
            text.chunks(size).for_each(|chunk| console.output(chunk));
            assert_eq!(
                console.take_panic().as_deref(),
                Some("VFS: Unable to mount root fs"),
                "by {size}"
            );
            assert_eq!(console.take_panic(), None);
        }
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let (_dir, console) = console();
        for _ in 0..1000 {
            console.output(&[b'x'; 1000]);
        }
        assert!(console.lock().line.capacity() <= 2 * LINE_CAP);
    }

    #[test]
    fn input_is_dropped_until_a_guest_is_connected() {
        let (_dir, console) = console();
        console.input(b"lost");
        let (sender, receiver) = std::sync::mpsc::channel();
        console.connect_input(Some(Box::new(move |bytes| drop(sender.send(bytes.to_vec())))));
        console.input(b"found");
        assert_eq!(receiver.recv().unwrap(), b"found");
    }
}
