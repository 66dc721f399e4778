//! Requests that change what an instance is: its tags, and of a stopped one its machine and user data.

use super::{Service, shutdown};
use crate::process::network::{USER_DATA, check_user_data};
use crate::store::record::Ending;
use crate::store::replace::{Durable, replace};
use crate::store::tags::TagChange;
use crate::{Error, Event, InstanceId, Record, Result, State};

/// A change of a stopped instance; what is `None` stays as it is.
#[derive(Debug, Clone, Default)]
pub struct ModifyInstance {
    /// The instance.
    pub instance: String,
    /// Its machine.
    pub size: Option<MachineSize>,
    /// Its user data, byte for byte. Programs in the guest that read it at an instance's first boot do not
    /// read it again.
    pub user_data: Option<Vec<u8>>,
    /// Whether it is removed when it stops.
    pub auto_remove: Option<bool>,
}

/// Processors and memory by the name of an instance type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineSize {
    /// The instance type.
    pub name: String,
    /// Virtual processors.
    pub cpus: u32,
    /// RAM in bytes.
    pub memory: u64,
}

impl Service {
    /// Changes the tags of an instance. The guest of a running one reads the new tags in its metadata when
    /// this returns.
    ///
    /// # Errors
    /// When there is no such instance, its tags would be too many or too long, its record cannot be written,
    /// or the process that runs it does not answer. Then nothing has changed.
    pub fn change_tags(&self, instance: &str, change: &TagChange) -> Result<Record> {
        let id = self.store.find(instance)?;
        let record = self.store.reconcile(&id)?;
        change.of(&record.tags)?;
        if record.state.has_process() {
            match self.client(&id).change_tags(change) {
                // It has stopped in the meantime.
                Err(_) if shutdown::has_ended(&self.store, &id)? => {}
                done => {
                    done?;
                    return self.store.reconcile(&id);
                }
            }
        }
        let mut held = self.store.hold(&id, Event::Start)?;
        let tags = change.of(&held.record().tags)?;
        held.change_if_written(|record| record.tags = tags)?;
        Ok(held.record().clone())
    }

    /// Changes a stopped instance.
    ///
    /// # Errors
    /// When it is not stopped, or was hibernated and is to have another machine; when the user data is too
    /// long, or what is new cannot be written.
    pub fn modify_instance(&self, request: &ModifyInstance) -> Result<InstanceId> {
        let id = self.store.find(&request.instance)?;
        check_user_data(request.user_data.as_deref())?;
        let record = self.store.reconcile(&id)?;
        if record.state != State::Stopped {
            return Err(Error::NotStopped(id.to_string()));
        }
        let mut held = shutdown::hold(&self.store, &id, Event::Start)?;
        if request.size.is_some() && held.record().ending == Some(Ending::Hibernated) {
            return Err(Error::OtherMachine(id.to_string()));
        }
        if let Some(data) = &request.user_data {
            let path = held.directory().join(USER_DATA);
            replace(&path, data, Durable::Yes).map_err(Error::file("writing", &path))?;
        }
        held.change_if_written(|record| {
            if let Some(MachineSize { name, cpus, memory }) = &request.size {
                record.config.instance_type = Some(name.clone());
                record.config.cpus = Some(*cpus);
                record.config.memory = Some(*memory);
            }
            record.auto_remove = request.auto_remove.unwrap_or(record.auto_remove);
        })?;
        Ok(id)
    }
}
