//! Kernel modules, in the order that the image's composer has worked out.

use std::fs::File;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::{Error, os};

/// Loads each module file. One that is loaded or built in already is no failure.
pub fn load(modules: &[String]) -> Result<(), Error> {
    for path in modules {
        let file = File::open(path).map_err(os(format!("opening the module {path}")))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // No such device: the module is for hardware that this machine lacks, as kvm_amd is on an Intel host.
            Err(Errno::ENODEV | Errno::EOPNOTSUPP) => {}
            Err(error) => return Err(os(format!("loading the module {path}"))(error)),
        }
    }
    Ok(())
}
