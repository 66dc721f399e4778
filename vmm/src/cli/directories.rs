//! Where things are kept: the XDG base directory specification, version 0.8.

use std::env;
use std::path::PathBuf;

use super::failure::Advice;
use instance::store::home::Home;

/// The directories that `XDG_STATE_HOME`, `XDG_DATA_HOME` and `XDG_CACHE_HOME` name, or their defaults below
/// `HOME`. Creates nothing.
///
/// # Errors
/// When neither the variable nor `HOME` names one; without a cache nothing is worse than slower.
pub fn from_environment() -> Result<Home, Advice> {
    let needed = |variable: &str, default| {
        directory(variable, default).ok_or_else(|| {
            Advice::new(
                format!(
                    "there is no directory to keep instances and images in: neither {variable} nor HOME is \
                     set"
                ),
                format!("set {variable} to a directory that you can write to"),
            )
        })
    };
    Ok(Home::new(
        needed("XDG_STATE_HOME", ".local/state")?,
        needed("XDG_DATA_HOME", ".local/share")?,
        directory("XDG_CACHE_HOME", ".cache"),
    ))
}

/// Relative paths in these variables are to be ignored.
fn directory(variable: &str, default: &str) -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(variable)
        .or_else(|| absolute("HOME").map(|home| home.join(default)))
        .map(|base| base.join("kiln"))
}
