//! The signature that a kernel module may end with (Linux, include/linux/module_signature.h), and where it is
//! left out.
//!
//! A kernel verifies the signature of each module that it loads. With Debian's, of elliptic curves, that is a
//! third of the instructions of a boot. The modules of an initramfs are covered by the image's digests and
//! signature already. A kernel that loads a module without a signature marks itself as tainted
//! (`TAINT_UNSIGNED_MODULE`) and does all else as before, unless it was built or asked to insist.

/// What a signed module ends with.
const MAGIC: &[u8] = b"~Module signature appended~\n";
/// Bytes of `struct module_signature`, before the magic: algo, hash, id_type, signer_len, key_id_len, three
/// bytes of padding, and sig_len, big-endian.
const HEADER: usize = 12;

/// Options of a kernel's configuration by which it loads signed modules only.
const FORCED: [&str; 3] = [
    "CONFIG_MODULE_SIG_FORCE=y",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY=y",
];
/// Parameters with the same effect.
const INSISTING: [&str; 2] = ["module.sig_enforce", "lockdown"];

/// Whether a kernel that was built with `configuration`, the text of its `/boot/config-RELEASE`, and gets
/// `command_line` loads modules without a signature.
pub(super) fn is_dispensable(configuration: &str, command_line: &str) -> bool {
    let forced = configuration.lines().any(|line| FORCED.contains(&line));
    let name = |word: &str| word.split_once('=').map_or(word, |(name, _)| name).to_owned();
    let insists = command_line
        .split_ascii_whitespace()
        .any(|word| INSISTING.contains(&name(word).as_str()));
    !forced && !insists
}

/// Cuts the signature off. A module without one, or with one that is damaged, stays as it is.
pub(super) fn remove(module: &mut Vec<u8>) {
    if let Some(length) = unsigned_length(module) {
        module.truncate(length);
    }
}

fn unsigned_length(module: &[u8]) -> Option<usize> {
    let (rest, header) = module.strip_suffix(MAGIC)?.split_last_chunk::<HEADER>()?;
    let [_, _, _, signer, key_id, _, _, _, length @ ..] = *header;
    let signature = u32::from_be_bytes(length) as usize;
    let all = signature.checked_add(usize::from(signer) + usize::from(key_id))?;
    rest.len().checked_sub(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(module: &[u8], length: u32, signature: &[u8]) -> Vec<u8> {
        let header = [&[0, 0, 2, 0, 0, 0, 0, 0], &length.to_be_bytes()[..]].concat();
        [module, signature, &header, MAGIC].concat()
    }

    #[test]
    fn the_signature_is_cut_off_and_nothing_else() {
        let mut module = signed(b"\x7fELF and so on", 300, &[7; 300]);
        remove(&mut module);
        assert_eq!(module, b"\x7fELF and so on");
        for other in [
            b"\x7fELF without one".to_vec(),
            MAGIC.to_vec(),
            signed(b"\x7fELF", 305, &[7; 300]),
            signed(b"\x7fELF", u32::MAX, &[7; 300]),
        ] {
            let mut same = other.clone();
            remove(&mut same);
            assert_eq!(same, other);
        }
    }

    #[test]
    fn a_kernel_that_insists_on_signatures_gets_them() {
        let plain = "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\n";
        assert!(is_dispensable(plain, "quiet lockdownish=1"));
        assert!(!is_dispensable("CONFIG_MODULE_SIG_FORCE=y\n", ""));
        for word in ["module.sig_enforce", "module.sig_enforce=1", "lockdown=integrity"] {
            assert!(!is_dispensable(plain, &format!("quiet {word}")), "{word}");
        }
    }
}
