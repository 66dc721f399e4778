//! Landlock rules for files, signals and TCP ports.

use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Plan;

/// What may be done with a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Read this file.
    Read,
    /// Read, write and cut this file.
    Write,
    /// Read and write this device, and send it commands.
    Device,
    /// Make, read, write and remove files and sockets in this directory. No directories, links or devices.
    Keep,
}

/// The newest rights that are asked for: those of Linux 6.10. Older kernels enforce what they know.
const RIGHTS: ABI = ABI::V5;
/// Ports: Linux 6.7.
const PORTS: ABI = ABI::V4;
/// Signals and abstract sockets: Linux 6.12.
const SCOPES: ABI = ABI::V6;

impl Right {
    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Right::Read => AccessFs::ReadFile.into(),
            Right::Write => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Right::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            Right::Keep => {
                AccessFs::ReadFile
                    | AccessFs::ReadDir
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
            }
        }
    }
}

/// What the kernel offers.
pub(super) fn offered() -> Result<String, String> {
    match status() {
        LandlockStatus::Available { effective_abi, .. } => {
            let abi = effective_abi as i32;
            let more = match effective_abi {
                abi if abi >= SCOPES => ", ports and signals",
                abi if abi >= PORTS => " and ports; for signals Linux 6.12 is needed",
                _ => "; for ports and signals Linux 6.12 is needed",
            };
            Ok(format!("rules for files{more} (Landlock {abi})"))
        }
        LandlockStatus::NotEnabled => {
            Err("no rules for files (the kernel's Landlock is switched off: add landlock to lsm=)".into())
        }
        LandlockStatus::NotImplemented => {
            Err("no rules for files (the kernel has no Landlock; Linux 5.13 has)".into())
        }
    }
}

/// The crate tells the status of a process once it is restricted, and nothing before. The version is one
/// call.
#[allow(unsafe_code)]
fn status() -> LandlockStatus {
    // LANDLOCK_CREATE_RULESET_VERSION.
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel looks at no pointer (landlock_create_ruleset(2)).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<()>(),
            0,
            VERSION,
        )
    };
    match i32::try_from(version) {
        Ok(version @ 1..) => LandlockStatus::Available {
            effective_abi: ABI::from(version),
            kernel_abi: None,
        },
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) => {
            LandlockStatus::NotEnabled
        }
        _ => LandlockStatus::NotImplemented,
    }
}

/// Restricts the calling thread, and all that it starts, to the files of `plan`.
pub(super) fn restrict(plan: &Plan) -> io::Result<()> {
    let status = rules(plan).map_err(io::Error::other)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(io::Error::other("the kernel has not enforced it"));
    }
    Ok(())
}

fn rules(plan: &Plan) -> Result<RestrictionStatus, RulesetError> {
    let handled = AccessFs::from_all(RIGHTS);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(handled)?
        .scope(Scope::from_all(SCOPES))?;
    if !plan.tcp {
        ruleset = ruleset.handle_access(AccessNet::from_all(PORTS))?;
    }
    let mut ruleset = ruleset.create()?;
    for (path, right) in &plan.files {
        // What is not there cannot be used, which is what its user will say.
        if let Ok(file) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(file, right.access()))?;
        }
    }
    ruleset.restrict_self()
}
