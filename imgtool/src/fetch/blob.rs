//! One file into the store, checked against its digest.

use super::{Error, HttpError};
use crate::store::{self, Partial, Sha256, Store};

/// Brings a blob into the store. `transfer` appends what is missing of it; `what` names it in an error. Where
/// the bytes of an earlier attempt turn out to be damaged, all of it is transferred again.
pub fn fetch_blob(
    store: &Store,
    digest: &Sha256,
    size: u64,
    what: &str,
    transfer: impl Fn(&mut Partial) -> Result<(), HttpError>,
) -> Result<(), Error> {
    loop {
        let Some(mut partial) = store.partial(digest, size)? else {
            return Ok(());
        };
        let resumed = !partial.is_empty()?;
        transfer(&mut partial)?;
        match partial.finish(what) {
            // It has removed what was wrong.
            Err(store::Error::Digest { .. }) if resumed => {}
            result => return Ok(result?),
        }
    }
}
