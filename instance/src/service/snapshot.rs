//! Warm images and what is made of them: an image with a guest that runs in it, clones of an instance.
//!
//! A snapshot follows the rules of `create-image` but for one: the identity cannot be removed from the copy.
//! The guest in memory and the file system below it belong together, so neither is changed; whoever goes on
//! from them renews what makes it this instance. What else memory and disk hold is said in a warning.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ami::{Manifest, PartName, Source, Warm, Writer};
use guest_init::proto::message::FREEZE_MAX;
use guest_init::proto::{Ready, Request};
use machine::snapshot::State;
use machine::virtio::determinism::Determinism;

use super::capture::{Unfinished, manifest, root_volume, write_parts};
use super::working_set;
use super::{Launched, RunInstances, Service, TerminateInstance, WaitFor};
use crate::api::client::Client;
use crate::guest::agent;
use crate::images::image::Image;
use crate::process::launch::Launch;
use crate::process::per_run::{HostUse, PerRun};
use crate::process::restore::Begin;
use crate::store::lock::Lock;
use crate::store::record::{Config, Record};
use crate::store::saved::{Purpose, SavedFiles};
use crate::{Error, Event, Result};

/// How long an instance that was only launched for its image has to power off.
const AT_ONCE: Duration = Duration::ZERO;

/// The accelerator that maps memory from the image, by its name there.
const SOFTWARE: &str = "soft";

/// What is said to whoever has made a warm image.
const SECRETS: &str = "the image holds the memory of the guest as it ran: keys, passwords and whatever else it \
                       knew. Its logs and histories are not removed either. Keep it to yourself, or make it of \
                       an instance that was given no secrets";

/// A warm image of a running instance.
#[derive(Debug, Clone)]
pub struct SnapshotInstance {
    /// The instance. It is paused while its memory and root volume are copied.
    pub instance: String,
    /// The image's name, and its name in the store.
    pub name: String,
    /// A paragraph for people; the parent's when absent.
    pub description: Option<String>,
}

/// A warm image that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshotted {
    /// Its id.
    pub id: String,
    /// What it may hold that others must not see.
    pub warning: &'static str,
}

/// A warm image of an image: launched, waited for, saved, removed.
#[derive(Debug, Clone)]
pub struct WarmImage {
    /// The image to launch, and how.
    pub launch: RunInstances,
    /// What is waited for before the guest is saved.
    pub at: WaitFor,
    /// How long it is waited for.
    pub timeout: Duration,
    /// The file of the warm image.
    pub output: PathBuf,
}

/// New instances that go on from where an instance is.
#[derive(Debug, Clone)]
pub struct CloneInstance {
    /// The instance. It is paused while its memory and root volume are copied.
    pub instance: String,
    /// How many clones.
    pub count: u32,
    /// The clone's name, if it is one.
    pub name: Option<String>,
    /// How their processes deal with this host.
    pub host: HostUse,
}

impl Service {
    /// Makes a warm image of a running instance and puts it into the store.
    ///
    /// # Errors
    /// When it does not run, or cannot be saved or copied.
    pub fn snapshot_instance(&self, request: &SnapshotInstance) -> Result<Snapshotted> {
        let record = self.to_be_saved(&request.instance)?;
        let path = Unfinished(self.images.draft_of(&record.id)?);
        let manifest =
            |image: &Image| manifest(&request.name, request.description.as_deref(), &record, image);
        let _lock = self.write_snapshot(&record, &path.0, &manifest)?;
        let id = self.images.adopt(&path.0, &request.name)?;
        Ok(Snapshotted { id, warning: SECRETS })
    }

    /// Makes a warm image of an image.
    ///
    /// # Errors
    /// When it cannot be launched, is not there in time, or cannot be saved. What was launched is removed in
    /// any case.
    pub fn warm_image(&self, request: &WarmImage) -> Result<Snapshotted> {
        let launched = self.run_instances(&request.launch)?;
        let [instance] = &launched.instances[..] else {
            return Err(Error::Malformed(
                launched.instances.len().to_string(),
                "number of instances (1)",
            ));
        };
        let made = self.warm(instance, request);
        let removed = self.terminate_instance(&TerminateInstance {
            instance: instance.id.to_string(),
            timeout: AT_ONCE,
        });
        let id = made?;
        removed?;
        Ok(Snapshotted { id, warning: SECRETS })
    }

