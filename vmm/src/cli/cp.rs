//! `cp`: files and folders between this host and an instance, through the guest's agent.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use guest_init::archive::{self, Receiver, Report, printable};
use guest_init::proto::Request;

use super::failure::Advice;
use super::{Context, Status, value};
use instance::guest::agent::{Incoming, Sender, Session};
use machine::virtio::determinism::Determinism;

/// Bytes of an archive that are sent at once: the payload of a frame of the protocol.
const PIECE: usize = guest_init::proto::frame::PAYLOAD_CAP;

/// Copy a file or folder to or from a running instance
#[derive(Debug, Args)]
#[command(
    after_help = "Copies into an existing folder under the source's name, otherwise under the given name, as cp -r \
    does. A relative path in an instance begins at root's home. Files in the instance belong to root. Hard links, \
    holes and FIFOs are preserved. Sockets, and devices of the instance, are left out, each with a \
    line that names it."
)]
pub struct Cp {
    /// How long to wait for an instance that is still booting
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    wait_timeout: Duration,
    /// A path here, or INSTANCE:PATH
    #[arg(value_parser = place())]
    source: Place,
    /// A path here, or INSTANCE:PATH
    #[arg(value_parser = place())]
    destination: Place,
}

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    Guest { instance: String, path: String },
}

/// File names here are any bytes; what goes to the agent is text.
fn place() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().try_map(Place::parse)
}

impl Place {
    /// A colon after what could be an instance; a file here whose name has one is written with its folder:
    /// `./a:b`.
    fn parse(text: OsString) -> Result<Place, String> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|&byte| byte == b':');
        match colon.map(|at| (&bytes[..at], &bytes[at + 1..])) {
            Some(([], _)) => Err("the instance is missing before the colon".into()),
            Some((instance, path)) if !instance.contains(&b'/') => {
                let text = |bytes| OsStr::from_bytes(bytes).to_str().map(str::to_owned);
                text(instance)
                    .zip(text(path))
                    .map(|(instance, path)| Place::Guest { instance, path })
                    .ok_or_else(|| {
                        "a path in an instance is given in UTF-8; copy the folder of a file that has another \
                         name"
                            .into()
                    })
            }
            _ if bytes.is_empty() => Err("a path has at least one letter".into()),
            _ => Ok(Place::Here(text.into())),
        }
    }
}

impl Cp {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        match (&self.source, &self.destination) {
            (Place::Here(from), Place::Guest { instance, path }) => {
                let directory = self.ready(context, instance)?;
                put(&directory, from, path)
                    .with_context(|| format!("cannot copy {} to {instance}", printable(from)))
            }
            (Place::Guest { instance, path }, Place::Here(to)) => {
                let directory = self.ready(context, instance)?;
                get(&directory, path, to).with_context(|| format!("cannot copy {path} of {instance}"))
            }
            (Place::Here(_), Place::Here(_)) => Err(Advice::new(
                "neither of the two is in an instance",
                "write INSTANCE:PATH for the one that is; cp copies on this host",
            )
            .into()),
            (Place::Guest { .. }, Place::Guest { .. }) => Err(Advice::new(
                "both are in an instance",
                "copy to this host first, then from here",
            )
            .into()),
        }
    }

    /// The directory of an instance whose agent answers.
    fn ready(&self, context: &Context, instance: &str) -> anyhow::Result<PathBuf> {
        let ready = context.service.ready_instance(instance, self.wait_timeout)?;
        Ok(ready.directory().to_path_buf())
    }
}

fn put(directory: &Path, from: &Path, to: &str) -> anyhow::Result<Status> {
    // Before the guest is asked for anything.
    std::fs::symlink_metadata(from)?;
    let session = Session::open(
        directory,
        &Determinism::default(),
        &Request::CopyIn { path: to.into() },
    )?;
    let sender = session.sender();
    let pieces = io::BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
    match archive::pack(from, pieces) {
        Ok(report) => {
            // An agent that has refused by now reads no more, and its answer says why.
            let sent = sender.end_input();
            session.finish()?;
            sent?;
            conclude(&report)
        }
        Err(error @ archive::Error::Archive(_)) => {
            Err(session.finish().err().map_or(error.into(), Into::into))
        }
        Err(error) => Err(error.into()),
    }
}

/// Says what was left out, and fails if something should not have been.
fn conclude(report: &Report) -> anyhow::Result<Status> {
    report.lines().for_each(|line| note(&line));
    match report.failures() {
        0 => Ok(Status::OK),
        failures => Err(anyhow::anyhow!("{failures} of its files could not be copied")),
    }
}

fn note(line: &str) {
    super::stream::note(format_args!("vmm: {}", printable(Path::new(line))));
}

fn get(directory: &Path, from: &str, to: &Path) -> anyhow::Result<Status> {
    let mut stream = Stream {
        session: Session::open(
            directory,
            &Determinism::default(),
            &Request::CopyOut {
                path: from.into(),
                notes: true,
            },
        )?,
        held: io::Cursor::default(),
        ended: false,
        failure: None,
    };
    let report = match archive::unpack(&mut stream, to, Receiver::Host) {
        // The agent may have closed an archive that it could not fill.
        Err(error @ (archive::Error::Archive(_) | archive::Error::NotOne(_))) => {
            let _ = stream.finish();
            return Err(stream
                .failure
                .map_or(error.into(), |failure| anyhow::anyhow!(failure)));
        }
        unpacked => unpacked?,
    };
    // What is left is the agent's word that this was all.
    let rest = stream.finish();
    match stream.failure {
        Some(failure) => Err(anyhow::anyhow!(failure)),
        None => rest.map_err(anyhow::Error::from).and_then(|()| conclude(&report)),
    }
}

