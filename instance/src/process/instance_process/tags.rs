//! Tags of a running instance: its record, and what its guest reads of them.

use std::collections::BTreeMap;

use super::InstanceProcess;
use crate::process::network;
use crate::store::record::Record;
use crate::store::tags::TagChange;
use crate::{Error, Result};

impl InstanceProcess {
    /// Changes the tags in the record, and then in the metadata that the guest reads.
    ///
    /// # Errors
    /// When they are too many or too long, the record cannot be written, or the instance has ended; then
    /// nothing has changed.
    pub fn change_tags(&self, change: &TagChange) -> Result<()> {
        let mut inner = self.lock();
        let tags = change.of(&inner.record.tags)?;
        let Some(held) = &mut inner.held else {
            return Err(Error::HasEnded(self.id.to_string()));
        };
        held.change_if_written(|record| record.tags = tags)?;
        inner.record = held.record().clone();
        // While the lock is held: the guest sees changes in their order.
        if let Some(control) = &inner.control {
            control.set_tags(self.shown_tags(&inner.record));
        }
        Ok(())
    }

    /// The tags that the metadata service shows.
    pub(super) fn shown_tags(&self, record: &Record) -> BTreeMap<String, String> {
        match self.determinism.is_enabled() {
            true => network::tags(&record.without_identity()),
            false => network::tags(record),
        }
    }
}
