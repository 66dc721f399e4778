//! Loading through `linux-loader`, whose ELF and bzImage loaders are compiled on x86 only.

use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::ByteValued;

use super::Loaded;
use super::setup::SetupHeader;
use crate::arch::KernelError;
use crate::arch::x86_64::layout;
use crate::memory::{GuestAddress, Memory, PartReader};

/// Loads an ELF kernel.
pub(super) fn elf(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Loaded, KernelError> {
    let result = Elf::load(
        memory.as_ref(),
        None,
        reader,
        Some(GuestAddress(layout::HIGH_MEMORY)),
    )?;
    Ok(Loaded {
        start: result.kernel_load.0,
        end: result.kernel_end,
        header: None,
    })
}

/// Loads a bzImage.
pub(super) fn bzimage(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Loaded, KernelError> {
    let result = BzImage::load(
        memory.as_ref(),
        None,
        reader,
        Some(GuestAddress(layout::HIGH_MEMORY)),
    )?;
    let header = result.setup_header.ok_or(KernelError::NoSetupHeader)?;
    Ok(Loaded {
        start: result.kernel_load.0,
        end: result.kernel_end,
        header: Some(SetupHeader::new(header.as_slice())),
    })
}
