//! Instructions that programs may execute and that say something about the host: pages that have one do not
//! run directly.
//!
//! CPUID and XGETBV name the host's features, which the guest's kernel does not know and whose registers it
//! does not save. XSAVE and its kin write and read areas that the host's features decide on. LSL and RDPID are how Linux's vDSO finds out the number of the processor. The bytes of one
//! may also be a part of another instruction; such a page is then interpreted for nothing, which is rare.

/// Bytes of the longest sequence that is looked for, but one: what has to be known before and after a page.
pub(super) const OVERLAP: usize = 3;

/// Whether the bytes of such an instruction are among these.
pub(super) fn contains(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == 0x0f) {
        let before = at.checked_sub(1).map(|before| rest[before]);
        match rest[at + 1..] {
            // CPUID.
            [0xa2, ..] => return true,
            // XGETBV.
            [0x01, 0xd0, ..] => return true,
            // LSL of a register.
            [0x03, 0xc0..=0xff, ..] => return true,
            // XSAVE, XRSTOR and XSAVEOPT of memory, with any prefix; XSAVEC.
            [0xae, 0x00..=0xbf, ..] if matches!(rest[at + 2] >> 3 & 7, 4..=6) => return true,
            [0xc7, 0x00..=0xbf, ..] if rest[at + 2] >> 3 & 7 == 4 => return true,
            // RDPID.
            [0xc7, 0xf8..=0xff, ..] if before == Some(0xf3) => return true,
            _ => {}
        }
        rest = &rest[at..];
        // Keeps the byte before the next one.
        if rest.len() < 2 {
            break;
        }
        rest = &rest[1..];
    }
    false
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn each_is_found_wherever_it_is() {
        for code in [
            &[0x0f, 0xa2][..],
            &[0x0f, 0x01, 0xd0],
            &[0x0f, 0x03, 0xc0],
            &[0xf3, 0x0f, 0xc7, 0xf8],
            &[0x0f, 0xae, 0x20],
            &[0x0f, 0xae, 0x6c, 0x24, 0x40],
            &[0x0f, 0xae, 0xb7],
            &[0x0f, 0xc7, 0x64, 0x24, 0x40],
        ] {
            for before in 0..4 {
                let mut bytes = vec![0x0f; before];
                bytes.extend(code);
                assert!(contains(&bytes), "{bytes:x?}");
                bytes.extend([0x90, 0x0f]);
                assert!(contains(&bytes), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn others_are_not() {
        for code in [
            // SYSCALL, RDSEED, LSL of memory, MONITOR, FXSAVE, LDMXCSR, MFENCE, CMPXCHG16B, a byte at the end.
            &[0x0f, 0x05][..],
            &[0x0f, 0xc7, 0xf8],
            &[0x0f, 0x03, 0x07],
            &[0x0f, 0x01, 0xc8],
            &[0x0f, 0xae, 0x07],
            &[0x0f, 0xae, 0x57, 0x08],
            &[0x0f, 0xae, 0xf0],
            &[0x0f, 0xc7, 0x0f],
            &[0x90, 0x0f],
            &[],
        ] {
            assert!(!contains(code), "{code:x?}");
        }
    }
}
