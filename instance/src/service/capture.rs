//! `create-image`: a new AMI from an instance.
//!
//! By default a running instance is shut down, copied and started again, as EC2 does, so that the file system
//! in the image is clean. `no_reboot` freezes the guest's file systems through the agent for the time of the
//! copy instead. The image stands alone: it holds the whole root, only allocated blocks of it on disk. The
//! instance keeps its identity; it is removed from the copy ([`scrub`]), and each instance of the new image
//! gets one of its own at its first boot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ami::{BlockDeviceMapping, Manifest, PartName, Source, Writer};
use guest_init::proto::Request;
use guest_init::proto::message::FREEZE_MAX;
use vm_memory::VolatileSlice;

use crate::guest::agent;
use crate::images::Images;
use crate::images::image::Image;
use crate::images::scrub;
use crate::process::detach;
use crate::process::per_run::PerRun;
use crate::service::images::{CreateImage, CreatedImage};
use crate::service::shutdown;
use crate::store::Store;
use crate::store::lock::Lock;
use crate::store::record::{Ending, Record, VolumeKind};
use crate::{Error, Event, Result};
use machine::accel::{self, Chosen};
use machine::block::Backend;
use machine::block::volume::{BLOCK, Volume};
use machine::virtio::determinism::Determinism;

/// How long the guest has to shut down before the copy; longer than for a stop, since the copy depends on it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(90);
/// Bytes copied at a time.
const STEP: u64 = 1 << 20;

impl CreateImage {
    /// Makes the image and puts it into the store.
    pub(super) fn run(&self, store: &Store, images: &Images) -> Result<CreatedImage> {
        let id = &store.find(&self.instance)?;
        let record = store.reconcile(id)?;
        if !record.state.has_process() {
            let held = shutdown::hold(store, id, Event::Start)?;
            let draft = self.copy(held.record(), held.directory(), images)?;
            let warning = unclean(held.record());
            drop(held);
            let id = self.complete(store, draft, &record, images)?;
            return Ok(CreatedImage { id, warning });
        }
        if let Some(paused) = &record.paused {
            return Err(Error::CapturePaused {
                label: record.label().to_owned(),
                paused: Box::new(paused.clone()),
            });
        }
        let (draft, warning) = if self.no_reboot {
            self.frozen(store, images, &record)?
        } else {
            self.restarted(store, images, &record)?
        };
        let id = self.complete(store, draft, &record, images)?;
        Ok(CreatedImage { id, warning })
    }

    /// Shuts down, copies, starts again — also when the copy has failed.
    fn restarted(&self, store: &Store, images: &Images, record: &Record) -> Result<(Draft, Option<String>)> {
        if record.auto_remove {
            return Err(Error::CaptureRemoved(record.label().to_owned()));
        }
        shutdown::stop(store, &record.id, SHUTDOWN_TIMEOUT)?;
        let mut held = store.hold(&record.id, Event::Start)?;
        let warning = unclean(held.record());
        let made = self.copy(held.record(), held.directory(), images);
        held.update(Event::Start, "started after its image was made", |r| {
            r.ending = None;
            r.ready = false;
        })?;
        detach::spawn(held, &PerRun::default())?;
        Ok((made?, warning))
    }

    /// Copies while the guest's file systems take no writes. The agent thaws by itself should this process
    /// die.
    fn frozen(&self, store: &Store, images: &Images, record: &Record) -> Result<(Draft, Option<String>)> {
        let directory = store.home().instance(&record.id);
        let mut freeze = agent::Session::open(
            &directory,
            &Determinism::default(),
            &Request::Freeze { seconds: FREEZE_MAX },
        )?;
        freeze.answer()?;
        let made = self.copy(record, &directory, images);
        let thawed = agent::request(&directory, &Determinism::default(), &Request::Thaw);
        let made = made?;
        let warning = thawed.err().map(|error| {
            format!(
                "the file systems were not frozen to the end of the copy ({error}): the image may not be \
                 consistent"
            )
        });
        Ok((made, warning))
    }

