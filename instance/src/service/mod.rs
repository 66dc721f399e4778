//! What can be done with instances and images.

pub mod capture;
pub mod shutdown;
