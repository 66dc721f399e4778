//! ELF files of both classes: where their segments end in RAM, and loading them (System V ABI, "ELF
//! header", "Program header").

use std::io::{Read, Seek, SeekFrom};

use super::Loaded;
use crate::arch::KernelError;
use crate::arch::x86_64::layout;
use crate::memory::{Bytes, GuestAddress, Memory, PartReader};

/// The mark that a file begins with.
pub(super) const MAGIC: &[u8] = b"\x7fELF";
/// `e_machine`, at the same place in both classes, and its values for x86-64 and 32-bit x86.
const E_MACHINE: usize = 18;
const EM_X86_64: u16 = 62;
const EM_386: u16 = 3;
/// `e_ident`: the class, 1 for 32 bits and 2 for 64.
const EI_CLASS: usize = 4;
/// The type of a segment that is loaded.
const PT_LOAD: u64 = 1;

/// A field: its offset and its bytes.
#[derive(Clone, Copy)]
struct Field(usize, usize);

impl Field {
    /// Its value; `None` where `bytes` are too short.
    fn of(self, bytes: &[u8]) -> Option<u64> {
        let Field(at, size) = self;
        let mut value = [0; 8];
        value[..size].copy_from_slice(bytes.get(at..at.checked_add(size)?)?);
        Some(u64::from_le_bytes(value))
    }
}

/// Where a class has its fields.
pub(super) struct Class {
    file_header: usize,
    program_header: usize,
    entry: Field,
    table: Field,
    entry_size: Field,
    count: Field,
    /// In a program header.
    offset: Field,
    address: Field,
    in_file: Field,
    in_memory: Field,
}

/// The type of a segment, in both classes.
const P_TYPE: Field = Field(0, 4);

/// Files of 32 bits.
pub(super) const BITS32: Class = Class {
    file_header: 52,
    program_header: 32,
    entry: Field(24, 4),
    table: Field(28, 4),
    entry_size: Field(42, 2),
    count: Field(44, 2),
    offset: Field(4, 4),
    address: Field(12, 4),
    in_file: Field(16, 4),
    in_memory: Field(20, 4),
};

/// Files of 64 bits.
pub(super) const BITS64: Class = Class {
    file_header: 64,
    program_header: 56,
    entry: Field(24, 8),
    table: Field(32, 8),
    entry_size: Field(54, 2),
    count: Field(56, 2),
    offset: Field(8, 8),
    address: Field(24, 8),
    in_file: Field(32, 8),
    in_memory: Field(40, 8),
};

/// Whether the file that begins with `head` is of 32 bits.
///
/// # Errors
/// Where it is for no x86 processor, by its number.
pub(super) fn is_32_bits(head: &[u8]) -> Result<bool, KernelError> {
    let machine = Field(E_MACHINE, 2).of(head).unwrap_or_default() as u16;
    match (machine, head.get(EI_CLASS)) {
        (EM_X86_64, Some(2)) => Ok(false),
        (EM_386, Some(1)) => Ok(true),
        _ => Err(KernelError::Processor(machine)),
    }
}

/// The end in RAM of a file's segments, as far as `head` has their headers.
pub(super) fn end(head: &[u8]) -> Option<u64> {
    let class = match head.starts_with(MAGIC) {
        true if is_32_bits(head).ok()? => BITS32,
        true => BITS64,
        false => return None,
    };
    let first = usize::try_from(class.table.of(head)?).ok()?;
    let (size, count) = (
        class.entry_size.of(head)? as usize,
        class.count.of(head)? as usize,
    );
    let end = |index: usize| {
        let header = head.get(first.checked_add(index * size)?..)?;
        let (start, length) = (class.address.of(header)?, class.in_memory.of(header)?);
        Some(match P_TYPE.of(header)? {
            PT_LOAD => start.saturating_add(length),
            _ => 0,
        })
    };
    (0..count).map_while(end).max()
}

/// Reads `len` bytes at `offset` of the file.
pub(super) fn read(reader: &mut PartReader<'_>, offset: u64, len: usize) -> Result<Vec<u8>, KernelError> {
    let mut bytes = vec![0; len];
    reader
        .seek(SeekFrom::Start(offset))
        .and_then(|_| reader.read_exact(&mut bytes))
        .map_err(|source| KernelError::Read { offset, len, source })?;
    Ok(bytes)
}

/// Puts `len` bytes at `offset` of the file to `address`.
pub(super) fn place(
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
pub(super) fn load(
    memory: &Memory,
    reader: &mut PartReader<'_>,
    class: &Class,
) -> Result<Loaded, KernelError> {
    let header = read(reader, 0, class.file_header)?;
    let field = |field: Field| field.of(&header).unwrap_or_default();
    if field(class.entry_size) as usize != class.program_header {
        return Err(KernelError::ProgramHeaders);
    }
    // 16 bits: the table has at most 4 MiB.
    let count = field(class.count) as usize;
    let table = read(reader, field(class.table), count * class.program_header)?;
    let start = field(class.entry);
    if start < layout::HIGH_MEMORY {
        return Err(KernelError::EntryTooLow);
    }
    let mut end = 0;
    for segment in table.chunks_exact(class.program_header) {
        let field = |field: Field| field.of(segment).unwrap_or_default();
        let (in_file, address) = (field(class.in_file), field(class.address));
        if field(P_TYPE) != PT_LOAD || in_file == 0 {
            continue;
        }
        place(memory, reader, field(class.offset), in_file, address)?;
        let after = address.checked_add(field(class.in_memory));
        end = after.ok_or(KernelError::TooLarge)?.max(end);
    }
    Ok(Loaded {
        start,
        end,
        header: None,
    })
}
