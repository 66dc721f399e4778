//! The network interfaces that there are.

/// The first interface that is not loopback, by name.
pub fn first() -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/net").ok()?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "lo").min()
}
