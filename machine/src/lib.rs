//! The hypervisor proper: memory, buses, interrupts, devices, accelerators, virtual processors, and the
//! machine that they make.
//!
//! It knows nothing of instances, image stores, command lines or environment variables: a [`Spec`] describes
//! the machine, and an [`Outcome`] describes how it ended. It uses the crates `ami`
//! (parts of an image) and `softcpu` (the processor in software), and no other of Kiln's.
//!
//! Modules form layers; a lower one never imports a higher one, and `tests/layers.rs` checks that:
//!
//! 1. [`memory`], [`state`], [`event`], [`entropy`], [`limit`], [`sandbox`], [`footprint`], `arch::*::layout`
//! 2. [`bus`], [`irq`]
//! 3. [`block`], [`net`]: the backends of devices
//! 4. [`devices`], [`virtio`]
//! 5. [`arch`]
//! 6. [`accel`]
//! 7. `machine` (whose public items, [`Machine`] and others, are exported here), [`vcpu`], [`timeline`]
//!
//! Begin with [`vcpu`] to see how a virtual processor runs, then with [`virtio::VirtioDevice`] for how a
//! device is written.

pub mod accel;
pub mod arch;
pub mod block;
pub mod bus;
pub mod devices;
pub mod entropy;
pub mod event;
pub mod footprint;
pub mod irq;
pub mod limit;
mod machine;
pub mod memory;
pub mod net;
pub mod sandbox;
pub mod state;
pub mod timeline;
pub mod vcpu;
pub mod virtio;

pub use machine::{Device, Error, Handle, Machine, NamedExit, Outcome, Serial, Spec, snapshot};
