//! Values on the command line.

use std::time::Duration;

pub use instance::size::parse as size;

/// RAM: a [`size`] that a kernel can live in.
pub fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < 16 << 20 {
        return Err(format!(
            "{bytes} bytes are too few for a kernel; write the unit, as in 512M"
        ));
    }
    if bytes % 4096 != 0 {
        return Err("not a whole number of 4 KiB pages".into());
    }
    Ok(bytes)
}

/// A number of seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    text.trim_end_matches('s')
        .parse()
        .map(|s: u32| Duration::from_secs(s.into()))
        .map_err(|_| "not a number of seconds".into())
}

/// `KEY=VALUE`.
pub fn tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if (1..=127).contains(&key.len()) && value.len() <= 255 => {
            Ok((key.into(), value.into()))
        }
        Some(_) => Err("a key has 1 to 127 bytes and a value at most 255".into()),
        None => Err("write it as KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_without_a_unit_is_noticed() {
        assert!(memory("512").unwrap_err().contains("512M"));
        assert_eq!(memory("64M"), Ok(64 << 20));
        assert!(memory("67108865").is_err());
    }

    #[test]
    fn tags() {
        assert_eq!(tag("Name=a=b"), Ok(("Name".into(), "a=b".into())));
        assert!(tag("x").is_err());
        assert!(tag("=x").is_err());
    }
}