/// Sends what is written as pieces of an archive.
struct Pieces(Sender);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.input(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the pieces of an archive.
struct Stream {
    session: Session,
    held: io::Cursor<Vec<u8>>,
    ended: bool,
    /// Why the agent could not go on.
    failure: Option<String>,
}

impl Stream {
    /// Reads to the last frame of the agent.
    fn finish(&mut self) -> io::Result<()> {
        match self.failure {
            Some(_) => Ok(()),
            None => io::copy(self, &mut io::sink()).map(drop),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.held.read(buffer)?;
            if n > 0 || self.ended || buffer.is_empty() {
                return Ok(n);
            }
            match self.session.receive().map_err(io::Error::other)? {
                Some(Incoming::Output(bytes)) => self.held = io::Cursor::new(bytes),
                Some(Incoming::ErrorOutput(notes)) => {
                    String::from_utf8_lossy(&notes).lines().for_each(note);
                }
                Some(Incoming::Done(_)) => self.ended = true,
                Some(Incoming::Failed(failure)) => {
                    self.failure = Some(printable(Path::new(&failure.message)));
                    return Err(io::Error::other(failure.message));
                }
                Some(_) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_init::proto::{Kind, read_frame, write_frame};
    use instance::store::sockets;

    #[test]
    fn an_instance_is_before_a_colon_and_a_folder_is_not() {
        let guest = |instance: &str, path: &str| {
            Ok(Place::Guest {
                instance: instance.into(),
                path: path.into(),
            })
        };
        let place = |text: &[u8]| Place::parse(OsStr::from_bytes(text).to_owned());
        assert_eq!(place(b"web:/etc/hosts"), guest("web", "/etc/hosts"));
        assert_eq!(place(b"web:"), guest("web", ""));
        assert_eq!(place(b"web:a:b"), guest("web", "a:b"));
        assert_eq!(place(b"./a:b"), Ok(Place::Here("./a:b".into())));
        assert_eq!(place(b"file"), Ok(Place::Here("file".into())));
        assert!(place(b":/etc").is_err() && place(b"").is_err());
        let odd = OsStr::from_bytes(b"/srv/\xff");
        assert_eq!(place(odd.as_bytes()), Ok(Place::Here(odd.into())));
        assert!(place(b"web:/srv/\xff").unwrap_err().contains("UTF-8"));
    }

    /// An agent that answers one request with these frames.
    fn agent(directory: &Path, frames: Vec<(Kind, Vec<u8>)>) -> std::thread::JoinHandle<Request> {
        let listener = sockets::bind(directory, sockets::VSOCK).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = [0; "CONNECT 1024\n".len()];
            stream.read_exact(&mut line).unwrap();
            stream.write_all(b"OK 4000\n").unwrap();
            let request = read_frame(&mut stream).unwrap().unwrap().message().unwrap();
            for (kind, payload) in frames {
                write_frame(&mut stream, kind, &payload).unwrap();
            }
            request
        })
    }

    fn archive_of(file: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive::pack(file, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_agent_that_refuses_midway_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let failure = br#"{"reason":"other","message":"/srv: no space is left"}"#;
        for size in [0, 1 << 20] {
            let file = dir.path().join("file");
            std::fs::write(&file, vec![1; size]).unwrap();
            let served = agent(dir.path(), vec![(Kind::Failed, failure.to_vec())]);
            let error = put(dir.path(), &file, "/srv/file").unwrap_err();
            assert!(error.to_string().contains("/srv: no space is left"), "{error}");
            served.join().unwrap();
        }
    }

    #[test]
    fn the_agents_notes_are_no_part_of_the_archive_and_its_failure_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "text").unwrap();
        let to = dir.path().join("to");
        let done = || (Kind::Done, Vec::new());
        let failed = || {
            let failure = br#"{"reason":"other","message":"/nowhere: no such file"}"#;
            (Kind::Failed, failure.to_vec())
        };
        let output = || (Kind::Output, archive_of(&file));

        let served = agent(
            dir.path(),
            vec![output(), (Kind::ErrorOutput, b"left out\n".to_vec()), done()],
        );
        assert_eq!(get(dir.path(), "file", &to).unwrap(), Status::OK);
        let path = "file".to_owned();
        assert_eq!(served.join().unwrap(), Request::CopyOut { path, notes: true });
        assert_eq!(std::fs::read_to_string(&to).unwrap(), "text");

        // An archive that was closed before anything was in it, none at all, and one that lacks a file.
        for frames in [
            vec![(Kind::Output, vec![0; 1024]), failed()],
            vec![failed()],
            vec![output(), failed()],
        ] {
            let served = agent(dir.path(), frames);
            let error = get(dir.path(), "file", &to).unwrap_err();
            assert_eq!(error.to_string(), "/nowhere: no such file");
            served.join().unwrap();
        }
    }
}
