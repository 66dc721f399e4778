//! PID 1 of a Kiln guest and the agent; [`proto`], the protocol between host and agent; and [`secrets`], the
//! keys and databases that each instance creates at its first boot.
//!
//! `guest-init` depends on no other crate of Kiln. The host's crates use [`proto`] and [`secrets`]. Begin
//! with `pid1` for the boot of a guest, and with `agent` for requests of the host.

pub mod agent;
pub mod archive;
pub mod command_line;
pub mod config;
mod interface;
#[allow(unsafe_code)]
pub mod pid1;
pub mod proto;
pub mod secrets;
pub mod shutdown;
pub mod users;
