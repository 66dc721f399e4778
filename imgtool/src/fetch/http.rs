//! Fetching one URL: keep-alive, timeouts, retries, resumption; `http`, `https` and `file`.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use displaydoc::Display;
use ureq::http::header::{CONTENT_RANGE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, RANGE};
use ureq::http::{HeaderName, HeaderValue, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig};

use super::access::Access;
use super::connect;
use super::proxy::Proxies;
use crate::advice::{Advice, Reason};
use crate::store::{self, Partial};

/// Attempts at one file before giving up, the first included.
const ATTEMPTS: u32 = 4;
/// The pause before the second attempt; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(400);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A transfer without a byte for this long has failed; a slow one has not.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER: usize = 1 << 16;

/// Why a URL could not be fetched.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// {url} does not exist on the server (HTTP {status})
    NotFound {
        /// The address.
        url: String,
        /// 404 or 410.
        status: u16,
    },
    /// {url} does not exist
    NoFile {
        /// The address.
        url: String,
    },
    /// {url} is refused by the server (HTTP {status})
    Refused {
        /// The address.
        url: String,
        /// The status.
        status: u16,
    },
    /// {url} could not be fetched, {attempts} attempts: {reason}{through}
    Transfer {
        /// The address.
        url: String,
        /// How often it was attempted.
        attempts: u32,
        /// The last failure.
        #[source]
        reason: Reason,
        /// Which proxy was used, if any.
        through: String,
    },
    /// {url} is longer than the {cap} bytes expected of it
    TooLong {
        /// The address.
        url: String,
        /// The cap in bytes.
        cap: u64,
    },
    /// {url} is another version than the one that was listed: it has {found} bytes instead of {expected}
    OtherVersion {
        /// The address.
        url: String,
        /// Its length in bytes, as the server says.
        found: u64,
        /// The length in the list, in bytes.
        expected: u64,
    },
    /// {url} cannot be read: {source}
    Local {
        /// The address.
        url: String,
        /// Why not.
        source: io::Error,
    },
    /// cannot use the proxy in the variable {variable}: {why}
    Proxy {
        /// The environment variable.
        variable: String,
        /// What is wrong with its value.
        why: &'static str,
    },
    /// {0}
    Store(#[from] store::Error),
}

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Store(error) => error.advice(),
            Self::NotFound { .. } => Some(
                "check the mirror and the suite; if the lock file names an old version, run `imgtool \
                 lock`"
                    .into(),
            ),
            Self::NoFile { .. } => Some(
                "check the path of the local mirror and the suite; if the lock file names an old \
                 version, run `imgtool lock`"
                    .into(),
            ),
            Self::Refused { .. } => Some("another mirror, or see what the proxy in between says".into()),
            Self::Transfer { .. } => Some(
                "again, or another mirror; what arrived is kept and the next attempt continues there".into(),
            ),
            Self::TooLong { .. } => Some("another mirror; this one serves a different file".into()),
            Self::OtherVersion { .. } => Some(
                "again when the mirror has been updated as a whole, another mirror, or `snapshot` in the \
                 recipe, which names an archive that does not change"
                    .into(),
            ),
            Self::Local { .. } => Some("check the path of the local mirror".into()),
            Self::Proxy { .. } => Some("http://HOST:PORT, or `no_proxy` for hosts that need none".into()),
        }
    }
}

/// What identifies the version of a file that a server gave us, for asking whether it has changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Validators {
    /// The `ETag` header.
    pub etag: Option<String>,
    /// The `Last-Modified` header.
    pub last_modified: Option<String>,
}

/// An answer to a conditional request.
pub enum Answer {
    /// Our version is current.
    Unchanged,
    /// The file and what identifies this version.
    Body(Vec<u8>, Validators),
}

/// One attempt's failure: worth another attempt, or final.
enum Failure {
    Again(Reason),
    Final(Error),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self::Final(error.into())
    }
}

