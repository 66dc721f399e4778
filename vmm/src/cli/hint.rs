//! Advice for errors of the hypervisor, whose messages say what failed and why but name no options.

use std::error::Error;

use machine::arch::Architecture;
use machine::block::volume;
use machine::{accel, net, sandbox};

/// What to try for `cause`, if it is an error of the hypervisor for which an option of the command line is
/// the answer.
pub fn of(cause: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<accel::Error>() {
        return of_accelerator(error, std::env::consts::ARCH);
    }
    if let Some(error) = cause.downcast_ref::<sandbox::Error>() {
        return Some(match error {
            sandbox::Error::Missing(_) => {
                "--sandbox auto, which takes what there is, or another kernel (`vmm doctor` says what this one offers)"
                    .into()
            }
            sandbox::Error::Os { .. } => "--sandbox off, and report this".into(),
        });
    }
    if let Some(error) = cause.downcast_ref::<net::Error>() {
        return match error {
            net::Error::Port { .. } => Some("another port: -p HOST:GUEST".into()),
            net::Error::Tap { name, .. } => Some(format!("`ip tuntap add {name} mode tap user $USER`")),
            net::Error::Os { .. } => None,
        };
    }
    match cause.downcast_ref::<volume::Error>()? {
        volume::Error::FileSystem { .. } => {
            Some("--root-copy full, which copies the root volume at once".into())
        }
        volume::Error::Damaged { .. } => Some("remove it and launch again".into()),
        _ => None,
    }
}

/// The same for accelerators, on a host of architecture `host` (the kernel's name): the software processor
/// runs guests of one kind.
fn of_accelerator(error: &accel::Error, host: &str) -> Option<String> {
    use accel::Error as E;
    let software = || Some("--accel soft".to_owned());
    match error {
        E::Uncounted { .. } => Some("--accel soft with --icount, or leave --icount out".into()),
        E::Model { .. } => Some("--cpu host, or leave --cpu out".into()),
        E::GicV2 { max, .. } => Some(format!("--cpus {max}")),
        E::Foreign { guest, .. } if guest.of_kernel() == Architecture::X86_64 => software(),
        E::Unavailable { .. }
        | E::Run { .. }
        | E::EntryRefused { .. }
        | E::UnknownExit { .. }
        | E::Incomplete { .. }
        | E::Msr(_)
            if host == Architecture::X86_64.machine() =>
        {
            software()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn advice_names_only_options_that_this_host_has() {
        let incomplete = || accel::Error::Incomplete {
            cpu: 0,
            report: String::new(),
        };
        let on = |host| of_accelerator(&incomplete(), host);
        assert_eq!(on("x86_64").as_deref(), Some("--accel soft"));
        assert_eq!(on("aarch64"), None);
        let gic = accel::Error::GicV2 { cpus: 9, max: 8 };
        assert_eq!(of_accelerator(&gic, "aarch64").as_deref(), Some("--cpus 8"));
    }

    #[test]
    fn the_cause_is_found_behind_wrapping_errors() {
        let counted = accel::Error::Uncounted { accelerator: "KVM" };
        let error = anyhow::Error::from(instance::Error::from(counted)).context("cannot start web");
        let hint = error.chain().find_map(of).unwrap();
        assert!(hint.starts_with("--accel soft with --icount"), "{hint}");
        let missing = sandbox::Error::Missing("no filters".into());
        let error = anyhow::Error::from(instance::Error::Confinement(missing));
        let hint = error.chain().find_map(of).unwrap();
        assert!(hint.contains("--sandbox auto"), "{hint}");
        let taken = net::Error::Port {
            address: ([127, 0, 0, 1], 80).into(),
            source: io::ErrorKind::AddrInUse.into(),
        };
        assert!(of(&taken).unwrap().contains("-p HOST:GUEST"));
        assert_eq!(of(&io::Error::other("other")), None);
    }
}
