//! Values on the command line.

use std::path::PathBuf;
use std::time::Duration;

pub use instance::store::size::parse as size;

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

/// `NAME=VALUE`, of any length: an environment variable.
pub fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

/// A file that is written. Only where `-` is standard output it is not a file's name.
pub fn output_file(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("this is not written to standard output; a file of that name is ./-".into()),
        _ => Ok(text.into()),
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
    fn variables_have_any_length_and_a_name() {
        let long = "x".repeat(4096);
        assert_eq!(variable(&format!("PATH={long}")), Ok(("PATH".into(), long)));
        assert!(variable("=x").is_err() && variable("PATH").is_err());
    }

    #[test]
    fn a_dash_is_not_read_as_a_file() {
        assert!(output_file("-").unwrap_err().contains("./-"));
        assert_eq!(output_file("./-"), Ok("./-".into()));
    }

    #[test]
    fn tags() {
        assert_eq!(tag("Name=a=b"), Ok(("Name".into(), "a=b".into())));
        assert!(tag("x").is_err());
        assert!(tag("=x").is_err());
    }
}
