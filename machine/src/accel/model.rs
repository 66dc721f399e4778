//! Which processor the guest sees.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The instruction set that a guest's processors have. As a word it is the variant's name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuModel {
    /// x86-64-v2, and no extension beyond it: the same on every host.
    V2,
    /// x86-64-v3, and no extension beyond it.
    V3,
    /// What the host has, as far as the accelerator can offer it.
    Host,
}

impl CpuModel {
    /// What the software processor has, and where nothing was asked for: x86-64-v3, which it interprets on any
    /// host, so that programs get the same answers everywhere and distributions for v3 run.
    pub(super) fn features(model: Option<CpuModel>) -> softcpu::Features {
        match model {
            Some(CpuModel::V2) => softcpu::Features::V2,
            None | Some(CpuModel::V3) => softcpu::Features::V3,
            Some(CpuModel::Host) => softcpu::Features::host(),
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CpuModel::V2 => "v2",
            CpuModel::V3 => "v3",
            CpuModel::Host => "host",
        })
    }
}
