//! A minimal hypervisor of the type-1 kind: machine, devices, accelerators, instances.
//!
//! Modules stand in layers; a lower one never imports a higher one, and `tests/layers.rs` holds the code to it:
//!
//! 1. [`memory`], [`event`], [`terminal`], [`entropy`], [`limit`], [`sandbox`], [`footprint`], `arch::*::layout`
//! 2. [`bus`], [`irq`]
//! 3. [`block`], [`net`]: what carries a device's data
//! 4. [`devices`], [`virtio`]
//! 5. [`arch`]
//! 6. [`accel`]
//! 7. [`machine`], [`vcpu`], [`timeline`], [`profile`]
//! 8. [`instance`], [`bench`], [`cli`]

pub mod accel;
pub mod arch;
pub mod bench;
pub mod block;
pub mod bus;
pub mod cli;
pub mod devices;
pub mod entropy;
pub mod event;
pub mod footprint;
pub mod instance;
pub mod irq;
pub mod limit;
pub mod machine;
pub mod memory;
pub mod net;
pub mod profile;
pub mod sandbox;
pub mod terminal;
pub mod timeline;
pub mod vcpu;
pub mod virtio;
