//! Architectures: the same few free functions and types in each.
//!
//! Each directory offers `layout` (the address map), `ram_regions`, `load` (kernel and initramfs into RAM), `write_tables`
//! (what the guest reads of the machine: ACPI or a device tree), `boot_state` (the first CPU's registers at the kernel's
//! entry) and the types [`Boot`], [`Platform`], [`Kernel`], [`Error`].

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
