//! Launching instances, each in a process of its own.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Service;
use crate::images::image::{Image, runnable};
use crate::process::launch::{Fresh, Launch, RootCopy, VolumeRequest};
use crate::process::per_run::PerRun;
use crate::process::restore::Begin;
use crate::process::{detach, preflight};
use crate::store::LockedInstance;
use crate::store::id::ReservationId;
use crate::store::network::Network;
use crate::store::record::{Accel, Config};
use crate::{Error, Event, InstanceId, Record, Result};

/// Instances at most in one launch.
const MAX_COUNT: u32 = 1000;

/// A launch: of what, how many, and how.
#[derive(Debug, Clone)]
pub struct RunInstances {
    /// An image in the store, or the path of an AMI file.
    pub image: String,
    /// How many instances, 1 to 1000.
    pub count: u32,
    /// The instance's name, if it is one.
    pub name: Option<String>,
    /// Tags for each instance.
    pub tags: BTreeMap<String, String>,
    /// How the machines are built.
    pub config: Config,
    /// Bytes of the root volume; the image's when absent.
    pub root_size: Option<u64>,
    /// When the root volume is filled.
    pub root_copy: RootCopy,
    /// Volumes besides those that the image maps.
    pub volumes: Vec<VolumeRequest>,
    /// Whether an instance is removed when it stops.
    pub auto_remove: bool,
    /// What each guest is given to read at its first boot.
    pub user_data: Option<Vec<u8>>,
    /// What is asked of this run and not kept.
    pub per_run: PerRun,
    /// The id of the launch, where the caller knows it before; a new one when absent.
    pub reservation: Option<ReservationId>,
    /// The place of the first instance in the launch, where others were launched before.
    pub first_index: u32,
}

impl RunInstances {
    /// One instance of `image` as the image's manifest has it. That of a warm image goes on from its guest, if
    /// it can.
    pub fn of(image: impl Into<String>) -> RunInstances {
        RunInstances {
            image: image.into(),
            count: 1,
            name: None,
            tags: BTreeMap::new(),
            config: Config::default(),
            root_size: None,
            root_copy: RootCopy::default(),
            volumes: Vec::new(),
            auto_remove: false,
            user_data: None,
            per_run: PerRun {
                begin: Begin::Restore,
                ..PerRun::default()
            },
            reservation: None,
            first_index: 0,
        }
    }

    /// What needs no look at the image.
    fn check(&self) -> Result<()> {
        let config = &self.config;
        let own_network = matches!(config.network, Network::User | Network::UserLoopback);
        if !(1..=MAX_COUNT).contains(&self.count) {
            return Err(Error::Malformed(
                self.count.to_string(),
                "number of instances (1 to 1000)",
            ));
        }
        if self.count > 1 && self.name.is_some() {
            return Err(Error::NameForSeveral);
        }
        if self.count > 1 && config.ports.iter().any(|port| port.host != 0) {
            return Err(Error::PortForSeveral);
        }
        if !config.ports.is_empty() && !own_network {
            return Err(Error::PortsWithoutNetwork);
        }
        Ok(())
    }

    /// Whether such a machine can count instructions.
    fn check_counting(&self, image: &Image) -> Result<()> {
        if !self.per_run.icount {
            return Ok(());
        }
        if self.config.accel == Accel::Kvm {
            return Err(Error::KvmCannotCount);
        }
        match self.config.cpus.unwrap_or(image.manifest().default_cpus) {
            1 => Ok(()),
            cpus => Err(Error::CountingSeveralCpus(cpus)),
        }
    }
}

/// An instance that was launched.
#[derive(Debug, Clone)]
pub struct Launched {
    /// Its id.
    pub id: InstanceId,
    /// Why its kernel boots, where a saved guest was to go on.
    pub booted: Option<String>,
}

/// What a launch has made.
#[derive(Debug)]
pub struct Reservation {
    /// Its id.
    pub id: ReservationId,
    /// The instances, in their order.
    pub instances: Vec<Record>,
}

impl Service {
    /// Launches instances, and returns when their guests run.
    ///
    /// # Errors
    /// The reason for which an instance could not be launched. Those before it run;
    /// [`Service::launch_instances`] names them.
    pub fn run_instances(&self, request: &RunInstances) -> Result<Reservation> {
        let launches = self.launch_instances(request)?;
        let id = launches.launch.reservation().clone();
        let instances = launches
            .map(|launched| self.store.reconcile(&launched?.id))
            .collect::<Result<_>>()?;
        Ok(Reservation { id, instances })
    }

    /// The same, one instance after the other: each is launched when it is asked for.
    ///
    /// # Errors
    /// When nothing can be launched so.
    pub fn launch_instances(&self, request: &RunInstances) -> Result<Launches<'_>> {
        let indices = request.first_index..request.first_index.saturating_add(request.count);
        Ok(self.launches(self.launch(request)?, request.per_run.clone(), indices))
    }

    /// The instances of `launch` at these places in it.
    pub(super) fn launches(&self, launch: Launch, per_run: PerRun, indices: Range<u32>) -> Launches<'_> {
        Launches {
            service: self,
            launch,
            per_run,
            left: indices,
        }
    }

    /// Checks that a launch is possible, and makes nothing: the record that its first instance would begin
    /// with.
    ///
    /// # Errors
    /// The reason for which it would be refused.
    pub fn check_launch(&self, request: &RunInstances) -> Result<Record> {
        let launch = self.launch(request)?;
        let record = launch.plan(0)?;
        preflight::check(&self.store, launch.image(), &record, &request.per_run)?;
        Ok(record)
    }

    /// Makes one instance that this process is to run itself ([`hosting`](super::hosting)), with what was
    /// opened for it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare_instance(&self, request: &RunInstances) -> Result<(LockedInstance, Fresh)> {
        self.launch(request)?.prepare_fresh(0)
    }

    fn launch(&self, request: &RunInstances) -> Result<Launch> {
        request.check()?;
        let image = Image::open_to_run(&self.images.resolve(&request.image)?, self.home())?;
        runnable(&image)?;
        request.check_counting(&image)?;
        Ok(Launch::new(&self.store, image)
            .name(request.name.clone())
            .tags(request.tags.clone())
            .config(request.config.clone())
            .user_data(request.user_data.clone())?
            .root(request.root_size, request.root_copy)
            .volumes(request.volumes.clone())
            .reserved(request.reservation.clone())
            .auto_remove(request.auto_remove))
    }
}

/// The instances of a launch, each launched by the call of `next` that returns it. After an error there are
/// no more.
#[derive(Debug)]
pub struct Launches<'a> {
    service: &'a Service,
    launch: Launch,
    per_run: PerRun,
    left: Range<u32>,
}

impl Launches<'_> {
    fn one(&self, index: u32) -> Result<Launched> {
        let held = self.launch.prepare(index)?;
        let id = held.record().id.clone();
        match detach::spawn(held, &self.per_run) {
            Ok(booted) => Ok(Launched { id, booted }),
            Err(error) => {
                // What never ran is nothing to keep.
                if let Ok(held) = self.service.store.hold(&id, Event::Terminate) {
                    held.remove()?;
                }
                Err(error)
            }
        }
    }
}

impl Iterator for Launches<'_> {
    type Item = Result<Launched>;

    fn next(&mut self) -> Option<Result<Launched>> {
        let index = self.left.next()?;
        let launched = self.one(index);
        if launched.is_err() {
            self.left = 0..0;
        }
        Some(launched)
    }
}
