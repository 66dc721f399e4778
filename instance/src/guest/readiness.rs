//! Reports of the guest, by connections to the host: that its agent is ready, and how its main program ended.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_init::proto::{
    Configure, END_PORT, Ended, Kind as FrameKind, READY_PORT, Renew, Request, read_frame,
};
use nix::poll::{PollFd, PollFlags, poll};

use crate::error::AgentError;
use crate::guest::agent;
use crate::process::guest::Beginning;
use crate::process::instance_process::InstanceProcess;
use crate::process::launch::hostname;
use crate::process::network;
use crate::store::sockets;
use crate::{Error, Result};
use machine::entropy;
use machine::sandbox::{self, Kind};
use machine::virtio::determinism::{Determinism, Times};

/// How long after a guest's readiness its launch is over, in milliseconds: those who waited are notified
/// meanwhile, and the code for it is used once more. At once would unmap some of it, or all, as the threads
/// happen to run.
const SETTLING: u16 = 500;
/// The same for a guest that goes on, which reports itself no second time.
const SETTLED_AFTER: Duration = Duration::from_millis(SETTLING as u64);

/// The agent says that it is there by connecting; what it sends is of no interest.
pub fn listen_for_readiness(
    process: &Arc<InstanceProcess>,
    determinism: Determinism,
    on_ready: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    let listener = sockets::bind(process.directory(), &format!("{}_{READY_PORT}", sockets::VSOCK))?;
    determinism.expect(READY_PORT, Times::Always);
    let on_ready = Arc::new(on_ready);
    if process.beginning() == Beginning::Restored {
        renew_soon(process, determinism.clone(), Arc::clone(&on_ready))?;
    }
    let process = Arc::clone(process);
    sandbox::spawn("readiness", Kind::Control, move || {
        listener.incoming().flatten().for_each(|stream| {
            // Closed before anything else, so that the guest sees it first in every run.
            drop(stream);
            // One that was saved before its agent was there says so only now, and is another instance still.
            if process.beginning() == Beginning::Restored {
                if let Err(error) = renew(&process, &determinism) {
                    tracing::warn!(%error, "the guest is not renewed, and so not ready");
                    determinism.give();
                    return;
                }
            } else if let Err(error) = configure(&process, &determinism) {
                tracing::warn!(%error, "the guest could not be configured");
            }
            on_ready();
            process.set_ready();
            determinism.give();
            if is_quiet(&listener) && !determinism.is_enabled() {
                process.give_back();
            }
        })
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// Attempts to reach the agent of a guest that goes on, should the first connection break, and between two of
/// them.
const ATTEMPTS: usize = 5;
const RETRY: Duration = Duration::from_millis(50);

/// The agent of a guest that goes on has reported itself long ago: it is asked.
fn renew_soon(
    process: &Arc<InstanceProcess>,
    determinism: Determinism,
    on_ready: Arc<impl Fn() + Send + Sync + 'static>,
) -> Result<()> {
    let process = Arc::clone(process);
    determinism.take();
    sandbox::spawn("renewal", Kind::Control, move || {
        for attempt in 1..=ATTEMPTS {
            match renew(&process, &determinism) {
                Ok(()) => {
                    on_ready();
                    process.set_ready();
                    determinism.give();
                    if !determinism.is_enabled() {
                        std::thread::sleep(SETTLED_AFTER);
                        process.give_back();
                    }
                    return;
                }
                // It has taken the request and cannot carry it out: asking again does not help.
                Err(error @ Error::Agent(AgentError::Refused(_))) => {
                    tracing::warn!(%error, "the guest is not renewed, and so not ready");
                    break;
                }
                // Saved before its agent was there, it says when it is.
                Err(error) if attempt == ATTEMPTS => {
                    tracing::info!(%error, "the guest's agent is not there yet");
                }
                Err(_) => std::thread::sleep(RETRY),
            }
        }
        determinism.give();
    })
    .map(drop)
    .map_err(Error::os("starting a thread"))
}

/// Has a guest that goes on become this instance, before anybody hears that it is ready.
fn renew(process: &InstanceProcess, determinism: &Determinism) -> Result<()> {
    let record = process.record();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed: [u8; 64] = entropy::bytes();
    let request = Request::Renew(Renew {
        nanoseconds: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        seed: seed.to_vec(),
        link_address: Some(network::mac(&record.id)),
        configure: Configure {
            hostname: Some(hostname(&record).to_owned()),
            ..configuration(process)?
        },
    });
    agent::request(process.directory(), determinism, &request).map(drop)
}

/// How long the guest may take to say how its main program has ended, once it has connected. A busy host may
/// let it stand still between two of its calls; meanwhile only its own other connections wait.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Notes how the image's main program has ended. The guest waits for the end of its connection before it
/// powers off.
pub(crate) fn listen_for_end(process: &Arc<InstanceProcess>, determinism: Determinism) -> Result<()> {
    let listener = sockets::bind(process.directory(), &format!("{}_{END_PORT}", sockets::VSOCK))?;
    determinism.expect(END_PORT, Times::Always);
    let process = Arc::clone(process);
    sandbox::spawn("end", Kind::Control, move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(END_TIMEOUT));
            // Other frames are ignored.
            if let Ok(Some(frame)) = read_frame(&mut stream)
                && frame.kind == FrameKind::Ended
                && let Ok(ended) = frame.message::<Ended>()
            {
                process.set_exited(ended.status());
            }
            drop(stream);
            determinism.give();
        }
    })
    .map_err(Error::os("starting a thread"))?;
    Ok(())
}

