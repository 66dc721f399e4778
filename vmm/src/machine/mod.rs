//! A machine: built from a [`Spec`], run to an [`Outcome`].

mod spec;

pub use spec::{Device, Outcome, Serial, Spec};
