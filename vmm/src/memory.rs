//! Guest RAM: regions of anonymous or file-backed host memory at guest-physical addresses.

use std::sync::Arc;

pub use vm_memory::{Address, Bytes, GuestAddress, GuestMemory as _, GuestMemoryBackend, GuestMemoryMmap};

/// Guest RAM as devices and the loader share it. One concrete type: nothing here is generic over memory.
pub type Memory = Arc<GuestMemoryMmap<()>>;
