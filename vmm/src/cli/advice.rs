//! Advice for errors of the library crates, in terms of command-line options.

use std::io::ErrorKind;

use instance::{Error, State};

/// Advice for this error, if there is any.
pub fn of(error: &Error) -> Option<String> {
    Some(match error {
        Error::NoInstance(_) | Error::Ambiguous { image: false, .. } => {
            "`vmm ps -a` lists all instances".into()
        }
        Error::NoImage(_) => "`vmm images` lists the images; a path to an AMI file works as well".into(),
        Error::Ambiguous { image: true, .. } => "`vmm images` lists the images".into(),
        Error::NameTaken { holder, .. } => {
            format!("choose another name, or `vmm terminate {holder}` if that instance is no longer needed")
        }
        Error::Transition { id, state, .. } => after(id, *state),
        Error::Busy(_) => "try again in a moment; `vmm ps -a` shows what runs".into(),
        Error::Damaged { id, .. } => format!("`vmm terminate {id}` removes what is left of it"),
        Error::ImageInUse { users, .. } => {
            format!("terminate {users}, or use `--force`, which completes their volumes first")
        }
        Error::ForeignImage { image, .. } => {
            format!("an {image} host with KVM, or an image that was built with --arch x86_64")
        }
        Error::Ami(error) => error.hint().into(),
        Error::NameForSeveral => "use --tag for what several share".into(),
        Error::PortForSeveral => {
            "leave the host's port out of --publish: this host chooses one for each".into()
        }
        Error::PortsWithoutNetwork => "leave --net out, or reach the guest at its own address".into(),
        Error::KvmCannotCount => "--accel soft with --icount, or leave --icount out".into(),
        Error::CountingSeveralCpus(_) => "--cpus 1".into(),
        Error::CountingWithLimits => "leave one of them out, --icount or --limit".into(),
        Error::StandsStill { id, .. } | Error::IsPaused { id, .. } => {
            format!("`vmm resume {id}` lets it go on")
        }
        Error::EndedEarly(id) | Error::Port { id, .. } => format!("`vmm logs {id}` shows what it printed"),
        Error::Unresponsive { id, .. } => format!("`vmm stop --time 0 {id}` ends it at once"),
        Error::CapturePaused { label, .. } => format!("let it go on first: `vmm resume {label}`"),
        Error::CaptureRemoved(_) => "--no-reboot: it was launched with --rm".into(),
        Error::HibernationRemoved(_) => "launch it without --rm".into(),
        Error::SnapshotVolumes(_) => "an instance with its root volume alone".into(),
        Error::SnapshotCloudInit(_) => "an image without cloud-init, or `vmm create-image`".into(),
        Error::SnapshotAgent(_) => "build the image again with this release's imgtool".into(),
        Error::NotRestored { .. } => "leave --warm-only out: it boots then".into(),
        Error::Scrub(_) => "`--keep-identity` makes the image with it, for yourself".into(),
        Error::File { source, .. } => return of_io(source.kind()),
        Error::Os { source, .. } => return of_io(source.kind()),
        _ => return None,
    })
}

/// What to do about a state that does not allow a request.
fn after(id: &str, state: State) -> String {
    match state {
        State::Stopped => format!("`vmm start {id}`"),
        State::Running => format!("`vmm stop {id}` first"),
        State::Pending | State::Stopping => format!("wait until it has settled: `vmm ps -a` shows {id}"),
        State::Terminated => "launch a new one with `vmm run`".into(),
    }
}

fn of_io(kind: ErrorKind) -> Option<String> {
    Some(match kind {
        ErrorKind::StorageFull => "make room on the file system".into(),
        ErrorKind::PermissionDenied => "check the permissions of the file and its directories".into(),
        _ => return None,
    })
}
