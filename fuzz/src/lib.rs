//! Fuzz targets: each is a function that takes any input and must neither panic, hang nor use unbounded
//! memory.
//!
//! `cargo xtask fuzz` drives them with libFuzzer; `tests/corpus.rs` runs the committed inputs through them in
//! every test run. Targets share their process's time between several parts; the first byte of an input
//! chooses.

pub mod agent;
pub mod ec2_request;
pub mod image;
mod input;
pub mod net;
pub mod packages;
pub mod platform;
pub mod recipe;
mod scratch;
pub mod snapshot;
pub mod softcpu;
pub mod virtio;
pub mod vsock;

/// A target: it takes any input.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its binary and of its folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("agent", agent::run),
    ("ec2_request", ec2_request::run),
    ("image", image::run),
    ("net", net::run),
    ("packages", packages::run),
    ("platform", platform::run),
    ("recipe", recipe::run),
    ("snapshot", snapshot::run),
    ("softcpu", softcpu::run),
    ("virtio", virtio::run),
    ("vsock", vsock::run),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name)?;
    Some(*target)
}
