//! Turning an image into an instance that is ready to be run: its record, its directory, its volumes.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::images::image::Image;
use crate::process::network::{USER_DATA, check_user_data};
use crate::store::home::base_link;
use crate::store::id::ReservationId;
use crate::store::record::{Config, FORMAT, ImageRef, Record, Volume, VolumeKind};
use crate::store::{LockedInstance, Store};
use crate::{Error, InstanceId, Result, State, VolumeId};
use machine::block::volume;

/// The root volume's file in the state directory.
pub const ROOT: &str = "root.vol";
/// Volumes per instance, the root volume included: as many as there are letters for them.
pub const MAX_VOLUMES: usize = 16;

/// When the root volume is filled from the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RootCopy {
    /// As it is read, and in the background.
    #[default]
    Lazy,
    /// Before the launch.
    Full,
}

/// A volume to be attached besides the root volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRequest {
    source: VolumeSource,
    keep: bool,
    ephemeral: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum VolumeSource {
    Blank(u64),
    File(PathBuf),
}

impl FromStr for VolumeRequest {
    type Err = String;

    /// `SIZE[,keep|,ephemeral]` or `FILE`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (what, keep, ephemeral) = match text.rsplit_once(',') {
            Some((what, "keep")) => (what, true, false),
            Some((what, "ephemeral")) => (what, false, true),
            _ => (text, false, false),
        };
        if what.starts_with(|c: char| c.is_ascii_digit())
            && let Ok(size) = crate::store::size::parse(what)
        {
            let size = size.next_multiple_of(volume::SIZE_UNIT);
            return if size > 0 {
                Ok(VolumeRequest {
                    source: VolumeSource::Blank(size),
                    keep,
                    ephemeral,
                })
            } else {
                Err("a volume needs a size".into())
            };
        }
        match Path::new(what).canonicalize() {
            Ok(path) => Ok(VolumeRequest {
                source: VolumeSource::File(path),
                keep: true,
                ephemeral: false,
            }),
            Err(error) => Err(format!(
                "{what} is neither a size (as in 10G) nor a file: {error}"
            )),
        }
    }
}

/// A launch: one image, one set of options, any number of instances.
#[derive(Debug)]
pub struct Launch {
    store: Store,
    image: Arc<Image>,
    reservation: ReservationId,
    name: Option<String>,
    tags: BTreeMap<String, String>,
    config: Config,
    root_size: Option<u64>,
    root_copy: RootCopy,
    volumes: Vec<VolumeRequest>,
    auto_remove: bool,
    user_data: Option<Vec<u8>>,
}

impl Launch {
    /// A launch of `image` with no options.
    pub fn new(store: &Store, image: Image) -> Launch {
        Launch {
            store: store.clone(),
            image: Arc::new(image),
            reservation: ReservationId::random(),
            name: None,
            tags: BTreeMap::new(),
            config: Config::default(),
            root_size: None,
            root_copy: RootCopy::default(),
            volumes: Vec::new(),
            auto_remove: false,
            user_data: None,
        }
    }

    /// The instance's name.
    pub fn name(self, name: Option<String>) -> Launch {
        Launch { name, ..self }
    }

    /// Tags for each instance.
    pub fn tags(self, tags: BTreeMap<String, String>) -> Launch {
        Launch { tags, ..self }
    }

    /// How machines are built.
    pub fn config(self, config: Config) -> Launch {
        Launch { config, ..self }
    }

    /// Size of the root volume, if not the image's, and when it is filled.
    pub fn root(self, root_size: Option<u64>, root_copy: RootCopy) -> Launch {
        Launch {
            root_size,
            root_copy,
            ..self
        }
    }

    /// Volumes besides those that the image maps.
    pub fn volumes(self, volumes: Vec<VolumeRequest>) -> Launch {
        Launch { volumes, ..self }
    }

    /// Whether the instance goes away when it stops.
    pub fn auto_remove(self, auto_remove: bool) -> Launch {
        Launch { auto_remove, ..self }
    }

    /// What each instance is given to read at its first boot: a script, or whatever cloud-init understands.
    ///
    /// # Errors
    /// When there is more of it than EC2 takes.
    pub fn user_data(self, user_data: Option<Vec<u8>>) -> Result<Launch> {
        check_user_data(user_data.as_deref())?;
        Ok(Launch { user_data, ..self })
    }

    /// The id that its instances share, if the caller has one for them.
    pub fn reserved(self, reservation: Option<ReservationId>) -> Launch {
        let reservation = reservation.unwrap_or(self.reservation);
        Launch { reservation, ..self }
    }

    /// The id that its instances share.
    pub fn reservation(&self) -> &ReservationId {
        &self.reservation
    }

    /// What is launched.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The record that instance number `index` of this launch would begin with.
    pub fn plan(&self, index: u32) -> Result<Record> {
        let id = InstanceId::random();
        let directory = self.store.home().instance(&id);
        let launched = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Ok(Record {
            format: FORMAT,
            name: self.name.clone(),
            tags: self.tags.clone(),
            state: State::Pending,
            reason: "launched".into(),
            ending: None,
            reservation: self.reservation.clone(),
            launch_index: index,
            launched,
            owner: Some(std::process::id()),
            ready: false,
            paused: None,
            auto_remove: self.auto_remove,
            image: ImageRef {
                id: self.image.id().into(),
                name: self.image.name().into(),
                path: self.image.path().to_path_buf(),
                linked: false,
            },
            config: self.config.clone(),
            volumes: self.plan_volumes(&directory)?,
            id,
        })
    }

