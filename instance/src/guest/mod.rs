//! Communication with the agent in the guest.

pub mod agent;
pub(crate) mod clock_sync;
pub(crate) mod readiness;