/// An HTTP client whose connections are kept and shared by threads.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    proxies: Arc<Proxies>,
}

impl Client {
    /// A client that trusts the host's certificate authorities, or a built-in set where the host has none,
    /// and uses the proxies that `access` names.
    pub fn new(access: &Access) -> Result<Self, Error> {
        let proxies = Proxies::of(|name| access.variable(name))?;
        Ok(Self::through(proxies, access.authorities()))
    }

    /// A client that uses these proxies, and the certificate authorities in the file `authorities`.
    pub(super) fn through(proxies: Proxies, authorities: Option<&Path>) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(roots(authorities).unwrap_or(RootCerts::WebPki))
            .build();
        let config = |proxy| {
            ureq::Agent::config_builder()
                .tls_config(tls.clone())
                .proxy(proxy)
                .http_status_as_error(false)
                .user_agent(concat!("imgtool/", env!("CARGO_PKG_VERSION")))
                .accept_encoding("identity")
                .max_redirects(5)
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(STALL_TIMEOUT))
                .timeout_per_read(Some(STALL_TIMEOUT))
                .build()
        };
        let proxies = Arc::new(proxies);
        Self {
            agent: connect::agent(Arc::clone(&proxies), config),
            proxies,
        }
    }

    /// Fetches a file of at most `cap` bytes into memory. `known` are the validators of our own version.
    pub fn get(&self, url: &str, cap: u64, known: &Validators) -> Result<Answer, Error> {
        if let Some(path) = local_path(url) {
            let file = open_local(url, path)?;
            let mut body = Vec::new();
            let read = file.take(cap + 1).read_to_end(&mut body);
            read.map_err(|source| Error::Local {
                url: url.to_owned(),
                source,
            })?;
            if body.len() as u64 > cap {
                return Err(Error::TooLong {
                    url: url.to_owned(),
                    cap,
                });
            }
            return Ok(Answer::Body(body, Validators::default()));
        }
        self.attempt(url, || self.get_once(url, cap, known))
    }

    /// Fetches `size` bytes into `partial`, continuing where an earlier attempt ended. `on_bytes` is called
    /// for each piece.
    pub fn get_into(
        &self,
        url: &str,
        size: u64,
        partial: &mut Partial,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Error> {
        if let Some(path) = local_path(url) {
            partial.restart()?;
            let mut file = open_local(url, path)?;
            return copy(url, &mut file, size, partial, on_bytes).map_err(|failure| match failure {
                Failure::Again(reason) => Error::Local {
                    url: url.to_owned(),
                    source: io::Error::other(reason),
                },
                Failure::Final(error) => error,
            });
        }
        self.attempt(url, || self.get_into_once(url, size, partial, on_bytes))
    }

    fn attempt<T>(&self, url: &str, mut once: impl FnMut() -> Result<T, Failure>) -> Result<T, Error> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match once() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(reason)) if attempt == ATTEMPTS => {
                    return Err(Error::Transfer {
                        url: url.to_owned(),
                        attempts: ATTEMPTS,
                        reason,
                        through: self.proxies.show(url),
                    });
                }
                Err(Failure::Again(_)) => std::thread::sleep(pause),
            }
            pause *= 2;
        }
        unreachable!("the last attempt returns")
    }

    fn get_once(&self, url: &str, cap: u64, known: &Validators) -> Result<Answer, Failure> {
        let mut request = self.agent.get(url);
        for (name, value) in [
            (IF_NONE_MATCH, &known.etag),
            (IF_MODIFIED_SINCE, &known.last_modified),
        ] {
            // What was damaged in the cache since is no header.
            if let Some(value) = value.as_deref().and_then(|v| HeaderValue::from_str(v).ok()) {
                request = request.header(name, value);
            }
        }
        let response = request.call().map_err(|e| Failure::Again(e.into()))?;
        if response.status() == StatusCode::NOT_MODIFIED && *known != Validators::default() {
            return Ok(Answer::Unchanged);
        }
        check_status(url, response.status())?;
        let header = |name: HeaderName| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let validators = Validators {
            etag: header(ETAG),
            last_modified: header(LAST_MODIFIED),
        };
        let expected = response.body().content_length();
        let mut body = Vec::new();
        let read = response
            .into_body()
            .into_reader()
            .take(cap + 1)
            .read_to_end(&mut body);
        read.map_err(|e| Failure::Again(e.into()))?;
        if body.len() as u64 > cap {
            return Err(Failure::Final(Error::TooLong {
                url: url.to_owned(),
                cap,
            }));
        }
        if expected.is_some_and(|n| n != body.len() as u64) {
            return Err(Failure::Again("the connection ended early".into()));
        }
        Ok(Answer::Body(body, validators))
    }

    fn get_into_once(
        &self,
        url: &str,
        size: u64,
        partial: &mut Partial,
        on_bytes: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Failure> {
        let mut have = partial.len()?;
        if have > size {
            partial.restart()?;
            have = 0;
        }
        if have == size && size > 0 {
            return Ok(());
        }
        let mut request = self.agent.get(url);
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
        }
        let response = request.call().map_err(|e| Failure::Again(e.into()))?;
        let continues = response.status() == StatusCode::PARTIAL_CONTENT
            && response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|range| range.to_str().ok())
                .is_some_and(|range| range.starts_with(&format!("bytes {have}-")));
        if have > 0 && !continues {
            partial.restart()?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                return Err(Failure::Again("the server cannot continue the transfer".into()));
            }
        }
        check_status(url, response.status())?;
        let begins = if continues { have } else { 0 };
        let found = response.body().content_length().map(|rest| begins + rest);
        if let Some(found) = found.filter(|found| *found != size) {
            partial.restart()?;
            return Err(Failure::Final(Error::OtherVersion {
                url: url.to_owned(),
                found,
                expected: size,
            }));
        }
        copy(
            url,
            &mut response.into_body().into_reader(),
            size,
            partial,
            on_bytes,
        )
    }
}

