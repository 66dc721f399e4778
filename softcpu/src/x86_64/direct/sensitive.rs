//! Instructions that programs may execute and that say something about the host: they do not run directly.
//!
//! CPUID and XGETBV name the host's features, which the guest's kernel does not know and whose registers it
//! does not save; PKRU is such a register. XSAVE and its kin write and read areas that the host's features decide
//! on. LSL and RDPID are how Linux's vDSO finds out the number of the processor. Of SYSENTER the host's kernel
//! keeps no address.
//!
//! Nobody knows where instructions begin, so each place that has the bytes of one counts. A breakpoint of the
//! host's processor stands at each; where the bytes are a part of another instruction it never goes off. There
//! are four for each helper, and pages that need more are interpreted.

/// Bytes that have to be known before a page: prefixes, and the beginning of an instruction.
pub(super) const BEFORE: usize = 16;
/// And after it.
pub(super) const AFTER: usize = 3;
/// Breakpoints that a processor has.
pub(super) const MOST: usize = 4;

/// Bytes that are looked at in one go.
const CHUNK: usize = 64;

/// Addresses at which such an instruction may begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    at: [u64; MOST],
    len: usize,
}

impl Places {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn as_slice(&self) -> &[u64] {
        &self.at[..self.len]
    }

    /// `None` where there is no room.
    #[must_use]
    pub fn and(mut self, at: u64) -> Option<Places> {
        *self.at.get_mut(self.len)? = at;
        self.len += 1;
        Some(self)
    }
}

/// The places in these bytes, of which `addr` is the address. `None` where there are too many.
pub(super) fn find(bytes: &[u8], addr: u64) -> Option<Places> {
    let mut places = Places::default();
    let end = bytes.len().saturating_sub(AFTER);
    for begin in (0..end).step_by(CHUNK) {
        let chunk = begin..(begin + CHUNK).min(end);
        if !is_suspect(&bytes[chunk.start..=chunk.end]) {
            continue;
        }
        // One that begins earlier is over before the page begins.
        for at in chunk.start.max(BEFORE - AFTER)..chunk.end {
            if !begins(bytes, at) {
                continue;
            }
            let prefixes = bytes[..at]
                .iter()
                .rev()
                .take_while(|byte| is_prefix(**byte))
                .count();
            if is_random(bytes, at) && !bytes[at - prefixes..at].contains(&0xf3) {
                continue;
            }
            // More than any instruction has.
            if prefixes == at {
                return None;
            }
            for begin in at - prefixes..=at {
                places = places.and(addr + begin as u64)?;
            }
        }
    }
    Some(places)
}

/// Whether one may begin in these bytes, all but the last of them.
fn is_suspect(bytes: &[u8]) -> bool {
    // Without branches, so that the compiler takes many bytes at once.
    let pairs = bytes.iter().zip(&bytes[1..]);
    pairs.fold(false, |found, (first, second)| {
        let known = (*second == 0xa2)
            | (*second == 0x01)
            | (*second == 0x03)
            | (*second == 0x34)
            | (*second == 0xae)
            | (*second == 0xc7);
        found | (*first == 0x0f) & known
    })
}

/// Whether the opcode of one is at `at`, and what makes it one.
fn begins(bytes: &[u8], at: usize) -> bool {
    let operation = |byte: u8| byte >> 3 & 7;
    match bytes[at..at + 3] {
        // CPUID.
        [0x0f, 0xa2, _] => true,
        // XGETBV, RDPKRU, WRPKRU.
        [0x0f, 0x01, 0xd0 | 0xee | 0xef] => true,
        // SYSENTER.
        [0x0f, 0x34, _] => true,
        // LSL of a register.
        [0x0f, 0x03, 0xc0..=0xff] => true,
        // XSAVE, XRSTOR and XSAVEOPT of memory; XSAVEC.
        [0x0f, 0xae, which @ 0..0xc0] => matches!(operation(which), 4..=6),
        [0x0f, 0xc7, which @ 0..0xc0] => operation(which) == 4,
        // RDPID.
        _ => is_random(bytes, at),
    }
}

