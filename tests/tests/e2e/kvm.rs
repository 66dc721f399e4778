//! Behaviour that only genuine KVM has.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[(
    "an_instruction_that_kvm_cannot_emulate_is_named",
    an_instruction_that_kvm_cannot_emulate_is_named,
)];

/// Where the kernel of one instruction lies.
const ENTRY: u64 = 0x100_0000;
/// `fld dword [0x2000_0000]`: the address is mapped, but no RAM, so that KVM has to emulate the load; its
/// emulator knows next to nothing of the x87.
const FLD: [u8; 7] = [0xd9, 0x04, 0x25, 0x00, 0x00, 0x00, 0x20];

/// An ELF executable (System V ABI, "Object Files") for x86-64 with one segment of `code` at [`ENTRY`].
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    /// Behind the least size that a kernel of any format has.
    const SEGMENT_AT: u64 = 0x280;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for address in [ENTRY, HEADER, 0] {
        file.extend(address.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [HEADER as u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 7] {
        file.extend(word.to_le_bytes());
    }
    let len = code.len() as u64;
    for word in [SEGMENT_AT, ENTRY, ENTRY, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.resize(SEGMENT_AT as usize, 0);
    file.extend(code);
    file
}

fn an_instruction_that_kvm_cannot_emulate_is_named(host: &TestHost) -> Result<()> {
    let octal: String = elf(&FLD).iter().map(|byte| format!("\\{byte:03o}")).collect();
    let line = format!(
        "printf '{octal}' > $HOME/fld.elf && vmm run hello.ami --rm --accel kvm --memory 128M --kernel $HOME/fld.elf -- true"
    );
    let output = host.sh(&line)?;
    ensure!(output.status == 125, "{output:?}");
    for text in ["RIP 0x1000000", "d9 04 25 00 00 00 20", "fld ", "--accel soft"] {
        ensure!(output.stderr.contains(text), "{text} is missing in {output:?}");
    }
    Ok(())
}
