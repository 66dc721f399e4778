//! Requests for existing instances: describing them, and changes of their state.

use std::time::Duration;

use super::{Launched, Service, shutdown};
use crate::process::detach;
use crate::process::launch::empty_ephemeral;
use crate::process::per_run::{HostUse, PerRun};
use crate::process::restore::Begin;
use crate::store::pause::Paused;
use crate::store::record::Volume;
use crate::store::{Entry, LockedInstance};
use crate::{Error, Event, InstanceId, Record, Result, State};

/// How long a reboot waits for the agent that is to carry it out.
const REBOOT_TIMEOUT: Duration = crate::api::STOP_TIMEOUT;

/// Which instances are described.
#[derive(Debug, Clone, Default)]
pub struct DescribeInstances {
    /// Only these; all when there is none.
    pub instances: Vec<String>,
    /// Only those in one of these states; in any when there is none.
    pub states: Vec<State>,
    /// Only those with all of these tags.
    pub tags: Vec<(String, String)>,
}

impl DescribeInstances {
    fn wants(&self, record: &Record) -> bool {
        let tagged = |(key, value): &(String, String)| record.tags.get(key) == Some(value);
        (self.states.is_empty() || self.states.contains(&record.state)) && self.tags.iter().all(tagged)
    }
}

/// What is known of instances.
#[derive(Debug, Default)]
pub struct DescribedInstances {
    /// Their records: in the order of the request, or the oldest first.
    pub records: Vec<Record>,
    /// Those whose records cannot be read, and why.
    pub damaged: Vec<(InstanceId, Error)>,
}

/// A start of a stopped instance.
#[derive(Debug, Clone)]
pub struct StartInstance {
    /// The instance.
    pub instance: String,
    /// How its process deals with this host.
    pub host: HostUse,
    /// Its kernel boots, even if it was hibernated.
    pub cold: bool,
}

/// A stop.
#[derive(Debug, Clone)]
pub struct StopInstance {
    /// The instance.
    pub instance: String,
    /// How long its guest has to power off before it is ended without its consent; none ends it at once.
    pub timeout: Duration,
}

/// A removal.
#[derive(Debug, Clone)]
pub struct TerminateInstance {
    /// The instance.
    pub instance: String,
    /// As for a stop, if it runs.
    pub timeout: Duration,
}

/// What a removal has left.
#[derive(Debug)]
pub struct Terminated {
    /// The instance that was removed.
    pub id: InstanceId,
    /// Its volumes that outlive it.
    pub kept: Vec<Volume>,
}

impl Service {
    /// What is known of instances.
    ///
    /// # Errors
    /// When one that the request names is not there or its record cannot be read, or no instance can be
    /// looked for.
    pub fn describe_instances(&self, request: &DescribeInstances) -> Result<DescribedInstances> {
        let mut described = DescribedInstances::default();
        if request.instances.is_empty() {
            for entry in self.store.list()? {
                match entry {
                    Entry::Known(record) => described.records.push(*record),
                    Entry::Damaged(error, id) => described.damaged.push((id, error)),
                }
            }
        }
        for text in &request.instances {
            described.records.push(self.describe_instance(text)?);
        }
        described.records.retain(|record| request.wants(record));
        Ok(described)
    }

    /// The record of one instance.
    ///
    /// # Errors
    /// When there is no such instance, or its record cannot be read.
    pub fn describe_instance(&self, instance: &str) -> Result<Record> {
        self.store.reconcile(&self.store.find(instance)?)
    }

    /// Starts a stopped instance, and returns when its guest runs. One that was hibernated goes on, if it can.
    ///
    /// # Errors
    /// When it is not stopped, or its guest does not run.
    pub fn start_instance(&self, request: &StartInstance) -> Result<Launched> {
        let id = self.store.find(&request.instance)?;
        let mut held = shutdown::hold(&self.store, &id, Event::Start)?;
        begin(&mut held, "started")?;
        let per_run = PerRun {
            host: request.host,
            begin: match request.cold {
                true => Begin::Boot,
                false => Begin::Resume,
            },
            ..PerRun::default()
        };
        let booted = detach::spawn(held, &per_run)?;
        Ok(Launched { id, booted })
    }

