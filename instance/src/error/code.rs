//! Stable error codes for programs.

use std::fmt;
use std::io;

use super::Error;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What kind of failure an error is. The names are stable, and EC2's where EC2 has one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$variant),*];

            /// The name, such as `InvalidInstanceID.NotFound`.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)*
                }
            }
        }
    };
}

codes! {
    /// There is no such instance.
    InstanceNotFound = "InvalidInstanceID.NotFound",
    /// The beginning of an id fits several instances.
    InstanceAmbiguous = "InvalidInstanceID.Ambiguous",
    /// The instance's state does not allow what was asked.
    IncorrectState = "IncorrectInstanceState",
    /// Another instance has the name.
    NameInUse = "InvalidInstanceName.Duplicate",
    /// There is no such image.
    ImageNotFound = "InvalidAMIID.NotFound",
    /// The beginning of an id fits several images.
    ImageAmbiguous = "InvalidAMIID.Ambiguous",
    /// The image's file is damaged, or not an image, or not the one that it was.
    ImageUnavailable = "InvalidAMIID.Unavailable",
    /// Instances need the image.
    ImageInUse = "DependencyViolation",
    /// There is no such request.
    InvalidAction = "InvalidAction",
    /// A value cannot be used.
    InvalidValue = "InvalidParameterValue",
    /// Values that cannot be used together.
    InvalidCombination = "InvalidParameterCombination",
    /// More volumes than an instance can have.
    TooManyVolumes = "VolumeLimitExceeded",
    /// More tags than an instance can have.
    TooManyTags = "TagLimitExceeded",
    /// This host cannot do it.
    Unsupported = "UnsupportedOperation",
    /// A port or device of the host is not available.
    NetworkUnavailable = "InvalidNetworkInterface.InUse",
    /// The host has no space for it.
    NoSpace = "InsufficientVolumeCapacity",
    /// The user may not do it.
    NotPermitted = "UnauthorizedOperation",
    /// What was waited for did not happen in time.
    TimedOut = "RequestTimeout",
    /// Another command works on it, or it has too much to do: the request may succeed later.
    Busy = "Unavailable",
    /// The guest's agent failed, or is not there.
    Agent = "GuestAgentError",
    /// The process that runs the instance does not answer.
    Unresponsive = "InstanceUnresponsive",
    /// Anything else: a file that cannot be read, a machine that cannot be built.
    Internal = "InternalError",
}

impl Code {
    /// The code of this name.
    pub fn named(name: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.as_str() == name)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Error {
    /// What kind of failure this is.
    pub fn code(&self) -> Code {
        match self {
            Error::File { source, .. } => of_io(source),
            Error::Os { source, .. } => of_io(source),
            Error::Malformed(..)
            | Error::UserDataTooLong(_)
            | Error::TagLength { .. }
            | Error::NotAFile(_) => Code::InvalidValue,
            Error::NoInstance(_) => Code::InstanceNotFound,
            Error::Ambiguous { image: false, .. } => Code::InstanceAmbiguous,
            Error::Ambiguous { image: true, .. } => Code::ImageAmbiguous,
            Error::NameTaken { .. } => Code::NameInUse,
            Error::Transition { .. }
            | Error::NotRunning { .. }
            | Error::StandsStill { .. }
            | Error::NotReady { .. }
            | Error::IsPaused { .. }
            | Error::PausedAlready(_)
            | Error::NotPaused(_)
            | Error::HasEnded(_)
            | Error::EndedEarly(_)
            | Error::CapturePaused { .. }
            | Error::CaptureRemoved(_)
            | Error::NotStopped(_)
            | Error::OtherMachine(_)
            | Error::HibernationRemoved(_) => Code::IncorrectState,
            Error::SnapshotVolumes(_)
            | Error::SnapshotCloudInit(_)
            | Error::SnapshotAgent(_)
            | Error::NotRestored { .. } => Code::Unsupported,
            Error::Busy(_) => Code::Busy,
            Error::NoImage(_) => Code::ImageNotFound,
            Error::ImageInUse { .. } => Code::ImageInUse,
            Error::ImageChanged { .. } | Error::Ami(_) | Error::StateTooLong { .. } => Code::ImageUnavailable,
            Error::TooManyVolumes(_) => Code::TooManyVolumes,
            Error::TooManyTags(_) => Code::TooManyTags,
            Error::NameForSeveral
            | Error::PortForSeveral
            | Error::PortsWithoutNetwork
            | Error::KvmCannotCount
            | Error::CountingSeveralCpus(_)
            | Error::CountingWithLimits => Code::InvalidCombination,
            Error::ForeignImage { .. } | Error::Accelerator(_) | Error::Confinement(_) => Code::Unsupported,
            Error::StillFull { .. } => Code::NoSpace,
            Error::AgentSilent { .. } | Error::PortSilent { .. } => Code::TimedOut,
            Error::Port { source, .. } => source.code(),
            Error::Unresponsive { .. } => Code::Unresponsive,
            Error::Declined { code, .. } => *code,
            Error::Network(_) => Code::NetworkUnavailable,
            Error::Agent(_) => Code::Agent,
            Error::Damaged { .. }
            | Error::Launch { .. }
            | Error::NoRoot(_)
            | Error::Scrub(_)
            | Error::Machine(_)
            | Error::Snapshot(_)
            | Error::Part(_)
            | Error::Volume(_)
            | Error::Removal(_) => Code::Internal,
        }
    }
}

/// The kind of an operating system's reason.
fn of_io(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::NoSpace,
        io::ErrorKind::PermissionDenied => Code::NotPermitted,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_code_has_a_name_of_its_own_and_is_found_by_it() {
        let names: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for code in Code::ALL {
            assert_eq!(Code::named(code.as_str()), Some(*code));
        }
        assert_eq!(Code::named("Surprise"), None);
    }

    #[test]
    fn the_reason_of_a_file_error_decides_its_code() {
        let code = |kind: io::ErrorKind| Error::file("writing", "/x")(kind.into()).code();
        assert_eq!(code(io::ErrorKind::StorageFull), Code::NoSpace);
        assert_eq!(code(io::ErrorKind::PermissionDenied), Code::NotPermitted);
        assert_eq!(code(io::ErrorKind::NotFound), Code::Internal);
    }
}