/// Whether the launch is over: those who waited for the guest have been notified, and it has not started anew
/// meanwhile.
fn is_quiet(listener: &impl AsFd) -> bool {
    let mut next = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    poll(&mut next, SETTLING) == Ok(0)
}

/// Gives the guest what belongs to this instance, unless there is nothing. cloud-init, where the image has
/// it, asks the metadata service itself; the agent knows.
fn configure(process: &InstanceProcess, determinism: &Determinism) -> Result<()> {
    let configuration = configuration(process)?;
    if configuration.ssh_keys.is_empty() && configuration.user_data.is_none() {
        return Ok(());
    }
    let request = Request::Configure(configuration);
    agent::request(process.directory(), determinism, &request).map(drop)
}

/// What belongs to this instance; it has its name from the kernel's command line.
fn configuration(process: &InstanceProcess) -> Result<Configure> {
    let record = process.record();
    let user_data = network::user_data(process.directory())?;
    Ok(Configure {
        instance: record.id.to_string(),
        hostname: None,
        ssh_keys: record.config.ssh_keys,
        // Only a script is the agent's business, and a script is text.
        user_data: user_data.and_then(|data| String::from_utf8(data).ok()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::Path;
    use std::sync::mpsc::channel;

    use guest_init::proto::{AGENT_PORT, Failure, Frame, Reason, write_frame};

    use super::*;
    use crate::process::console::Console;
    use crate::process::guest::Guest;
    use crate::store::Store;
    use crate::store::home::Home;
    use crate::store::instances::tests::draft;
    use crate::test_guest::Forever;
    use crate::{Record, State};

    /// The agent's next request, and where to answer it.
    fn next(agent: &UnixListener) -> (Request, UnixStream) {
        let (mut stream, _) = agent.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, format!("CONNECT {AGENT_PORT}\n"));
        stream.write_all(b"OK 4000\n").unwrap();
        let request = read_frame(&mut reader).unwrap().unwrap();
        (request.message().unwrap(), stream)
    }

    /// Runs a guest that goes on, whose agent does what `agent` says, and looks at its process then.
    fn restored(agent: impl FnOnce(&UnixListener, &Path), look: impl FnOnce(&InstanceProcess)) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let held = store.create(draft(Some("web")), |_, _| Ok(())).unwrap();
        let directory = held.directory().to_path_buf();
        let listener = sockets::bind(&directory, sockets::VSOCK).unwrap();
        let console = Console::new(held.directory());
        let process = InstanceProcess::new(held, console, Box::new(|_, _| Ok(())), Determinism::default());
        let (told, ready) = channel();
        let run = Arc::clone(&process);
        let thread = std::thread::spawn(move || {
            let serve = || {
                listen_for_readiness(&run, Determinism::default(), move || {
                    let _ = told.send(());
                })
            };
            let build =
                |_: &Record, _: &Path, _: &Console| Ok(Box::new(Forever::restored()) as Box<dyn Guest>);
            run.run(build, serve).unwrap();
        });
        agent(&listener, &directory);
        ready.recv().unwrap();
        assert!(process.wait_ready(Duration::from_secs(60)));
        look(&process);
        process.kill();
        thread.join().unwrap();
    }

    fn done(stream: &mut UnixStream) {
        write_frame(stream, FrameKind::Done, b"").unwrap();
    }

    #[test]
    fn a_guest_that_goes_on_becomes_this_instance_before_it_is_ready() {
        restored(
            |agent, _| {
                let (request, mut stream) = next(agent);
                let Request::Renew(renew) = request else {
                    panic!("{request:?}")
                };
                assert!(renew.configure.instance.starts_with("i-"));
                assert_eq!(renew.configure.hostname.as_deref(), Some("web"));
                assert!(renew.link_address.is_some() && renew.seed.len() == 64);
                assert!(renew.nanoseconds > 1_700_000_000_000_000_000);
                done(&mut stream);
            },
            |process| {
                assert_eq!(process.beginning(), Beginning::Restored);
                while process.record().state != State::Running {
                    std::thread::yield_now();
                }
                assert!(
                    process.record().ready,
                    "it stays ready when its start is recorded"
                );
                assert_eq!(process.record().reason, "launched from a running guest");
            },
        );
    }

    #[test]
    fn a_connection_that_breaks_is_made_again_and_an_agent_that_comes_late_is_renewed_too() {
        restored(
            |agent, _| {
                drop(agent.accept().unwrap());
                let (request, mut stream) = next(agent);
                assert!(matches!(request, Request::Renew(_)), "{request:?}");
                done(&mut stream);
            },
            |_| {},
        );
        restored(
            |agent, directory| {
                // The one that is asked at first refuses; the one that reports itself is ready.
                let (_, mut stream) = next(agent);
                let failure = Failure {
                    reason: Reason::Other,
                    message: "no".into(),
                };
                let frame = Frame::json(FrameKind::Failed, &failure).unwrap();
                write_frame(&mut stream, frame.kind, &frame.payload).unwrap();
                let name = format!("{}_{READY_PORT}", sockets::VSOCK);
                drop(sockets::connect(directory, &name).unwrap());
                let (request, mut stream) = next(agent);
                assert!(matches!(request, Request::Renew(_)), "{request:?}");
                done(&mut stream);
            },
            |_| {},
        );
    }
}
