//! What a kernel is built for, with its modules and guest-init. It is not the same as the architecture of
//! an image, whose 32-bit programs run on kernels of both kinds.

use std::fmt;

use ami::Architecture;

/// What a kernel, its modules and guest-init are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// 64-bit x86.
    X86_64,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit x86.
    I686,
}

impl Target {
    /// That of images of an architecture, unless their kernel is one of 32 bits.
    pub fn of(architecture: Architecture) -> Target {
        match architecture {
            Architecture::X86_64 | Architecture::I386 => Target::X86_64,
            Architecture::Arm64 => Target::Aarch64,
        }
    }

    /// The kernel's name (`uname -m`).
    pub fn name(self) -> &'static str {
        match self {
            Target::X86_64 => "x86_64",
            Target::Aarch64 => "aarch64",
            Target::I686 => "i686",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
