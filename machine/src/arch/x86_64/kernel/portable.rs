//! Loading on hosts where `linux-loader` does not know x86 kernels. A test holds it to what that crate does.

use std::io::{Read, Seek, SeekFrom};

use super::Loaded;
use super::setup::{self, SetupHeader};
use crate::arch::KernelError;
use crate::arch::x86_64::layout;
use crate::memory::{Bytes, GuestAddress, Memory, PartReader};

/// ELF64 (System V ABI, "ELF header", "Program header"): lengths, and offsets in the file header.
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const E_PHENTSIZE: usize = 54;
const E_PHNUM: usize = 56;
/// Offsets in a program header, and the type of a segment that is loaded.
const P_OFFSET: usize = 8;
const P_PADDR: usize = 24;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const PT_LOAD: u32 = 1;

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

fn word<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes.get(at + n).copied().unwrap_or(0))
}

/// Reads `len` bytes at `offset` of the file.
fn read(reader: &mut PartReader<'_>, offset: u64, len: usize) -> Result<Vec<u8>, KernelError> {
    let mut bytes = vec![0; len];
    reader
        .seek(SeekFrom::Start(offset))
        .and_then(|_| reader.read_exact(&mut bytes))
        .map_err(|source| KernelError::Read { offset, len, source })?;
    Ok(bytes)
}

/// Puts `len` bytes at `offset` of the file to `address`.
fn place(
    memory: &Memory,
    reader: &mut PartReader<'_>,
    offset: u64,
    len: u64,
    address: u64,
) -> Result<(), KernelError> {
    let len = usize::try_from(len).map_err(|_| KernelError::TooLarge)?;
    reader
        .seek(SeekFrom::Start(offset))
        .map_err(|source| KernelError::Read { offset, len, source })?;
    memory
        .read_exact_volatile_from(GuestAddress(address), reader, len)
        .map_err(|source| KernelError::Place { address, source })
}

/// Loads an ELF kernel: each loadable segment to its physical address.
pub(super) fn elf(memory: &Memory, reader: &mut PartReader<'_>) -> Result<Loaded, KernelError> {
    let header = read(reader, 0, FILE_HEADER)?;
    if usize::from(u16::from_le_bytes(word(&header, E_PHENTSIZE))) != PROGRAM_HEADER {
        return Err(KernelError::ProgramHeaders);
    }
    let count = usize::from(u16::from_le_bytes(word(&header, E_PHNUM)));
    let table = u64::from_le_bytes(word(&header, E_PHOFF));
    let table = read(reader, table, count * PROGRAM_HEADER)?;
    let entry = u64::from_le_bytes(word(&header, E_ENTRY));
    if entry < layout::HIGH_MEMORY {
        return Err(KernelError::EntryTooLow);
    }
    let mut end = 0;
    for segment in table.chunks_exact(PROGRAM_HEADER) {
        let field = |at| u64::from_le_bytes(word(segment, at));
        if u32::from_le_bytes(word(segment, 0)) != PT_LOAD || field(P_FILESZ) == 0 {
            continue;
        }
        place(memory, reader, field(P_OFFSET), field(P_FILESZ), field(P_PADDR))?;
        let after = field(P_PADDR)
            .checked_add(field(P_MEMSZ))
            .ok_or(KernelError::TooLarge)?;
        end = after.max(end);
    }
    Ok(Loaded {
        start: entry,
        end,
        header: None,
    })
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
