//! PID 1 of a Kiln guest and the agent beside it; and [`proto`], what the host and the agent say to each other.

pub mod command_line;
pub mod config;
pub mod proto;
pub mod users;
