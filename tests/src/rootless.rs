//! A user without privileges, for builds as most people run them.

use std::process::Command;

/// The user; `cargo xtask test` makes it where it may.
pub const USER: &str = "kiln-rootless";

/// Why tests that change between root and a user cannot run here, if they cannot.
pub fn missing() -> Option<String> {
    let id = Command::new("id").arg("-u").output();
    if !id.is_ok_and(|output| output.stdout.trim_ascii() == b"0") {
        return Some("this is not root: nothing to compare a rootless build with".into());
    }
    let ranges = std::fs::read_to_string("/etc/subuid").unwrap_or_default();
    if !ranges.lines().any(|line| line.starts_with(&format!("{USER}:"))) {
        return Some(format!(
            "there is no user {USER} with subordinate numbers; `cargo xtask test` makes it"
        ));
    }
    None
}