    fn warm(&self, instance: &Record, request: &WarmImage) -> Result<String> {
        self.wait_for_launched(&instance.id, request.at, request.timeout)?;
        let record = self.to_be_saved(instance.id.as_str())?;
        let manifest = |image: &Image| manifest(&image.manifest().name, None, &record, image);
        let (id, _) = self.write_snapshot(&record, &request.output, &manifest)?;
        // Where its memory is copied as a whole, there is nothing to choose from.
        let image = Image::open(&request.output)?;
        if image
            .manifest()
            .warm
            .as_ref()
            .is_none_or(|warm| warm.accelerator != SOFTWARE)
        {
            return Ok(id);
        }
        // An image without it is only slower to begin with.
        self.add_working_set(&image, request).or_else(|error| {
            tracing::warn!(%error, "the image has no working set");
            Ok(id)
        })
    }

    /// Goes on from the image that was just made until its guest is ready, and writes what it has needed into
    /// the image. Returns the image's new id.
    fn add_working_set(&self, image: &Image, request: &WarmImage) -> Result<String> {
        let launch = RunInstances {
            image: request.output.to_string_lossy().into_owned(),
            name: None,
            config: cloned(&request.launch.config),
            auto_remove: true,
            // It has run, and would run a second time.
            user_data: None,
            per_run: PerRun {
                host: request.launch.per_run.host,
                begin: Begin::Clone,
                ..PerRun::default()
            },
            ..request.launch.clone()
        };
        let launched = self.run_instances(&launch)?;
        let seen = launched.instances.iter().map(|instance| {
            self.wait_for_launched(&instance.id, WaitFor::Agent, request.timeout)?;
            let process = self.store.reconcile(&instance.id)?.owner;
            let process = process.ok_or_else(|| Error::HasEnded(instance.id.to_string()))?;
            working_set::of_process(process, image)
        });
        let seen: Result<Vec<_>> = seen.collect();
        for instance in &launched.instances {
            self.terminate_instance(&TerminateInstance {
                instance: instance.id.to_string(),
                timeout: AT_ONCE,
            })?;
        }
        let id = working_set::write(image, seen?.concat())?;
        Image::open(&request.output)?.note_verified(self.home());
        Ok(id)
    }

    /// Launches clones of a running instance. They share its memory and its root volume until they change
    /// them. Those before an error run.
    ///
    /// # Errors
    /// When it does not run, cannot be saved, or a clone cannot be launched.
    pub fn clone_instance(&self, request: &CloneInstance) -> Result<Vec<Launched>> {
        if request.count > 1 && request.name.is_some() {
            return Err(Error::NameForSeveral);
        }
        let record = self.to_be_saved(&request.instance)?;
        let path = Unfinished(self.images.draft_of(&record.id)?);
        let manifest = |image: &Image| manifest(&image.manifest().name, None, &record, image);
        // Without the lock it would be a file that nobody needs.
        let _lock = self.write_snapshot(&record, &path.0, &manifest)?;
        let (id, image) = self.images.adopt_at_once(&path.0)?;
        // Their volumes read from it until they are complete.
        let synced = thread::spawn(move || image.sync_all());
        let launched = self.launch_clones(request, &record, &id);
        if let Ok(Err(error)) = synced.join() {
            tracing::warn!(%error, "the image of the clones is not on the disk yet");
        }
        // Each clone has a link of its own to the image; where there are none, it stays for them.
        match self.images.remove(&id, false, &self.store) {
            Ok(_) | Err(Error::ImageInUse { .. } | Error::NoImage(_)) => {}
            Err(error) => tracing::warn!(%error, "the image of the clones stays in the store"),
        }
        launched
    }

    fn launch_clones(&self, request: &CloneInstance, record: &Record, image: &str) -> Result<Vec<Launched>> {
        let image = Image::open(&self.images.resolve(image)?)?;
        let launch = Launch::new(&self.store, image)
            .name(request.name.clone())
            .tags(record.tags.clone())
            .config(cloned(&record.config))
            .auto_remove(record.auto_remove);
        let per_run = PerRun {
            host: request.host,
            begin: Begin::Clone,
            ..PerRun::default()
        };
        self.launches(launch, per_run, 0..request.count).collect()
    }

    /// The record of an instance whose guest can be saved for others to go on from.
    fn to_be_saved(&self, instance: &str) -> Result<Record> {
        let (id, _) = self.active(instance, Event::Started)?;
        let record = self.store.reconcile(&id)?;
        if record.volumes.len() > 1 {
            return Err(Error::SnapshotVolumes(record.label().to_owned()));
        }
        if !record.ready || record.paused.is_some() {
            return Ok(record);
        }
        let directory = self.home().instance(&id);
        let answer = agent::request(&directory, &Determinism::default(), &Request::Ping)?;
        match serde_json::from_slice::<Ready>(&answer) {
            Ok(ready) if ready.cloud_init => Err(Error::SnapshotCloudInit(record.label().to_owned())),
            Ok(ready) if ready.renews => Ok(record),
            _ => Err(Error::SnapshotAgent(record.label().to_owned())),
        }
    }

