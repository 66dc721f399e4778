//! `create-image`.

use anyhow::Context as _;
use clap::Args;

use super::stream::{line, note};
use super::{Context, Status};
use instance::service::capture::Capture;

/// Make an image of an instance
#[derive(Debug, Args)]
pub struct CreateImage {
    /// Id, beginning of an id, or name
    instance: String,
    /// The image's name
    name: String,
    /// A paragraph for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Do not restart a running instance: freeze its file systems for the time of the copy
    #[arg(long)]
    no_reboot: bool,
    /// Leave the instance's identity (host keys, machine-id, logs, histories) in the image
    #[arg(long)]
    keep_identity: bool,
}

impl CreateImage {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let id = context.store.find(&self.instance)?;
        let capture = Capture {
            name: self.name,
            description: self.description,
            no_reboot: self.no_reboot,
            keep_identity: self.keep_identity,
        };
        let (image, warning) = capture
            .run(&context.store, &context.images(), &id)
            .with_context(|| format!("cannot make an image of {}", self.instance))?;
        if let Some(warning) = warning {
            note(format_args!("vmm: {warning}"));
        }
        line(image)?;
        Ok(Status::OK)
    }
}
