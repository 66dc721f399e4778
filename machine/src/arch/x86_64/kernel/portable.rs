//! Loading on hosts where `linux-loader` does not know x86 kernels. A test holds it to what that crate does.

use std::io::{Seek, SeekFrom};

use super::Loaded;
use super::elf::{self, place, read};
use super::setup::{self, SetupHeader};
use crate::arch::KernelError;
use crate::arch::x86_64::layout;
use crate::memory::{Memory, PartReader};

/// Unit of a bzImage's setup code, in bytes, and how many there are when the header says 0 (boot.rst,
/// `setup_sects`).
const SECTOR: u64 = 512;
const DEFAULT_SECTORS: u64 = 4;
/// `loadflags`: the protected-mode code belongs into high memory.
const LOADED_HIGH: u16 = 1 << 0;
/// Offsets of what only a loader reads: `loadflags` (a byte, before one of no interest) and where the code
/// belongs.
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;

/// Loads an ELF kernel of 64 bits.
pub(super) fn elf(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Loaded, KernelError> {
    elf::load(memory, reader, &elf::BITS64)
}

/// Loads a bzImage: what follows its setup code.
pub(super) fn bzimage(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Loaded, KernelError> {
    let header = SetupHeader::new(&read(reader, setup::START as u64, SetupHeader::LEN)?);
    if header.u16(LOADFLAGS) & LOADED_HIGH == 0 {
        return Err(KernelError::LowMemory);
    }
    let start = header.u32(CODE32_START).into();
    if start < layout::HIGH_MEMORY {
        return Err(KernelError::TooLow);
    }
    let sectors = match u64::from(header.bytes()[0]) {
        0 => DEFAULT_SECTORS,
        sectors => sectors,
    };
    let offset = (sectors + 1) * SECTOR;
    let whole = reader.seek(SeekFrom::End(0)).map_err(KernelError::Header)?;
    let len = whole.checked_sub(offset).ok_or(KernelError::InsideSetup)?;
    place(memory, reader, offset, len, start)?;
    Ok(Loaded {
        start,
        end: start + len,
        header: Some(header),
    })
}