    /// Copies boot parts and root into an image that is not complete yet.
    fn copy(&self, record: &Record, directory: &Path, images: &Images) -> Result<Draft> {
        let image = Image::of_instance(record, directory)?;
        let volume = root_volume(record, &image)?;
        let path = Unfinished(images.draft_of(&record.id)?);
        let writer = write_parts(&path.0, &image, &volume, &[])?;
        let file = writer.file().try_clone();
        let lock = Lock::of_new(file.map_err(Error::file("opening", &path.0))?)?;
        Ok(Draft {
            writer,
            path,
            _lock: lock,
            image,
            root_size: volume.size(),
        })
    }

    /// Removes the identity from the copy, signs off the image and puts it into the store.
    fn complete(&self, store: &Store, draft: Draft, record: &Record, images: &Images) -> Result<String> {
        let Draft {
            writer,
            path,
            _lock,
            image,
            root_size,
        } = draft;
        if !self.keep_identity {
            let file = writer
                .file()
                .try_clone()
                .map_err(Error::file("opening", &path.0))?;
            let accelerator = accelerator(store, record, &image)?;
            let part = (root_offset(&writer)?, root_size);
            scrub::scrub(record, &image, accelerator, &path.0, file, part)?;
        }
        writer.finish(
            manifest(&self.name, self.description.as_deref(), record, &image),
            &|_| {},
        )?;
        images.adopt(&path.0, &self.name)
    }
}

/// The parent's manifest with what is different in an image of the instance.
pub(super) fn manifest(name: &str, description: Option<&str>, record: &Record, image: &Image) -> Manifest {
    let parent = image.manifest();
    let mapping = |volume: &crate::store::record::Volume| BlockDeviceMapping {
        device: volume.device.clone(),
        size: volume.size,
        delete_on_termination: volume.delete_on_termination,
    };
    // What does not outlive a stop is no part of what an image is made of.
    let lasting = record.volumes.iter().filter(|v| v.kind != VolumeKind::Ephemeral);
    Manifest {
        name: name.to_owned(),
        description: description.unwrap_or(&parent.description).to_owned(),
        // Packages may have been installed since: the parent's lock says nothing of this image.
        package_lock: None,
        created: None,
        parent: record.image.id.parse().ok(),
        source_instance: Some(record.id.to_string()),
        block_device_mappings: lasting.map(mapping).collect(),
        // The guest in the parent is not this one.
        warm: None,
        ..parent.clone()
    }
}

/// Why the file system of a stopped instance may need a check, if so.
fn unclean(record: &Record) -> Option<String> {
    match &record.ending {
        Some(Ending::PoweredOff | Ending::Exited(_)) | None => None,
        Some(other) => Some(format!(
            "{other}: the file system in the image may need its journal replayed"
        )),
    }
}

/// The root volume of an instance of `image`, to be read.
pub(super) fn root_volume(record: &Record, image: &Image) -> Result<Volume> {
    let root = record
        .volumes
        .first()
        .ok_or_else(|| Error::NoRoot(record.id.to_string()))?;
    let base = if Volume::needs_base(&root.path)? {
        Some(image.root()?)
    } else {
        None
    };
    Ok(Volume::open(&root.path, base)?)
}

/// Begins an image at `path` with the parent's boot parts and the content of `root`, and with room for `more`
/// parts of these lengths.
pub(super) fn write_parts(
    path: &Path,
    parent: &Image,
    root: &Volume,
    more: &[(PartName, u64)],
) -> Result<Writer> {
    let boot = [PartName::Kernel, PartName::Initramfs];
    let mut lengths = Vec::new();
    for part in boot {
        lengths.push((part, parent.range(part)?.1));
    }
    lengths.push((PartName::Root, root.size()));
    lengths.extend(more);
    let writer = Writer::create(path, &lengths)?;
    for part in boot {
        let (offset, _) = parent.range(part)?;
        writer.fill(
            part,
            Source::File {
                file: parent.file(),
                offset,
            },
        )?;
    }
    copy_root(root, writer.file(), root_offset(&writer)?).map_err(Error::file("writing", path))?;
    Ok(writer)
}

fn root_offset(writer: &Writer) -> Result<u64> {
    let offset = writer.layout().offset(PartName::Root);
    offset.ok_or_else(|| Error::NoRoot("the image".into()))
}

