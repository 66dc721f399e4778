//! The conversation with what runs in the guest: its agent.

pub mod agent;
pub(crate) mod clock_sync;
pub(crate) mod readiness;
