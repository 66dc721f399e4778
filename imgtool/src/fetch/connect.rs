//! Connections by way of proxies, as parts of the HTTP library: where it resolves a name, connects, and sends
//! a request.

use std::io;
use std::sync::Arc;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport,
};
use ureq::{Agent, Error};

use super::proxy::{Proxies, Server};

/// An agent that reaches servers by way of `proxies`. `config` makes its configuration, for the proxy that
/// tunnels go through.
pub fn agent(proxies: Arc<Proxies>, config: impl Fn(Option<ureq::Proxy>) -> Config) -> Agent {
    let any_https = Uri::from_static("https://any.invalid/");
    let https = proxies.serving(&any_https).map(|server| server.proxy.clone());
    let via = Via {
        proxies: Arc::clone(&proxies),
        plain: DefaultConnector::new(),
        tunnel: config(https),
    };
    let names = Names {
        proxies,
        plain: DefaultResolver::default(),
    };
    Agent::with_parts(config(None), via, names)
}

/// Resolves names, but not those of servers that a proxy is asked for: it knows them, this machine maybe not.
#[derive(Debug)]
struct Names {
    proxies: Arc<Proxies>,
    plain: DefaultResolver,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        match self.proxies.serving(uri) {
            Some(_) => Ok(self.empty()),
            None => self.plain.resolve(uri, config, timeout),
        }
    }
}

/// Connects to a server, or to its proxy.
#[derive(Debug)]
struct Via {
    proxies: Arc<Proxies>,
    plain: DefaultConnector,
    /// The configuration of connections through a tunnel.
    tunnel: Config,
}

impl Connector<()> for Via {
    type Out = Box<dyn Transport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(server) = self.proxies.serving(details.uri) else {
            return self.plain.connect(details, chained);
        };
        if details.needs_tls() {
            let tunnelled = with(details, details.uri, details.addrs.clone(), &self.tunnel);
            return self.plain.connect(&tunnelled, None);
        }
        let uri = server.proxy.uri();
        let addresses = details.resolver.resolve(uri, details.config, details.timeout)?;
        let to_proxy = with(details, uri, addresses, details.config);
        let transport = self.plain.connect(&to_proxy, None)?;
        Ok(transport.map(|inner| Box::new(Forwarded::new(inner, details.uri, server)) as Box<dyn Transport>))
    }
}

fn with<'a>(
    details: &ConnectionDetails<'a>,
    uri: &'a Uri,
    addrs: ResolvedSocketAddrs,
    config: &'a Config,
) -> ConnectionDetails<'a> {
    ConnectionDetails {
        uri,
        addrs,
        config,
        request_level: details.request_level,
        resolver: details.resolver,
        now: details.now,
        timeout: details.timeout,
        current_time: details.current_time.clone(),
        run_connector: details.run_connector.clone(),
        register_shutdown: details.register_shutdown.clone(),
    }
}

/// A connection to a proxy that forwards requests to one server.
#[derive(Debug)]
struct Forwarded {
    inner: Box<dyn Transport>,
    /// What comes before the path: `http://server`.
    origin: String,
    /// Header lines for the proxy.
    headers: String,
}

impl Forwarded {
    /// How a request begins that has no body: every one of ours.
    const METHOD: &'static [u8] = b"GET ";

    fn new(inner: Box<dyn Transport>, uri: &Uri, server: &Server) -> Self {
        let authorization = server.authorization.as_ref();
        Self {
            inner,
            origin: format!(
                "http://{}",
                uri.authority().map_or("", |authority| authority.as_str())
            ),
            headers: authorization
                .map_or_else(String::new, |value| format!("Proxy-Authorization: {value}\r\n")),
        }
    }

    /// The head of a request as the proxy wants it; `None` for what is not the beginning of one.
    fn rewritten(&self, head: &[u8]) -> Option<Vec<u8>> {
        let rest = head
            .strip_prefix(Self::METHOD)
            .filter(|rest| rest.starts_with(b"/"))?;
        let line = rest.windows(2).position(|pair| pair == b"\r\n")? + 2;
        let parts = [
            Self::METHOD,
            self.origin.as_bytes(),
            &rest[..line],
            self.headers.as_bytes(),
            &rest[line..],
        ];
        Some(parts.concat())
    }
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let head = self.inner.buffers().output()[..amount].to_vec();
        let Some(head) = self.rewritten(&head) else {
            return self.inner.transmit_output(amount, timeout);
        };
        let output = self.inner.buffers().output();
        let room = output.get_mut(..head.len());
        room.ok_or_else(|| Error::Io(io::Error::other("the request is too long for a proxy")))?
            .copy_from_slice(&head);
        self.inner.transmit_output(head.len(), timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
