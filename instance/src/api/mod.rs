//! The control socket of a running instance: HTTP, its server and its client.

pub mod client;
pub mod http;
mod server;

pub use server::{Operation, ROUTES, Route, STOP_TIMEOUT, StopRequest, serve};
