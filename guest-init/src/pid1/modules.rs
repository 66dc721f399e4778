//! Kernel modules, in the order that the image's composer has worked out.

use std::fs::File;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::mounts;

/// Loads each module file. One that cannot be loaded is said, and the boot goes on: whether it was needed
/// shows soon, and a machine that lacks one device is better than none.
pub fn load(modules: &[String]) {
    for path in modules {
        let loaded = File::open(path)
            .and_then(|file| Ok(finit_module(&file, c"", ModuleInitFlags::empty()).or_else(harmless)?));
        if let Err(error) = loaded {
            mounts::say(&format!("guest-init: the module {path} was not loaded: {error}"));
        }
    }
}

fn harmless(error: Errno) -> Result<(), Errno> {
    match error {
        // Loaded already, or built in.
        Errno::EEXIST => Ok(()),
        // No such device: the module is for hardware that this machine lacks, as kvm_amd is on an Intel host.
        Errno::ENODEV | Errno::EOPNOTSUPP => Ok(()),
        error => Err(error),
    }
}
