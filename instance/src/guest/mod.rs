//! The conversation with what runs in the guest: its agent.

pub mod agent;
mod clock_sync;
pub mod readiness;
