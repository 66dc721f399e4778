//! SMBIOS 3: the identity of the system. Linux shows it in `/sys/class/dmi/id`, where cloud-init and others
//! detect the platform.

use super::{Error, layout, put};
use crate::memory::Memory;

/// Length of the 64-bit entry point (SMBIOS 3.7 §5.2.2) and where the structures begin behind it.
const ENTRY_LEN: usize = 24;
const STRUCTURES: u64 = layout::SMBIOS + 32;
/// Structure types.
const SYSTEM: u8 = 1;
const END: u8 = 127;
/// Wake-up type: power switch.
const WAKE_POWER: u8 = 6;

/// Writes the entry point, a system information structure with `uuid`, and the end mark.
pub(super) fn write(memory: &Memory, uuid: Option<[u8; 16]>) -> Result<(), Error> {
    let structures = structures(uuid.unwrap_or_default());
    let max = layout::SMBIOS_END - STRUCTURES;
    if structures.len() as u64 > max {
        return Err(Error::Tables {
            what: "SMBIOS structures",
            len: structures.len(),
            max,
        });
    }
    put(
        memory,
        "the SMBIOS entry point",
        layout::SMBIOS,
        &entry(structures.len()),
    )?;
    put(memory, "SMBIOS structures", STRUCTURES, &structures)
}

fn entry(len: usize) -> [u8; ENTRY_LEN] {
    let mut entry = [0; ENTRY_LEN];
    entry[..5].copy_from_slice(b"_SM3_");
    // Length, version 3.7 revision 0, entry point revision 1.
    entry[6..11].copy_from_slice(&[ENTRY_LEN as u8, 3, 7, 0, 1]);
    entry[12..16].copy_from_slice(&(len as u32).to_le_bytes());
    entry[16..24].copy_from_slice(&STRUCTURES.to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

fn structures(uuid: [u8; 16]) -> Vec<u8> {
    let serial = uuid_text(&uuid);
    // The first three fields of a UUID are little endian here (SMBIOS 3.7 §7.2.1).
    let mut mixed = uuid;
    mixed[0..4].reverse();
    mixed[4..6].reverse();
    mixed[6..8].reverse();
    // Handle 1; then numbers of strings: manufacturer 1, product 2, version none, serial number 3.
    let mut bytes = vec![SYSTEM, 27, 1, 0, 1, 2, 0, 3];
    bytes.extend(mixed);
    bytes.extend([WAKE_POWER, 0, 0]);
    for text in ["Kiln", "Kiln instance", &serial] {
        bytes.extend(text.bytes());
        bytes.push(0);
    }
    bytes.push(0);
    bytes.extend([END, 4, 2, 0, 0, 0]);
    bytes
}

/// The usual 8-4-4-4-12 digits.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (n, byte) in uuid.iter().enumerate() {
        if matches!(n, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Bytes, GuestAddress, allocate};

    #[test]
    fn the_system_has_the_uuid_that_it_was_given() {
        let memory = allocate(&[(0, 1 << 20)]).unwrap();
        let uuid = *b"\xec\x2a\x01\x02\x03\x04\x45\x06\x87\x08\x09\x0a\x0b\x0c\x0d\x0e";
        write(&memory, Some(uuid)).unwrap();
        let mut entry = [0; ENTRY_LEN];
        memory
            .read_slice(&mut entry, GuestAddress(layout::SMBIOS))
            .unwrap();
        assert_eq!(&entry[..5], b"_SM3_");
        assert_eq!(entry.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        let len = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let mut structures = vec![0; len];
        memory
            .read_slice(&mut structures, GuestAddress(STRUCTURES))
            .unwrap();
        assert_eq!(structures[8..14], [0x02, 0x01, 0x2a, 0xec, 0x04, 0x03]);
        assert_eq!(structures[16..24], uuid[8..]);
        assert!(
            structures
                .windows(36)
                .any(|w| w == b"ec2a0102-0304-4506-8708-090a0b0c0d0e")
        );
        assert_eq!(structures[len - 6], END);
    }
}