/// Copies what is not zero.
fn copy_root(root: &Volume, to: &File, offset: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; STEP as usize];
    let mut at = 0;
    while at < root.size() {
        let part = (root.size() - at).min(STEP) as usize;
        root.read_at(at, &[VolatileSlice::from(&mut buffer[..part])])?;
        for (index, block) in buffer[..part].chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                to.write_all_at(block, offset + at + index as u64 * BLOCK)?;
            }
        }
        at += part as u64;
    }
    Ok(())
}

/// An image whose root is copied and whose manifest is not written.
struct Draft {
    writer: Writer,
    path: Unfinished,
    /// Until it is adopted, it is somebody's.
    _lock: Lock,
    /// The parent.
    image: Image,
    /// Bytes of the root part.
    root_size: u64,
}

/// The file of an unfinished image, removed unless it has been moved away.
pub(super) struct Unfinished(pub PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What runs the machine that removes the identity: what the instance was launched with.
fn accelerator(store: &Store, record: &Record, image: &Image) -> Result<Arc<Chosen>> {
    let guest = image.manifest().architecture;
    let remembered = store.home().kvm_verdict();
    let chosen = accel::choose(record.config.accel, guest, remembered.as_deref())?;
    Ok(Arc::new(chosen.with_model(record.config.cpu)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::launch::{Launch, VolumeRequest};
    use crate::store::home::Home;
    use crate::test_image;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn an_image_of_a_stopped_instance_stands_alone_and_has_what_the_instance_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(Home::at(dir.path()));
        let images = Images::new(store.home());
        let parent = test_image::write(dir.path(), "parent", 5);
        let extra: VolumeRequest = "4M,keep".parse().unwrap();
        let launch = Launch::new(&store, Image::open(&parent).unwrap()).volumes(vec![extra]);
        let mut held = launch.prepare(0).unwrap();
        let record = held.record().clone();
        let base = Image::open(&parent).unwrap().root().unwrap();
        let volume = Volume::open(&record.volumes[0].path, Some(base)).unwrap();
        volume
            .write_at(4096, &[VolatileSlice::from(&mut [9u8; 100][..])])
            .unwrap();
        volume.flush().unwrap();
        held.update(Event::Ended, "", |r| r.ending = Some(Ending::PoweredOff))
            .unwrap();
        drop(held);

        let request = CreateImage {
            instance: record.id.to_string(),
            name: "child".into(),
            description: None,
            no_reboot: false,
            keep_identity: true,
        };
        let CreatedImage { id, warning } = request.run(&store, &images).unwrap();
        assert_eq!(warning, None);
        let child = Image::open(&images.resolve("child").unwrap()).unwrap();
        child.verify().unwrap();
        let manifest = child.manifest().clone();
        assert_eq!(child.id(), id);
        assert_ne!(id, record.image.id);
        assert_eq!(
            manifest.parent.as_ref().map(ToString::to_string),
            Some(record.image.id.clone())
        );
        assert_eq!(manifest.source_instance.as_deref(), Some(record.id.as_str()));
        let devices: Vec<_> = manifest
            .block_device_mappings
            .iter()
            .map(|m| (m.device.as_str(), m.size))
            .collect();
        assert_eq!(devices, [("/dev/vda", 8 << 20), ("/dev/vdb", 4 << 20)]);

        let mut expected = vec![5; test_image::ROOT as usize];
        expected.resize(8 << 20, 0);
        expected[4096..4196].fill(9);
        let mut found = vec![0; 8 << 20];
        child
            .root()
            .unwrap()
            .read_at(0, &[VolatileSlice::from(&mut found[..])])
            .unwrap();
        assert!(found == expected);
        assert!(
            std::fs::metadata(child.path()).unwrap().blocks() * 512 < 6 << 20,
            "holes are not stored"
        );

        // The mappings carry over to what is launched from it.
        let again = Launch::new(&store, child).prepare(0).unwrap();
        let volumes: Vec<_> = again
            .record()
            .volumes
            .iter()
            .map(|v| (v.device.as_str(), v.size))
            .collect();
        assert_eq!(volumes, devices);
        // Same content, same image.
        assert_eq!(request.run(&store, &images).unwrap().id, id);
        let left = std::fs::read_dir(store.home().images())
            .unwrap()
            .filter_map(|e| e.ok()?.file_name().into_string().ok());
        assert!(left.into_iter().all(|name| !name.contains("capture")));
    }
}