    /// Stops an instance, and returns when it has stopped. One that is stopped already is fine.
    ///
    /// # Errors
    /// When its state cannot be known, or its process cannot be ended from here.
    pub fn stop_instance(&self, request: &StopInstance) -> Result<InstanceId> {
        let id = self.store.find(&request.instance)?;
        shutdown::stop(&self.store, &id, request.timeout)?;
        Ok(id)
    }

    /// Saves the guest where it is and stops the instance; the next start goes on from there.
    ///
    /// # Errors
    /// When it does not run, is removed when it stops, or cannot be saved.
    pub fn hibernate_instance(&self, instance: &str) -> Result<InstanceId> {
        let (id, _) = self.active(instance, Event::Stop)?;
        self.client(&id).hibernate()?;
        shutdown::stop(&self.store, &id, Duration::ZERO)?;
        Ok(id)
    }

    /// Has the guest restart. One that is still booting is waited for.
    ///
    /// # Errors
    /// When it does not run, or its agent does not answer.
    pub fn reboot_instance(&self, instance: &str) -> Result<InstanceId> {
        let id = self.running(instance, Event::Rebooted)?;
        self.wait_ready(&id, REBOOT_TIMEOUT)?;
        self.client(&id).reboot()?;
        Ok(id)
    }

    /// Stops the guest where it is, without its knowledge.
    ///
    /// # Errors
    /// When it does not run, or is paused already.
    pub fn pause_instance(&self, instance: &str) -> Result<InstanceId> {
        let (id, _) = self.active(instance, Event::Started)?;
        self.client(&id).pause()?;
        Ok(id)
    }

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// When it is not paused, or there is still no space for what it has written.
    pub fn resume_instance(&self, instance: &str) -> Result<InstanceId> {
        let (id, _) = self.active(instance, Event::Started)?;
        self.client(&id).resume()?;
        Ok(id)
    }

    /// Stops an instance and removes it with its volumes, but for those that outlive it. What is left of one
    /// whose record cannot be read is removed, too.
    ///
    /// # Errors
    /// When there is no such instance, or it can be neither stopped nor removed.
    pub fn terminate_instance(&self, request: &TerminateInstance) -> Result<Terminated> {
        let id = self.store.find(&request.instance)?;
        let kept = self.terminate(&id, request.timeout)?;
        Ok(Terminated { id, kept })
    }

    fn terminate(&self, id: &InstanceId, timeout: Duration) -> Result<Vec<Volume>> {
        match shutdown::stop(&self.store, id, timeout) {
            Err(Error::Damaged { .. }) => {
                shutdown::remove_damaged(&self.store, id)?;
                return Ok(Vec::new());
            }
            // Its process has removed it since it was looked up.
            Err(Error::NoInstance(_)) => return Ok(Vec::new()),
            stopped => stopped?,
        }
        let held = match self.store.hold(id, Event::Terminate) {
            Err(Error::NoInstance(_)) => return Ok(Vec::new()),
            held => held?,
        };
        let volumes = held.record().volumes.iter();
        let kept = volumes.filter(|v| !v.delete_on_termination).cloned().collect();
        held.remove()?;
        Ok(kept)
    }

    /// The instance, which runs and is not paused; `event` is what it is wanted for.
    pub(super) fn running(&self, instance: &str, event: Event) -> Result<InstanceId> {
        match self.active(instance, event)? {
            (id, None) => Ok(id),
            (id, Some(paused)) => Err(Error::IsPaused {
                id: id.to_string(),
                paused: Box::new(paused),
            }),
        }
    }

    /// The instance, which runs, and why it is paused, if it is.
    pub(super) fn active(&self, instance: &str, event: Event) -> Result<(InstanceId, Option<Paused>)> {
        let record = self.describe_instance(instance)?;
        match record.state {
            State::Pending | State::Running => Ok((record.id, record.paused)),
            state => Err(Error::Transition {
                id: record.id.to_string(),
                state,
                event,
            }),
        }
    }
}

/// Makes a stopped instance pending again.
pub(super) fn begin(held: &mut LockedInstance, reason: &str) -> Result<()> {
    empty_ephemeral(held.record())?;
    held.update(Event::Start, reason, |record| {
        record.ending = None;
        record.ready = false;
    })
}
