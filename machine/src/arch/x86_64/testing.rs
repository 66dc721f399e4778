//! Kernel files for tests and fuzzing.

/// An ELF file with one segment of `data` at physical address `at`, `memory` bytes long in RAM, and
/// entered at its start (System V ABI, chapters 4 and 5).
pub fn elf(at: u64, data: &[u8], memory: u64) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0");
    file[24..32].copy_from_slice(&at.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..58].copy_from_slice(&[56, 0, 1, 0]);
    file[64..68].copy_from_slice(&1u32.to_le_bytes());
    for (offset, value) in [(8, 0x1000), (24, at), (32, data.len() as u64), (40, memory)] {
        file[64 + offset..72 + offset].copy_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(data);
    file
}

/// The same of 32 bits.
pub fn elf32(at: u32, data: &[u8], memory: u32) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    file[..20].copy_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0");
    file[24..28].copy_from_slice(&at.to_le_bytes());
    file[28..32].copy_from_slice(&52u32.to_le_bytes());
    file[42..46].copy_from_slice(&[32, 0, 1, 0]);
    file[52..56].copy_from_slice(&1u32.to_le_bytes());
    for (offset, value) in [(4, 0x1000), (12, at), (16, data.len() as u32), (20, memory)] {
        file[52 + offset..56 + offset].copy_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(data);
    file
}
