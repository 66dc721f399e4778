//! Helpers for direct execution, made before the process is confined.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use softcpu::Features;
use softcpu::x86_64::direct::{Helper, check, ram_file, try_out};

/// Helpers of one processor: as many address spaces are remembered.
const EACH: usize = 4;
/// Helpers of a machine with many processors, which have at least one each.
const MOST: usize = 128;

/// The file of guest RAM, and the helpers that can map it. The first machine takes them all; they end with
/// the threads of its processors.
#[derive(Debug)]
pub struct Direct {
    file: File,
    helpers: Mutex<Vec<Helper>>,
    /// Of each processor.
    each: usize,
}

impl Direct {
    /// Starts helpers for `cpus` processors with these extensions.
    ///
    /// # Errors
    /// When the host has no processes to give, or forbids to drive them, or its processor has less.
    pub fn start(cpus: u8, features: Features) -> io::Result<Direct> {
        check(features)?;
        try_out()?;
        let file = ram_file()?;
        let cpus = usize::from(cpus.max(1));
        let each = (MOST / cpus).clamp(1, EACH);
        let helpers = (0..cpus * each)
            .map(|_| Helper::start(file.as_fd()))
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Direct {
            file,
            helpers: Mutex::new(helpers),
            each,
        })
    }

    /// The file, while there are helpers that nobody has taken.
    pub(crate) fn file(&self) -> Option<&File> {
        (!self.lock().is_empty()).then_some(&self.file)
    }

    /// Those of one processor.
    pub(super) fn take(&self) -> Vec<Helper> {
        let mut all = self.lock();
        let rest = all.len().saturating_sub(self.each);
        all.split_off(rest)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Helper>> {
        self.helpers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries out whether this host runs programs of a guest directly, with the processor that guests have by
/// default.
///
/// # Errors
/// With the reason where it does not: [`io::ErrorKind::Unsupported`] where its processor is the reason.
pub fn try_direct() -> io::Result<()> {
    check(Features::default())?;
    try_out()
}