fn check_status(url: &str, status: StatusCode) -> Result<(), Failure> {
    let url = || url.to_owned();
    let code = status.as_u16();
    match code {
        200 | 206 => Ok(()),
        404 | 410 => Err(Failure::Final(Error::NotFound {
            url: url(),
            status: code,
        })),
        408 | 429 | 500.. => Err(Failure::Again(format!("the server answered HTTP {code}").into())),
        _ => Err(Failure::Final(Error::Refused {
            url: url(),
            status: code,
        })),
    }
}

/// Copies what is missing of `size` bytes, and not one more.
fn copy(
    url: &str,
    from: &mut impl Read,
    size: u64,
    partial: &mut Partial,
    on_bytes: &(dyn Fn(u64) + Sync),
) -> Result<(), Failure> {
    let mut have = partial.len()?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Again(e.into())),
        };
        have += n as u64;
        if have > size {
            partial.restart()?;
            return Err(Failure::Final(Error::TooLong {
                url: url.to_owned(),
                cap: size,
            }));
        }
        partial.append(&buffer[..n])?;
        on_bytes(n as u64);
    }
    match have == size {
        true => Ok(()),
        false => Err(Failure::Again(
            format!("the transfer ended after {have} of {size} bytes").into(),
        )),
    }
}

fn local_path(url: &str) -> Option<&str> {
    url.strip_prefix("file://")
}

fn open_local(url: &str, path: &str) -> Result<File, Error> {
    File::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoFile { url: url.to_owned() },
        _ => Error::Local {
            url: url.to_owned(),
            source,
        },
    })
}

/// The certificate authorities in a file, Debian's bundle if there is none.
fn roots(file: Option<&Path>) -> Option<RootCerts> {
    let file = file.unwrap_or(Path::new("/etc/ssl/certs/ca-certificates.crt"));
    let pem = std::fs::read(file).ok()?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    (!certificates.is_empty()).then(|| RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
