//! A running lab host and the commands it takes.
//!
//! Three virtio-serial ports, each a unix socket here: commands and exit statuses, standard output, standard
//! error. The host's end is the shell loop in `tests/lab/host.toml`. When this process goes away, the command
//! port closes and the host powers off.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{Lab, payload, qemu};

/// The ports in the order of their numbers on the host.
const PORTS: [&str; 3] = ["command", "stdout", "stderr"];

/// Ends a command's output on each stream; the same bytes are in `tests/lab/host.toml`.
const END: &[u8] = b"\0\x1ekiln-end\n";

/// How long the host may take to boot. About four seconds on an idle machine; much more beside other builds.
/// One that fails to boot ends QEMU, which is noticed at once.
const BOOT_LIMIT: Duration = Duration::from_secs(400);

/// What a command printed and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status.
    pub status: u8,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A host that is up and takes one command after another.
#[derive(Debug)]
pub struct Session {
    qemu: Child,
    commands: UnixStream,
    statuses: BufReader<UnixStream>,
    stdout: UnixStream,
    stderr: UnixStream,
    console: PathBuf,
    /// Sockets and the payload disk; gone with the session.
    _scratch: TempDir,
}

impl Session {
    /// Boots the host of `lab`.
    pub(super) fn start(lab: &Lab) -> Result<Session> {
        let scratch = tempfile::Builder::new()
            .prefix("lab-")
            .tempdir_in(&lab.dir)
            .context("no scratch folder")?;
        let payload = payload::build(lab.arch, lab.profile, scratch.path())?;
        let number = unique();
        let console = lab.dir.join(format!("console-{number}.log"));
        let log =
            File::create(&console).with_context(|| format!("{} could not be made", console.display()))?;
        let mut command = qemu::command(lab, &payload);
        command.args(["-serial", "stdio", "-device", "virtio-serial-pci"]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("console log")?)
            .stderr(log);
        let mut listeners = Vec::new();
        for (index, port) in PORTS.iter().enumerate() {
            // Sockets live in /tmp: their paths are limited to 107 bytes, wherever the checkout is.
            let path = std::env::temp_dir().join(format!("kiln-lab-{}-{number}-{port}", std::process::id()));
            let _ = fs::remove_file(&path);
            listeners.push((
                UnixListener::bind(&path).context("a socket for the lab")?,
                path.clone(),
            ));
            command
                .arg("-chardev")
                .arg(format!("socket,id={port},path={}", path.display()));
            command
                .arg("-device")
                .arg(format!("virtserialport,chardev={port},nr={}", index + 1));
        }
        let mut qemu = command.spawn().context("QEMU could not be started")?;
        let streams = listeners
            .iter()
            .map(|(listener, path)| accept(listener, path, &mut qemu, &console));
        let [commands, stdout, stderr]: [UnixStream; 3] = streams
            .collect::<Result<Vec<_>>>()?
            .try_into()
            .map_err(|_| anyhow::anyhow!("three ports"))?;
        let statuses = BufReader::new(commands.try_clone().context("the command port")?);
        let mut session = Session {
            qemu,
            commands,
            statuses,
            stdout,
            stderr,
            console,
            _scratch: scratch,
        };
        let greeting = session.next_status(BOOT_LIMIT)?;
        if greeting != "ready" {
            bail!(
                "the lab's host greeted with {greeting:?}; its console is in {}",
                session.console.display()
            );
        }
        Ok(session)
    }

