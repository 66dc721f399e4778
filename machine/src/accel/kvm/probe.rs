//! Whether KVM on this host is usable: has what is needed, runs guest kernels correctly, and at hardware
//! speed.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use kvm_ioctls::{Cap, Kvm};

use super::scratch;

/// What a machine needs of KVM.
const CAPABILITIES: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Least speed in million instructions per second. Hardware does thousands, a nested machine under software
/// emulation still over a hundred, and hosts that emulate guest kernels below their KVM interface about
/// three.
const MIN_MIPS: f64 = 20.0;

/// How fast the scratch machine ran.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Million instructions per second in a loop of two instructions.
    pub mips: f64,
}

impl Speed {
    /// `instructions` took `time`.
    pub(super) fn new(instructions: u64, time: Duration) -> Self {
        Speed {
            mips: instructions as f64 / time.as_secs_f64().max(1e-9) / 1e6,
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a scratch guest ran {:.0} million instructions per second",
            self.mips
        )
    }
}

/// Why KVM is not to be used.
#[derive(Debug, displaydoc::Display, thiserror::Error)]
pub enum Unusable {
    /// KVM lacks {0}
    Capability(&'static str),
    /// KVM fails a kernel-mode test at {step}: {source}{cause}
    Failed {
        /// The step of the test.
        step: &'static str,
        /// What came instead of its end.
        source: Box<super::Error>,
        /// A known cause, where there is one.
        cause: &'static str,
    },
    /// KVM fails a kernel-mode test at {step}: {why}{cause}
    Incorrect {
        /// The step of the test.
        step: &'static str,
        /// What came instead of its end.
        why: Wrong,
        /// A known cause, where there is one.
        cause: &'static str,
    },
    /// KVM runs guest kernels at {mips:.1} million instructions per second only{cause}
    Slow {
        /// The speed measured.
        mips: f64,
        /// A known cause, where there is one.
        cause: &'static str,
    },
}

/// How a step of the test ended that did not end as it must.
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display)]
pub enum Wrong {
    /// the result is wrong
    Result,
    /// an unexpected exception
    Exception,
    /// no end after {0} s
    Endless(u64),
}

/// A known cause of what is wrong with KVM here, where there is one.
pub(super) fn known_cause() -> &'static str {
    if Path::new("/sys/module/kvm_pvm").exists() {
        " (kvm_pvm: this host emulates guest kernel mode in software)"
    } else {
        ""
    }
}

/// Tries KVM out in a scratch machine: takes a few milliseconds where KVM is good.
pub(crate) fn try_out(kvm: &Kvm) -> Result<Speed, Unusable> {
    if let Some((_, name)) = CAPABILITIES.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        return Err(Unusable::Capability(name));
    }
    let speed = scratch::try_out(kvm)?;
    if speed.mips < MIN_MIPS {
        return Err(Unusable::Slow {
            mips: speed.mips,
            cause: known_cause(),
        });
    }
    Ok(speed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_says_why() {
        let cause = " (a known cause)";
        let slow = Unusable::Slow { mips: 3.4567, cause }.to_string();
        assert!(slow.contains("3.5 million"), "{slow}");
        let wrong = Unusable::Incorrect {
            step: "cmpxchg16b",
            why: Wrong::Endless(3),
            cause,
        };
        let wrong = wrong.to_string();
        assert!(
            wrong.contains("at cmpxchg16b: no end after 3 s (a known cause)"),
            "{wrong}"
        );
        let speed = Speed::new(3_000_000, Duration::from_millis(3));
        assert_eq!(speed.mips, 1000.0);
    }

    /// On a host without KVM there is nothing to try; with it, the verdict is one or the other and never a
    /// hang.
    #[test]
    fn the_kvm_of_this_host_gets_a_verdict_within_the_timeout() {
        let Ok(kvm) = super::super::open() else {
            eprintln!("skipped: no KVM here");
            return;
        };
        let start = std::time::Instant::now();
        match try_out(&kvm) {
            Ok(speed) => assert!(speed.mips >= MIN_MIPS),
            Err(error) => assert!(error.to_string().starts_with("KVM "), "{error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
