//! PID 1 of a Kiln guest and the agent beside it; [`proto`], what the host and the agent say to each other;
//! and [`secrets`], what images do not hold and instances make.

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
