//! Why an image cannot be composed.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use displaydoc::Display;

use crate::advice::{Advice, Reason};
use crate::target::Target;
use crate::tree::TreeError;

/// What is wrong with the ingredients, or with the disk that the image is written to.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// the kernel packages hold no kernel: neither /boot/vmlinuz-* nor /usr/lib/modules/*/vmlinuz
    NoKernel,
    /// the kernel packages hold more than one kernel: {0}
    SeveralKernels(String),
    /// cannot extract the kernel {name}: {why}
    Kernel {
        /// Its file name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// kernel {release} has no module `{name}`{near}
    NoModule {
        /// The module.
        name: String,
        /// The kernel's release.
        release: String,
        /// `, the nearest is …`.
        near: String,
    },
    /// kernel module {path} is damaged: {why}
    Module {
        /// Its path in the kernel tree.
        path: String,
        /// What is wrong with it.
        #[source]
        why: Reason,
    },
    /// there is no guest-init for {target}: looked for {looked}
    NoGuestInit {
        /// What the image's kernel is built for.
        target: Target,
        /// The paths tried.
        looked: String,
    },
    /// {path} cannot be guest-init: {why}
    GuestInit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
        /// What the image's kernel is built for.
        target: Target,
    },
    /// {path} cannot be stored in ext4: {why}
    Unstorable {
        /// The path in the image.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// the root file system of {size} bytes is too small: {why}
    TooSmall {
        /// The size that was asked for.
        size: u64,
        /// What did not fit.
        why: String,
    },
    /// the root file system of {size} bytes is too large: an image holds at most {largest}
    TooLarge {
        /// The size that was asked for.
        size: u64,
        /// The largest.
        largest: u64,
    },
    /// cannot write the root file system: {0}
    Ext4(#[source] mkext4::Error),
    /// cannot read {what}: {source}
    Read {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// {0}
    Tree(#[from] TreeError),
    /// {0}
    Ami(#[from] ami::Error),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Tree(error) => error.advice(),
            Self::Ami(error) => error.advice(),
            Self::NoKernel => Some("name a `linux-image-*` package as kernel.package".into()),
            Self::SeveralKernels(..) => Some("name one kernel package".into()),
            Self::Kernel { .. } => Some("another kernel package or kernel.path".into()),
            Self::NoModule { .. } => Some("correct `modules` in the recipe".into()),
            Self::Module { .. } => Some("remove it from the cache, or use another kernel package".into()),
            Self::NoGuestInit { target, .. } => Some(
                format!(
                    "`cargo xtask cross {target}` where Kiln was built, or name the file with \
                 --guest-init or KILN_GUEST_INIT"
                )
                .into(),
            ),
            Self::GuestInit { target, .. } => Some(format!("build it static for {target}").into()),
            Self::Unstorable { .. } => Some("rename the file where it comes from, or leave it out".into()),
            Self::TooSmall { .. } => Some("a larger root-size in the recipe, or `auto`".into()),
            Self::TooLarge { .. } => {
                Some("a smaller root-size, or `auto`; volumes besides the root may be larger".into())
            }
            Self::Ext4(..) => Some("`imgtool build` again; report it if it stays".into()),
            Self::Read { .. } => {
                Some("build again; the cache or the source may have changed meanwhile".into())
            }
        }
    }
}
