//! Proxies: which of them an address is reached through, by the variables that curl and apt know.
//!
//! A plain `http:` address is asked of the proxy in absolute form (RFC 9112, 3.2.2); for `https:` it opens a
//! tunnel. The HTTP library knows tunnels only, and many proxies refuse those to port 80.

use std::sync::Arc;

use base64::Engine;
use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

use super::HttpError;

/// The proxies in use, and for which hosts they are not.
#[derive(Debug, Default)]
pub struct Proxies {
    http: Option<Arc<Server>>,
    https: Option<Arc<Server>>,
    exempt: Vec<String>,
}

/// One proxy.
#[derive(Debug)]
pub struct Server {
    /// As the HTTP library knows it.
    pub proxy: Proxy,
    /// Who it is, without a password.
    pub name: String,
    /// The `Proxy-Authorization` that it wants.
    pub authorization: Option<String>,
}

impl Proxies {
    /// The proxies of the environment, of which `variable` gives a variable's value. The one for a scheme
    /// comes before that for all, and a name in lower case before one in upper case; an empty value means
    /// none.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HttpError> {
        let first = |names: [&str; 2]| {
            let found = names.iter().find_map(|name| Some((*name, variable(name)?)));
            found.map(|(name, value)| (name.to_owned(), value))
        };
        let server = |names| {
            let all = || first(["all_proxy", "ALL_PROXY"]);
            match first(names).or_else(all) {
                Some((name, value)) if !value.is_empty() => Server::parse(&name, &value).map(Some),
                _ => Ok(None),
            }
        };
        let exempt = first(["no_proxy", "NO_PROXY"]).map(|(_, value)| value);
        Ok(Self {
            http: server(["http_proxy", "HTTP_PROXY"])?,
            https: server(["https_proxy", "HTTPS_PROXY"])?,
            exempt: exempt
                .unwrap_or_default()
                .split([',', ' '])
                .map(|entry| entry.trim_start_matches("*.").trim_start_matches('.'))
                .filter(|entry| !entry.is_empty())
                .map(str::to_ascii_lowercase)
                .collect(),
        })
    }

    /// The proxy that serves an address.
    pub fn serving(&self, uri: &Uri) -> Option<&Arc<Server>> {
        let server = match uri.scheme_str() {
            Some("http") => &self.http,
            Some("https") => &self.https,
            _ => &None,
        };
        let known = [&self.http, &self.https].into_iter().flatten();
        let authority = uri.authority()?;
        // A proxy itself is reached directly.
        if known
            .clone()
            .any(|known| known.proxy.uri().authority() == Some(authority))
        {
            return None;
        }
        let host = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        let is_exempt = |entry: &String| {
            let below = host.strip_suffix(entry.as_str());
            entry == "*" || below.is_some_and(|below| below.is_empty() || below.ends_with('.'))
        };
        server.as_ref().filter(|_| !self.exempt.iter().any(is_exempt))
    }

    /// Words for an error about an address.
    pub fn show(&self, url: &str) -> String {
        let uri = url.parse().ok();
        let server = uri.as_ref().and_then(|uri| self.serving(uri));
        server.map_or_else(String::new, |server| {
            format!(", through the proxy {}", server.name)
        })
    }
}

impl Server {
    fn parse(name: &str, value: &str) -> Result<Arc<Self>, HttpError> {
        let wrong = |why| HttpError::Proxy {
            variable: name.to_owned(),
            why,
        };
        let proxy = Proxy::new(value).map_err(|_| wrong("it is not the address of a proxy"))?;
        if !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
            return Err(wrong("it is a SOCKS proxy, and imgtool speaks to HTTP proxies"));
        }
        let authorization = proxy.username().map(|user| {
            let text = format!("{user}:{}", proxy.password().unwrap_or_default());
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        });
        Ok(Arc::new(Self {
            name: format!("{}:{}", proxy.host(), proxy.port()),
            authorization,
            proxy,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Advice as _;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, HttpError> {
        Proxies::of(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn serving(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let proxies = proxies(variables).unwrap();
        proxies
            .serving(&url.parse().unwrap())
            .map(|server| server.name.clone())
    }

    #[test]
    fn a_scheme_has_its_proxy() {
        let both = [("http_proxy", "http://a:3128"), ("HTTPS_PROXY", "b:8080")];
        assert_eq!(serving(&both, "http://x/y").unwrap(), "a:3128");
        assert_eq!(serving(&both, "https://x/y").unwrap(), "b:8080");
        assert_eq!(serving(&both[..1], "https://x/y"), None);
        let all = [("all_proxy", "http://c"), ("http_proxy", "")];
        assert_eq!(serving(&all, "https://x").unwrap(), "c:80");
        assert_eq!(serving(&all, "http://x"), None, "an empty value means none");
        // What is tunnelled or forwarded goes to the proxy directly.
        assert_eq!(serving(&both, "http://a:3128"), None);
    }

    #[test]
    fn hosts_are_exempt_with_what_is_below_them() {
        let variables = [
            ("http_proxy", "http://a:3128"),
            ("no_proxy", "example.org, .local,*.lan,127.0.0.1,::1"),
        ];
        for host in [
            "example.org",
            "deb.Example.org:8080",
            "x.local",
            "y.lan",
            "127.0.0.1:9",
            "[::1]:80",
        ] {
            assert_eq!(serving(&variables, &format!("http://{host}/")), None, "{host}");
        }
        for host in ["anexample.org", "example.org.net", "10.0.0.1"] {
            assert!(
                serving(&variables, &format!("http://{host}/")).is_some(),
                "{host}"
            );
        }
        let none = [("http_proxy", "http://a:3128"), ("NO_PROXY", "*")];
        assert_eq!(serving(&none, "http://x/"), None);
    }

    #[test]
    fn what_is_no_http_proxy_is_refused_by_name() {
        for (value, words) in [
            ("socks5h://a:1080", "SOCKS"),
            ("http://", "not the address"),
            ("x://a", "not the address"),
        ] {
            let error = proxies(&[("all_proxy", value)]).unwrap_err().report();
            assert!(error.contains("all_proxy") && error.contains(words), "{error}");
            assert!(error.contains("try:"), "{error}");
        }
    }
}
