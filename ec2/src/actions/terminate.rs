//! Terminating instances. That it was asked for is written down first; a thread shuts the instance down and
//! removes it. When the program is killed in between, its next start goes on.

use std::sync::Arc;
use std::time::Duration;

use instance::Code;
use instance::service::TerminateInstance;

use super::instances;
use super::shown::Stage;
use crate::api::Api;
use crate::error::Result;
use crate::query::Params;
use crate::xml::Element;

/// How long a guest has to power off.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `TerminateInstances`: returns when it is written down of each.
pub fn terminate(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let before = instances::named(api, params)?;
    instances::unprotected(api, &before, "terminated", "disableApiTermination", |refused| {
        refused.termination
    })?;
    params.finish()?;
    let living = before
        .iter()
        .filter(|instance| !matches!(instance.stage, Stage::ShuttingDown | Stage::Terminated));
    for instance in living {
        api.ledger.terminate(&instance.termination())?;
        remove(api, instance.id().to_owned());
    }
    instances::changes(api, &before)
}

/// Goes on with the terminations that a killed program has left.
///
/// # Errors
/// When it cannot be known which those are.
pub fn finish_terminations(api: &Arc<Api>) -> Result<()> {
    for id in api.ledger.terminations()?.into_keys() {
        if api.service.describe_instance(&id).is_ok() {
            remove(api, id);
        }
    }
    Ok(())
}

/// Removes an instance in a thread of its own.
pub fn remove(api: &Arc<Api>, id: String) {
    let (api, named) = (Arc::clone(api), id.clone());
    let run = move || {
        let request = TerminateInstance {
            instance: id.clone(),
            timeout: TIMEOUT,
        };
        match api.service.terminate_instance(&request) {
            Err(error) if error.code() != Code::InstanceNotFound => {
                tracing::warn!(%id, %error, "it could not be terminated");
                // It is there, and is shown so.
                if let Err(error) = api.ledger.forget_termination(&id) {
                    tracing::warn!(%id, %error, "its termination cannot be forgotten");
                }
            }
            _ => {}
        }
    };
    if let Err(error) = std::thread::Builder::new().name("terminate".into()).spawn(run) {
        tracing::warn!(id = %named, %error, "it is terminated at the next start");
    }
}
