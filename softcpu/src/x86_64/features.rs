//! Which extensions of the instruction set beyond x86-64-v2 a machine's processors have.

use std::fmt;

/// A set of extensions: those between x86-64-v2, which every processor here has, and x86-64-v3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Features(u32);

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Features::V2 => f.write_str("x86-64-v2"),
            Features::V3 => f.write_str("x86-64-v3"),
            Features(some) => write!(f, "x86-64-v2 with extensions {some:#x}"),
        }
    }
}

impl Features {
    /// XSAVE, XSAVEOPT, XSAVEC, XGETBV of what is in use, and CR4.OSXSAVE.
    pub const XSAVE: Features = Features(1 << 0);
    /// AVX.
    pub const AVX: Features = Features(1 << 1);
    /// AVX2.
    pub const AVX2: Features = Features(1 << 2);
    /// Fused multiplication and addition.
    pub const FMA: Features = Features(1 << 3);
    /// Conversions from and to half precision.
    pub const F16C: Features = Features(1 << 4);
    /// ANDN, BEXTR, BLSI, BLSMSK, BLSR, TZCNT.
    pub const BMI1: Features = Features(1 << 5);
    /// BZHI, MULX, PDEP, PEXT, RORX, SARX, SHLX, SHRX.
    pub const BMI2: Features = Features(1 << 6);
    /// LZCNT.
    pub const LZCNT: Features = Features(1 << 7);
    /// MOVBE.
    pub const MOVBE: Features = Features(1 << 8);
    /// RDPID.
    pub const RDPID: Features = Features(1 << 9);

    /// x86-64-v2: none of them.
    pub const V2: Features = Features(0);
    /// x86-64-v3, and RDPID, which programs use where processors have AVX2.
    pub const V3: Features = Features((1 << 10) - 1);

    /// Whether all of `other` are there.
    #[inline]
    pub const fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// What the host has of x86-64-v3: programs that run on the host's processor itself see no less. All of it
    /// where the host is of another architecture, whose own instructions no guest meets.
    pub fn host() -> Features {
        #[cfg(target_arch = "x86_64")]
        return host();
        #[cfg(not(target_arch = "x86_64"))]
        Features::V3
    }

    /// The set with `other` where `there`.
    #[cfg(target_arch = "x86_64")]
    const fn and(self, other: Features, there: bool) -> Features {
        Features(if there { self.0 | other.0 } else { self.0 })
    }
}

/// x86-64-v3: what [`Platform::new`](crate::Platform::new) makes.
impl Default for Features {
    fn default() -> Features {
        Features::V3
    }
}

#[cfg(target_arch = "x86_64")]
fn host() -> Features {
    use std::is_x86_feature_detected as has;
    // The detection says AVX only where the host's system saves its registers.
    let xsave = has!("xsave") && has!("xsaveopt") && has!("xsavec");
    let avx = xsave && has!("avx");
    let rdpid = std::arch::x86_64::__cpuid_count(7, 0).ecx >> 22 & 1 != 0;
    Features::V2
        .and(Features::XSAVE, xsave)
        .and(Features::AVX, avx)
        .and(Features::AVX2, avx && has!("avx2"))
        .and(Features::FMA, avx && has!("fma"))
        .and(Features::F16C, avx && has!("f16c"))
        .and(Features::BMI1, has!("bmi1"))
        .and(Features::BMI2, has!("bmi2"))
        .and(Features::LZCNT, has!("lzcnt"))
        .and(Features::MOVBE, has!("movbe"))
        .and(Features::RDPID, rdpid)
}