    /// Writes a warm image of the instance to `path`. It is somebody's while the lock is held.
    fn write_snapshot(
        &self,
        record: &Record,
        path: &Path,
        manifest: &dyn Fn(&Image) -> Manifest,
    ) -> Result<(String, Lock)> {
        let draft = self.take(record, path)?;
        let manifest = manifest(&draft.image);
        let written = draft.finish(manifest)?;
        Image::open(path)?.note_verified(self.home());
        Ok(written)
    }

    /// Copies the guest and its root volume at one instant into an image at `path` that is not complete yet.
    fn take(&self, record: &Record, path: &Path) -> Result<Draft> {
        let directory = self.home().instance(&record.id);
        let client = self.client(&record.id);
        let files = SavedFiles::new(&directory, Purpose::Image);
        let is_paused = record.paused.as_ref().is_some_and(|paused| paused.requested);
        // The end of this session thaws.
        let frozen = match record.ready && !is_paused {
            true => freeze(&directory),
            false => None,
        };
        if !is_paused {
            client.pause()?;
        }
        let copied = copy(record, &directory, path, &client, &files);
        let resumed = match is_paused {
            true => Ok(()),
            false => client.resume(),
        };
        drop(frozen);
        let draft = copied.and_then(|draft| draft.fill(&files));
        let removed = files.remove();
        resumed?;
        let draft = draft?;
        removed?;
        Ok(draft)
    }
}

/// The source's own, but for the ports of this host, which are taken.
fn cloned(config: &Config) -> Config {
    let mut config = config.clone();
    for port in &mut config.ports {
        port.host = 0;
    }
    config
}

/// Has the guest write what it has not written yet and hold all writes, so that the file system in the image
/// is clean: it boots, and can be read. A guest that goes on from memory thaws when it is renewed.
fn freeze(directory: &Path) -> Option<agent::Session> {
    let frozen = || -> Result<agent::Session> {
        let request = Request::Freeze { seconds: FREEZE_MAX };
        let mut session = agent::Session::open(directory, &Determinism::default(), &request)?;
        session.answer()?;
        Ok(session)
    };
    frozen()
        .inspect_err(|error| tracing::info!(%error, "the file systems are not frozen for the snapshot"))
        .ok()
}

/// While the guest is paused: has it saved, and copies its root volume.
fn copy(
    record: &Record,
    directory: &Path,
    path: &Path,
    client: &Client,
    files: &SavedFiles,
) -> Result<Draft> {
    let image = Image::of_instance(record, directory)?;
    client.save()?;
    let bytes = std::fs::read(&files.state).map_err(Error::file("reading", &files.state))?;
    let state = State::from_bytes(&bytes)?;
    let about = state.about();
    let warm = Warm {
        accelerator: about.accelerator.to_string(),
        cpus: about.cpus.into(),
        memory: about.memory,
    };
    let more = [
        (PartName::Memory, warm.memory),
        (PartName::State, bytes.len() as u64),
    ];
    let volume = root_volume(record, &image)?;
    let writer = write_parts(path, &image, &volume, &more)?;
    let file = writer.file().try_clone();
    let lock = Lock::of_new(file.map_err(Error::file("opening", path))?)?;
    Ok(Draft {
        writer,
        image,
        warm,
        lock,
    })
}

/// A warm image whose root is copied.
struct Draft {
    writer: Writer,
    /// The image of the instance.
    image: Image,
    warm: Warm,
    /// Until it is adopted, it is somebody's.
    lock: Lock,
}

impl Draft {
    /// Adds the saved guest, which may go on meanwhile.
    fn fill(self, files: &SavedFiles) -> Result<Draft> {
        for (part, path) in [(PartName::Memory, &files.memory), (PartName::State, &files.state)] {
            let file = File::open(path).map_err(Error::file("opening", path))?;
            self.writer.fill(
                part,
                Source::File {
                    file: &file,
                    offset: 0,
                },
            )?;
        }
        Ok(self)
    }

    /// Completes the image, which is somebody's while the lock is held. By default it is launched with the
    /// machine that its guest has.
    fn finish(self, manifest: Manifest) -> Result<(String, Lock)> {
        let manifest = Manifest {
            default_cpus: self.warm.cpus,
            default_memory: self.warm.memory,
            warm: Some(self.warm),
            ..manifest
        };
        let (id, _) = self.writer.finish(manifest, &|_| {})?;
        Ok((id.to_string(), self.lock))
    }
}
