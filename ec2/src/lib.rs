//! EC2's API over the instances and images of a user: `aws ec2 run-instances` boots one here.
//!
//! | file | what |
//! |---|---|
//! | `http` | the server: requests whole, within bounds of size and time |
//! | `api` | from a request to its answer |
//! | `sigv4`, `credentials` | whose request it is |
//! | `query`, `filter`, `page` | what it asks for |
//! | `xml` | the form of what it gets |
//! | `actions` | what can be asked for: a function for each |
//! | `ledger` | what is remembered besides instances and images |
//! | `types` | instance types |
//!
//! Actions call [`instance::service`] and keep nothing in memory, so the program may be killed and started at
//! any time, and sees what `vmm` does. What is not there answers `InvalidAction`, and a parameter that no
//! action reads answers `UnknownParameter`.

mod actions;
pub mod api;
pub mod credentials;
pub mod error;
pub mod filter;
pub mod http;
mod ledger;
pub mod page;
pub mod query;
pub mod sigv4;
mod time;
mod types;
pub mod xml;

pub use error::{Error, Result};