    /// Runs one shell command line.
    pub fn run(&mut self, line: &str, limit: Duration) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.run_into(line, limit, &mut stdout, &mut stderr)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Output {
            status,
            stdout: text(stdout),
            stderr: text(stderr),
        })
    }

    /// Runs one shell command line and copies what it prints as it comes.
    pub fn run_into(
        &mut self,
        line: &str,
        limit: Duration,
        stdout: &mut (dyn Write + Send),
        stderr: &mut (dyn Write + Send),
    ) -> Result<u8> {
        writeln!(self.commands, "{}", one_line(line)).context("the lab's host takes no commands any more")?;
        let (out, err) = (self.stdout.try_clone()?, self.stderr.try_clone()?);
        let (status, out, err) = thread::scope(|scope| {
            let out = scope.spawn(|| copy_to_end(out, stdout));
            let err = scope.spawn(|| copy_to_end(err, stderr));
            let status = self.next_status(limit);
            if status.is_err() {
                // Unblocks the two copies.
                let _ = self.stdout.shutdown(std::net::Shutdown::Both);
                let _ = self.stderr.shutdown(std::net::Shutdown::Both);
            }
            (status, out.join(), err.join())
        });
        let status = status.with_context(|| format!("while the lab ran: {line}"))?;
        for copied in [out, err] {
            copied
                .map_err(|_| anyhow::anyhow!("a copying thread panicked"))?
                .context("the lab's output")?;
        }
        status
            .parse()
            .with_context(|| format!("the lab answered {status:?} instead of an exit status"))
    }

    /// Powers the host off.
    pub fn stop(mut self) {
        let _ = self.commands.shutdown(std::net::Shutdown::Write);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && matches!(self.qemu.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn next_status(&mut self, limit: Duration) -> Result<String> {
        let timeout = (limit != Duration::MAX).then_some(limit);
        self.statuses
            .get_ref()
            .set_read_timeout(timeout)
            .context("the command port")?;
        let mut line = String::new();
        match self.statuses.read_line(&mut line) {
            Ok(0) => bail!(
                "the lab's host went away; the end of its console:\n{}",
                tail(&self.console)
            ),
            Ok(_) => Ok(line.trim().to_owned()),
            Err(error) => bail!(
                "no answer within {limit:?} ({error}); the end of its console:\n{}",
                tail(&self.console)
            ),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A number that no other session of this process has.
fn unique() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Waits for QEMU to connect to one of its sockets, or to die trying.
fn accept(listener: &UnixListener, path: &Path, qemu: &mut Child, console: &Path) -> Result<UnixStream> {
    listener.set_nonblocking(true).context("a socket for the lab")?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = fs::remove_file(path);
                stream.set_nonblocking(false).context("a socket for the lab")?;
                return Ok(stream);
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("a socket for the lab"),
        }
        if let Some(status) = qemu.try_wait().context("QEMU")? {
            bail!("QEMU ended with {status}:\n{}", tail(console));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Copies up to the end marker.
fn copy_to_end(mut from: UnixStream, to: &mut (dyn Write + Send)) -> std::io::Result<()> {
    let (mut held, mut buffer) = (Vec::new(), [0; 64 * 1024]);
    loop {
        let n = from.read(&mut buffer)?;
        held.extend_from_slice(&buffer[..n]);
        if n == 0 || held.ends_with(END) {
            held.truncate(held.len() - if held.ends_with(END) { END.len() } else { 0 });
            to.write_all(&held)?;
            return to.flush();
        }
        // All but what may be the beginning of the marker can go.
        let safe = held.len().saturating_sub(END.len());
        to.write_all(&held[..safe])?;
        to.flush()?;
        held.drain(..safe);
    }
}

fn tail(console: &Path) -> String {
    let text = fs::read(console)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// The host reads one line for a command: a script of several goes there with its bytes as `printf` takes
/// them.
fn one_line(line: &str) -> Cow<'_, str> {
    if !line.contains('\n') {
        return Cow::Borrowed(line);
    }
    let octal: String = line.bytes().map(|byte| format!("\\{byte:03o}")).collect();
    Cow::Owned(format!("eval \"$(printf '{octal}')\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_of_several_lines_runs_as_one() {
        let script = "x='50% \\ \"of\" it'\necho \"$x\"; for i in 1 2; do\n  echo $i\ndone";
        let line = one_line(script);
        assert!(!line.contains('\n'));
        let output = std::process::Command::new("sh")
            .args(["-c", &line])
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "50% \\ \"of\" it\n1\n2\n"
        );
    }

    #[test]
    fn output_ends_at_a_marker_split_across_reads() {
        let whole = [b"some output\0\x1ekiln".as_slice(), END].concat();
        for cut in 1..whole.len() {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let parts = whole.clone();
            let writer = thread::spawn(move || {
                theirs.write_all(&parts[..cut]).unwrap();
                theirs.write_all(&parts[cut..]).unwrap();
                theirs
            });
            let mut copied = Vec::new();
            copy_to_end(ours, &mut copied).unwrap();
            assert_eq!(copied, b"some output\0\x1ekiln");
            drop(writer.join().unwrap());
        }
    }
}
