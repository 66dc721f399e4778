//! Direct execution on hosts that have another instruction set: there is none.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;

use crate::x86_64::cpu::Cpu;
use crate::x86_64::features::Features;

/// What a processor has of helpers: nothing.
pub(crate) mod helpers {
    pub(crate) enum Helpers {}
}

/// When programs run directly: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum When {
    /// Where it would pay.
    #[default]
    Pays,
}

/// A process for direct execution, which is not to be had.
#[derive(Debug)]
pub enum Helper {}

fn refuse<T>() -> io::Result<T> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "programs of the guest run on x86-64 hosts only",
    ))
}

impl Helper {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn start(_ram: BorrowedFd) -> io::Result<Helper> {
        refuse()
    }
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn ram_file() -> io::Result<File> {
    refuse()
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn try_out() -> io::Result<()> {
    refuse()
}

/// Refuses.
///
/// # Errors
/// Always.
pub fn check(_features: Features) -> io::Result<()> {
    refuse()
}

impl Cpu {
    /// Does nothing: there are no helpers.
    pub fn run_directly_in(&mut self, _helpers: Vec<Helper>, _when: When) {}

    /// Whether its programs run directly, where they can.
    pub fn runs_directly(&self) -> bool {
        false
    }

    pub(crate) fn plan_direct(&mut self) {}

    pub(crate) fn run_directly(&mut self) {}
}
