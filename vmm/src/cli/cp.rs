//! `cp`: files and folders between this host and an instance, through the guest's agent.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use guest_init::archive;
use guest_init::proto::Request;

use super::failure::Advice;
use super::lifecycle::{running, wait_ready};
use super::{Context, Status, value};
use instance::Event;
use instance::agent::{Incoming, Sender, Session};
use machine::virtio::lockstep::Turn;

/// Bytes of an archive in one piece: a frame of the protocol holds as many.
const PIECE: usize = guest_init::proto::frame::PAYLOAD_CAP;
/// Set-user-id, set-group-id and sticky bits from a guest mean nothing here.
const MASK: u32 = 0o7000;

/// Copy a file or folder to or from a running instance
#[derive(Debug, Args)]
#[command(
    after_help = "Into an existing folder under its own name, else under the name given; as cp -r. A relative path in \
    an instance begins at root's home. Files in the instance will be root's."
)]
pub struct Cp {
    /// How long to wait for an instance that is still booting
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    wait_timeout: Duration,
    /// A path here, or INSTANCE:PATH
    source: Place,
    /// A path here, or INSTANCE:PATH
    destination: Place,
}

/// Where something is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    Guest { instance: String, path: String },
}

impl std::str::FromStr for Place {
    type Err = String;

    /// A colon after what could be an instance; a file here whose name has one is written with its folder: `./a:b`.
    fn from_str(text: &str) -> Result<Place, String> {
        match text.split_once(':') {
            Some(("", _)) => Err("the instance is missing before the colon".into()),
            Some((instance, path)) if !instance.contains('/') => Ok(Place::Guest {
                instance: instance.into(),
                path: path.into(),
            }),
            _ if text.is_empty() => Err("a path has at least one letter".into()),
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
                    .with_context(|| format!("cannot copy {} to {instance}", from.display()))
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
        let id = context.store.find(instance)?;
        running(context, &id, Event::Started)?;
        wait_ready(context, &id, self.wait_timeout)?;
        Ok(context.home().instance(&id))
    }
}

fn put(directory: &Path, from: &Path, to: &str) -> anyhow::Result<Status> {
    std::fs::symlink_metadata(from)?;
    let session = Session::open(directory, &Turn::default(), &Request::CopyIn { path: to.into() })?;
    let sender = session.sender();
    archive::pack(from, io::BufWriter::with_capacity(PIECE, Pieces(sender.clone())))?;
    sender.end_input()?;
    session.finish()?;
    Ok(Status::OK)
}

fn get(directory: &Path, from: &str, to: &Path) -> anyhow::Result<Status> {
    let mut stream = Stream {
        session: Session::open(
            directory,
            &Turn::default(),
            &Request::CopyOut { path: from.into() },
        )?,
        held: io::Cursor::default(),
        ended: false,
    };
    archive::unpack(&mut stream, to, MASK)?;
    // What is left is the agent's word that this was all.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(Status::OK)
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
                Some(Incoming::Done(_)) => self.ended = true,
                Some(Incoming::Failed(failure)) => return Err(io::Error::other(failure.message)),
                Some(_) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_before_a_colon_and_a_folder_is_not() {
        let guest = |instance: &str, path: &str| {
            Ok(Place::Guest {
                instance: instance.into(),
                path: path.into(),
            })
        };
        assert_eq!("web:/etc/hosts".parse(), guest("web", "/etc/hosts"));
        assert_eq!("web:".parse(), guest("web", ""));
        assert_eq!("web:a:b".parse(), guest("web", "a:b"));
        assert_eq!("./a:b".parse(), Ok(Place::Here("./a:b".into())));
        assert_eq!("file".parse(), Ok(Place::Here("file".into())));
        assert!(":/etc".parse::<Place>().is_err() && "".parse::<Place>().is_err());
    }
}