    fn plan_volumes(&self, directory: &Path) -> Result<Vec<Volume>> {
        let kind = match self.root_copy {
            RootCopy::Lazy => VolumeKind::Lazy,
            RootCopy::Full => VolumeKind::Full,
        };
        let size = self
            .root_size
            .unwrap_or(self.image.root_size())
            .next_multiple_of(volume::SIZE_UNIT);
        let mut volumes = vec![Volume {
            id: VolumeId::random(),
            device: device_name(0),
            path: directory.join(ROOT),
            size,
            delete_on_termination: true,
            kind,
        }];
        let root = self.image.manifest().root_device.as_str();
        let mapped = self
            .image
            .manifest()
            .block_device_mappings
            .iter()
            .filter(|m| m.device != root);
        let mapped = mapped.map(|m| VolumeRequest {
            source: VolumeSource::Blank(m.size.next_multiple_of(volume::SIZE_UNIT)),
            keep: !m.delete_on_termination,
            ephemeral: false,
        });
        for request in mapped.chain(self.volumes.iter().cloned()) {
            volumes.push(self.plan_volume(request, volumes.len(), directory)?);
        }
        if volumes.len() > MAX_VOLUMES {
            return Err(Error::TooManyVolumes(MAX_VOLUMES));
        }
        Ok(volumes)
    }

    /// The volume at `place`: devices are named in order.
    fn plan_volume(&self, request: VolumeRequest, place: usize, directory: &Path) -> Result<Volume> {
        let id = VolumeId::random();
        let (path, size, kind) = match request.source {
            VolumeSource::Blank(size) => {
                let home = if request.keep {
                    self.store.home().volumes()
                } else {
                    directory.to_path_buf()
                };
                let kind = if request.ephemeral {
                    VolumeKind::Ephemeral
                } else {
                    VolumeKind::Blank
                };
                (home.join(format!("{id}.raw")), size, kind)
            }
            VolumeSource::File(path) => {
                let size = fs::metadata(&path)
                    .map_err(Error::file("examining", &path))?
                    .len();
                (path, size, VolumeKind::File)
            }
        };
        let delete_on_termination = !request.keep;
        Ok(Volume {
            id,
            device: device_name(place),
            path,
            size,
            delete_on_termination,
            kind,
        })
    }

    /// Makes instance number `index`, pending and held by this process.
    pub fn prepare(&self, index: u32) -> Result<LockedInstance> {
        self.prepare_fresh(index).map(|(held, _)| held)
    }

    /// As [`prepare`](Launch::prepare), with what was opened for it: for a caller that runs the instance at
    /// once.
    pub fn prepare_fresh(&self, index: u32) -> Result<(LockedInstance, Fresh)> {
        let mut root = None;
        let record = self.plan(index)?;
        let planned = self.store.home().instance(&record.id);
        let held = self.store.create(record, |directory, record| {
            if let Some(data) = &self.user_data {
                let path = directory.join(USER_DATA);
                fs::write(&path, data).map_err(Error::file("writing", &path))?;
            }
            record.image.linked = link(&self.image, &base_link(&planned));
            for volume in &record.volumes {
                // The directory does not have its final name yet.
                let path = match volume.path.strip_prefix(&planned) {
                    Ok(inside) => directory.join(inside),
                    Err(_) => volume.path.clone(),
                };
                if let Some(made) = self.make_volume(volume, &path)? {
                    root = Some(made);
                }
            }
            Ok(())
        })?;
        let image = Arc::clone(&self.image);
        Ok((held, Fresh { image, root }))
    }

    /// Makes a volume, and returns it if it is the root volume.
    fn make_volume(&self, volume: &Volume, path: &Path) -> Result<Option<volume::Volume>> {
        let image = &self.image;
        match volume.kind {
            VolumeKind::Lazy => {
                let root = volume::Volume::create(path, image.root()?, volume.size)?;
                return Ok(Some(root));
            }
            VolumeKind::Full => {
                let root = volume::Volume::create_full(path, &image.root()?, volume.size)?;
                return Ok(Some(root));
            }
            VolumeKind::Blank | VolumeKind::Ephemeral => {
                if let Some(parent) = path.parent() {
                    crate::store::home::create_private(parent)?;
                }
                OpenOptions::new()
                    .create_new(true)
                    .write(true)
                    .open(path)
                    .and_then(|file| file.set_len(volume.size))
                    .map_err(Error::file("creating", path))?;
            }
            VolumeKind::File => {}
        }
        Ok(None)
    }
}

/// Empties the volumes that do not outlive a stop, for a start.
pub fn empty_ephemeral(record: &Record) -> Result<()> {
    let volumes = record.volumes.iter();
    for volume in volumes.filter(|volume| volume.kind == VolumeKind::Ephemeral) {
        fs::File::create(&volume.path)
            .and_then(|file| file.set_len(volume.size))
            .map_err(Error::file("emptying", &volume.path))?;
    }
    Ok(())
}

/// What a launch has opened and the first run of the instance needs again.
pub struct Fresh {
    /// The image, all but the content of its parts checked.
    pub image: Arc<Image>,
    /// The root volume as it was made.
    pub root: Option<volume::Volume>,
}

/// Gives the instance a name of its own for the image's file, so that the file cannot be deleted by others.
/// Not possible across file systems, or for another user's file; then the image stays where it is.
fn link(image: &Image, to: &Path) -> bool {
    match fs::hard_link(image.path(), to) {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != io::ErrorKind::CrossesDevices {
                tracing::debug!(%error, "the image cannot be linked");
            }
            false
        }
    }
}

/// The guest's host name: the instance's name if it has one, else its id.
pub fn hostname(record: &Record) -> &str {
    record.label()
}

fn device_name(place: usize) -> String {
    format!("/dev/vd{}", char::from(b'a' + (place % 26) as u8))
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