/// Whether it is RDPID, or RDSEED, which has no 0xf3 before it.
fn is_random(bytes: &[u8], at: usize) -> bool {
    matches!(bytes[at..at + 3], [0x0f, 0xc7, 0xf8..=0xff])
}

fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places in a page with this code at `at`, counted from there.
    fn places(code: &[u8], at: usize) -> Option<Vec<i64>> {
        let mut bytes = vec![0x90; BEFORE + 4096 + AFTER];
        bytes[at..at + code.len()].copy_from_slice(code);
        let found = find(&bytes, 0x1000)?;
        let relative = |place: &u64| *place as i64 - 0x1000 - at as i64;
        Some(found.as_slice().iter().map(relative).collect())
    }

    #[test]
    fn each_is_found_wherever_it_is() {
        for (code, expected) in [
            (&[0x0f, 0xa2][..], &[0][..]),
            (&[0x66, 0x0f, 0xa2], &[0, 1]),
            (&[0x0f, 0x01, 0xd0], &[0]),
            (&[0x0f, 0x01, 0xef], &[0]),
            (&[0x0f, 0x34], &[0]),
            (&[0x0f, 0x03, 0xc0], &[0]),
            (&[0xf3, 0x0f, 0xc7, 0xf8], &[0, 1]),
            (&[0xf3, 0x41, 0x0f, 0xc7, 0xff], &[0, 1, 2]),
            (&[0x0f, 0xae, 0x20], &[0]),
            (&[0x48, 0x0f, 0xae, 0x6c, 0x24, 0x40], &[0, 1]),
            (&[0x0f, 0xae, 0xb7], &[0]),
            (&[0x0f, 0xc7, 0x64, 0x24, 0x40], &[0]),
            (&[0x0f, 0x0f, 0x0f, 0xa2], &[2]),
        ] {
            // The last ones end in the next page; what only begins in this one is found in that.
            let opcode = expected[expected.len() - 1] as usize;
            for at in BEFORE..BEFORE + 4096 - opcode {
                if at + code.len() <= BEFORE + 4096 + AFTER {
                    assert_eq!(places(code, at).as_deref(), Some(expected), "{code:x?} at {at}");
                }
            }
        }
        // From the page before into this one.
        assert_eq!(places(&[0x0f, 0x01, 0xd0], BEFORE - 2).unwrap(), [0]);
        assert_eq!(places(&[0x0f, 0x01, 0xd0], BEFORE - 8).unwrap(), []);
    }

    #[test]
    fn others_are_not() {
        for code in [
            // SYSCALL, RDSEED, LSL of memory, MONITOR, FXSAVE, LDMXCSR, MFENCE, CMPXCHG16B, a byte at the end.
            &[0x0f, 0x05][..],
            &[0x48, 0x0f, 0xc7, 0xf8],
            &[0x0f, 0x03, 0x07],
            &[0x0f, 0x01, 0xc8],
            &[0x0f, 0xae, 0x07],
            &[0x0f, 0xae, 0x57, 0x08],
            &[0x0f, 0xae, 0xf0],
            &[0x0f, 0xc7, 0x0f],
            &[0x90, 0x0f],
            &[],
        ] {
            assert_eq!(places(code, 100).unwrap(), [], "{code:x?}");
        }
    }

    #[test]
    fn more_than_a_processor_watches_are_too_many() {
        let code = [0x0f, 0xa2].repeat(MOST);
        assert_eq!(places(&code, 100).unwrap().len(), MOST);
        let code = [0x0f, 0xa2].repeat(MOST + 1);
        assert_eq!(places(&code, 100), None);
        let mut prefixes = [0x66; BEFORE + 2];
        prefixes[BEFORE..].copy_from_slice(&[0x0f, 0xa2]);
        assert_eq!(places(&prefixes, 0), None);
    }
}
