//! `create-image`.

use anyhow::Context as _;
use clap::Args;

use super::stream::{line, note};
use super::{Context, Status};
use instance::Error;
use instance::service::CreatedImage;

/// Make an image of an instance
#[derive(Debug, Args)]
pub struct CreateImage {
    /// Id, beginning of an id, or name
    instance: String,
    /// The image's name
    name: String,
    /// A description
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Do not restart a running instance: freeze its file systems during the copy
    #[arg(long)]
    no_reboot: bool,
    /// Leave the instance's identity (host keys, machine-id, logs, histories) in the image
    #[arg(long)]
    keep_identity: bool,
}

impl CreateImage {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let request = instance::service::CreateImage {
            instance: self.instance.clone(),
            name: self.name,
            description: self.description,
            no_reboot: self.no_reboot,
            keep_identity: self.keep_identity,
        };
        let CreatedImage { id, warning } = match context.service.create_image(&request) {
            // That it is not there is said without what was to be made of it.
            Err(error @ (Error::NoInstance(_) | Error::Ambiguous { .. })) => return Err(error.into()),
            made => made.with_context(|| format!("cannot make an image of {}", self.instance))?,
        };
        if let Some(warning) = warning {
            note(format_args!("vmm: {warning}"));
        }
        line(id)?;
        Ok(Status::OK)
    }
}
