//! How servers are reached: what a program's environment says of proxies and certificate authorities.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// How servers are reached from this host.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Those of `VARIABLES` that are set: proxies, as curl and apt know them.
    variables: BTreeMap<&'static str, String>,
    /// A file with certificate authorities, instead of the host's.
    authorities: Option<PathBuf>,
}

impl Access {
    /// Variables that name proxies, and hosts that are reached without.
    const VARIABLES: [&'static str; 8] = [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ];

    /// As an environment says, of which `variable` gives a variable's value: proxies and `SSL_CERT_FILE`.
    pub fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let proxy = |name| Some((name, variable(name)?.into_string().ok()?));
        Self {
            variables: Self::VARIABLES.into_iter().filter_map(proxy).collect(),
            authorities: variable("SSL_CERT_FILE").map(PathBuf::from),
        }
    }

    /// One of the variables.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    /// The file with certificate authorities.
    pub(super) fn authorities(&self) -> Option<&Path> {
        self.authorities.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_from_the_given_environment() {
        let access = Access::of(|name| match name {
            "http_proxy" => Some("http://proxy:3128".into()),
            "SSL_CERT_FILE" => Some("/etc/authorities.pem".into()),
            _ => None,
        });
        assert_eq!(
            access.variable("http_proxy").as_deref(),
            Some("http://proxy:3128")
        );
        assert_eq!(access.variable("no_proxy"), None);
        assert_eq!(access.authorities(), Some(Path::new("/etc/authorities.pem")));
    }
}
