//! What the metadata service says of an instance, and what a calling program remembers of its own.

use std::time::Duration;

use super::Service;
use crate::images::image::Image;
use crate::process::network::documents;
use crate::store::documents::Documents;
use crate::store::network::Network;
use crate::{InstanceId, Record, Result};
use machine::net::Addresses;
use machine::net::metadata::InstanceDocuments;

impl Service {
    /// What the metadata service says to the guest of `record`: whoever describes the instance elsewhere says
    /// the same.
    ///
    /// # Errors
    /// When the instance's image or user data cannot be read.
    pub fn metadata(&self, record: &Record) -> Result<InstanceDocuments> {
        let directory = self.home().instance(&record.id);
        let image = Image::of_instance(record, &directory)?;
        let addresses = match record.config.network {
            Network::User | Network::UserLoopback => Some(Addresses::default()),
            Network::Tap(_) | Network::None => None,
        };
        documents(record, &directory, &image, addresses)
    }

    /// Documents of the calling program, of one kind.
    pub fn documents(&self, kind: &str) -> Documents {
        Documents::new(self.home(), kind)
    }

    /// Asks a running instance to stop, and returns when it has been asked: its process sees to the rest, and
    /// ends the guest after `timeout` without its consent.
    ///
    /// # Errors
    /// When it does not run, or its process does not answer.
    pub fn ask_to_stop(&self, instance: &str, timeout: Duration) -> Result<InstanceId> {
        let id = self.store.find(instance)?;
        self.client(&id).stop(timeout)?;
        Ok(id)
    }
}

/// Names of the place that every instance is in, as the metadata service gives them.
pub mod metadata {
    pub use machine::net::metadata::InstanceDocuments;
    pub use machine::net::metadata::documents::{
        ACCOUNT, REGION, SECURITY_GROUP, SECURITY_GROUP_ID, SUBNET, VPC, ZONE, ZONE_ID, block,
    };

    /// The network that each instance has for itself, as in `10.0.2.0/24`.
    pub fn default_block() -> String {
        let addresses = machine::net::Addresses::default();
        block(addresses.guest, addresses.prefix)
    }
}
