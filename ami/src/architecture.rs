//! Processor architectures and what EC2, Debian and the kernel call them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The architecture of an image's programs, by EC2's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    #[serde(rename = "arm64")]
    Arm64,
    /// 32-bit x86: 32-bit programs on a 64-bit kernel.
    #[serde(rename = "i386")]
    I386,
}

impl Architecture {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::X86_64, Self::Arm64, Self::I386];

    /// EC2's name: `x86_64`, `arm64` or `i386`.
    pub fn as_str(self) -> &'static str {
        match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Arm64 => "arm64",
            Architecture::I386 => "i386",
        }
    }

    /// Debian's name: `amd64`, `arm64` or `i386`.
    pub fn debian(self) -> &'static str {
        match self {
            Architecture::X86_64 => "amd64",
            Architecture::Arm64 => "arm64",
            Architecture::I386 => "i386",
        }
    }

    /// What containers call it (Go's name): `amd64`, `arm64` or `386`.
    pub fn oci(self) -> &'static str {
        match self {
            Architecture::I386 => "386",
            other => other.debian(),
        }
    }

    /// The architecture of the kernel that images of this one boot: a 64-bit kernel runs 32-bit programs.
    pub fn of_kernel(self) -> Self {
        match self {
            Architecture::I386 => Architecture::X86_64,
            other => other,
        }
    }

    /// The name of [`Architecture::of_kernel`] in the kernel (`uname -m`): `x86_64` or `aarch64`.
    pub fn machine(self) -> &'static str {
        match self {
            Architecture::X86_64 | Architecture::I386 => "x86_64",
            Architecture::Arm64 => "aarch64",
        }
    }

    /// Whether this host's kernel runs programs of this architecture, and KVM its kernels.
    pub fn is_native(self) -> bool {
        Self::host() == Some(self.of_kernel())
    }

    /// The architecture of the running program; nothing on any other.
    pub fn host() -> Option<Self> {
        std::env::consts::ARCH.parse().ok()
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Architecture {
    type Err = String;

    /// Any of the names that EC2, Debian, the kernel and containers use.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "x86_64" | "amd64" => Ok(Architecture::X86_64),
            "arm64" | "aarch64" => Ok(Architecture::Arm64),
            "i386" | "i686" | "386" => Ok(Architecture::I386),
            _ => Err(format!("`{text}` is not an architecture: x86_64, arm64 or i386")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_and_the_manifest_has_ec2_s() {
        for architecture in Architecture::ALL {
            for name in [architecture.as_str(), architecture.debian(), architecture.oci()] {
                assert_eq!(name.parse(), Ok(architecture));
            }
            let json = serde_json::to_string(&architecture).unwrap();
            assert_eq!(json, format!("\"{architecture}\""));
            let kernel = architecture.of_kernel();
            assert_eq!(
                (kernel.of_kernel(), kernel.machine()),
                (kernel, architecture.machine())
            );
        }
        let error = "riscv64".parse::<Architecture>().unwrap_err();
        assert!(error.contains("i386"), "{error}");
    }
}
