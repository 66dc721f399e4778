//! Sizes as people write them.

/// No file, and no memory, is larger; sizes up to here can be rounded up without an overflow.
const MAX: u64 = 1 << 62;

/// Digits and an optional `K`, `M`, `G` or `T` (binary; `KiB` and `KB` mean the same), as in `512M`.
pub fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim_end_matches(['b', 'B']).trim_end_matches('i');
    let (digits, shift) = match trimmed.char_indices().last() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => return Err(format!("unknown unit {unit:?}; write it like 512M or 2G")),
            };
            (&trimmed[..at], shift)
        }
        _ => (trimmed, 0),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "not a size; write it like 512M or 2G".to_owned())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes <= MAX);
    bytes.ok_or_else(|| "too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("512M", 512 << 20),
            ("2GiB", 2 << 30),
            ("2GB", 2 << 30),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "-1",
            "1.5G",
            "1X",
            "99999999999G",
            "16777215T",
            "18446744073709551615",
            "é",
            "1é",
            "iB",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
