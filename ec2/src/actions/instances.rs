//! Steps of instances that are there: start, stop, reboot; their consoles.

use std::sync::Arc;
use std::time::Duration;

use instance::Code;
use instance::process::per_run::HostUse;
use instance::service::{StartInstance, StopInstance};

use super::describe;
use super::shown::{self, Shown, Stage};
use crate::api::Api;
use crate::error::{Error, Result};
use crate::ledger::Protection;
use crate::query::Params;
use crate::time;
use crate::xml::{Element, set, text};

/// How long a guest has to power off.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the console that are shown; EC2's limit.
const CONSOLE: usize = 64 << 10;

/// The instances that a request is for; there is at least one.
pub fn named(api: &Api, params: &Params) -> Result<Vec<Shown>> {
    let ids = params.list("InstanceId");
    if ids.is_empty() {
        return Err(Error::MissingParameter("InstanceId".into()));
    }
    shown::named(api, &ids)
}

/// The states before and after a step.
pub fn changes(api: &Api, before: &[Shown]) -> Result<Vec<Element>> {
    let ids: Vec<_> = before.iter().map(Shown::id).collect();
    let after = shown::named(api, &ids)?;
    let items = before.iter().zip(&after).map(|(before, after)| {
        [
            text("instanceId", before.id()),
            after.stage.element("currentState"),
            before.stage.element("previousState"),
        ]
    });
    Ok(vec![set("instancesSet", items)])
}

/// Refuses a step that one of `instances` is protected from by `attribute`, as `has` finds.
pub fn unprotected(
    api: &Api,
    instances: &[Shown],
    step: &'static str,
    attribute: &'static str,
    has: impl Fn(&Protection) -> bool,
) -> Result<()> {
    for instance in instances {
        if has(&api.ledger.protection(instance.id())?) {
            return Err(Error::Protected {
                id: instance.id().to_owned(),
                step,
                attribute,
            });
        }
    }
    Ok(())
}

/// An instance's state forbids `event`.
pub fn incorrect_state(instance: &Shown, event: instance::Event) -> Error {
    Error::Service(instance::Error::Transition {
        id: instance.id().to_owned(),
        state: instance.record.state,
        event,
    })
}

/// `StartInstances`.
pub fn start(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instances = named(api, params)?;
    params.finish()?;
    if let Some(instance) = instances
        .iter()
        .find(|instance| !matches!(instance.stage, Stage::Stopped | Stage::Running | Stage::Pending))
    {
        return Err(incorrect_state(instance, instance::Event::Start));
    }
    for instance in instances
        .iter()
        .filter(|instance| instance.stage == Stage::Stopped)
    {
        let request = StartInstance {
            instance: instance.id().to_owned(),
            host: HostUse::default(),
            cold: false,
        };
        api.service.start_instance(&request)?;
    }
    changes(api, &instances)
}

/// `StopInstances`: returns when each has been asked.
pub fn stop(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instances = named(api, params)?;
    let force = params.flag("Force")?;
    if params.flag("Hibernate")? {
        return Err(Error::Unsupported("hibernation".into()));
    }
    for instance in &instances {
        if matches!(instance.stage, Stage::ShuttingDown | Stage::Terminated) {
            return Err(incorrect_state(instance, instance::Event::Stop));
        }
        if instance.record.auto_remove {
            return Err(Error::Unsupported(
                "stopping an instance that is removed when it stops".into(),
            ));
        }
    }
    unprotected(api, &instances, "stopped", "disableApiStop", |refused| {
        refused.stop
    })?;
    params.finish()?;
    let timeout = if force { Duration::ZERO } else { STOP_TIMEOUT };
    for instance in instances
        .iter()
        .filter(|instance| instance.stage != Stage::Stopped)
    {
        ask_to_stop(api, instance.id(), timeout)?;
    }
    changes(api, &instances)
}

/// Asks an instance to stop. One whose process does not answer is stopped by a signal, for which it is waited.
pub fn ask_to_stop(api: &Api, id: &str, timeout: Duration) -> Result<()> {
    match api.service.ask_to_stop(id, timeout) {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Code::InstanceNotFound => Ok(()),
        Err(error) => {
            tracing::info!(%id, %error, "it is stopped from outside");
            let request = StopInstance {
                instance: id.to_owned(),
                timeout,
            };
            match api.service.stop_instance(&request) {
                Err(error) if error.code() == Code::InstanceNotFound => Ok(()),
                stopped => Ok(stopped.map(drop)?),
            }
        }
    }
}

/// `RebootInstances`.
pub fn reboot(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instances = named(api, params)?;
    params.finish()?;
    if let Some(instance) = instances.iter().find(|instance| instance.stage != Stage::Running) {
        return Err(incorrect_state(instance, instance::Event::Rebooted));
    }
    for instance in &instances {
        api.service.reboot_instance(instance.id())?;
    }
    Ok(vec![text("return", true)])
}

/// `GetConsoleOutput`.
pub fn console_output(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let instance = shown::one(api, params)?;
    params.flag("Latest")?;
    params.finish()?;
    let output = match instance.stage {
        Stage::Terminated => Vec::new(),
        _ => api.service.console_output(instance.id())?,
    };
    let shown = &output[output.len().saturating_sub(CONSOLE)..];
    Ok(vec![
        text("instanceId", instance.id()),
        text("timestamp", time::iso(time::now())),
        text("output", describe::base64(shown)),
    ])
}
