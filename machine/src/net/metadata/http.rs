//! The HTTP/1.1 of the service: requests from untrusted bytes, answers by the rules of IMDSv2.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::documents::{InstanceDocuments, Tree, look_up, replace_tags};
use super::token::{TTL_MAX, Tokens};
use crate::net::clock::Clock;

/// Bytes of a request's head. EC2's clients send a few hundred.
const HEAD_CAP: usize = 8 * 1024;

/// Bytes of a request's body. No request needs one; a small one is skipped.
const BODY_CAP: usize = 1024;

/// Headers in a request.
const HEADERS_CAP: usize = 32;

/// Versions of the interface that EC2 has had; their paths are the same here.
const VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "latest",
];

const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";

/// An answer to be sent.
pub struct Answer {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Hop limit of the packets that carry it: a token does not leave the instance.
    pub hop_limit: Option<u8>,
    /// The connection ends after it.
    pub close: bool,
}

/// The service: documents and tokens.
pub struct Service {
    /// Made when a guest first asks: a launch does not wait for it.
    tree: LazyLock<Tree, Box<dyn FnOnce() -> Tree + Send>>,
    tags: LiveTags,
    tokens: Tokens,
}

/// Changes the tags that a running guest reads, from any thread.
#[derive(Debug, Clone, Default)]
pub struct LiveTags(Arc<Mutex<Option<BTreeMap<String, String>>>>);

impl LiveTags {
    /// The guest's next request finds these.
    pub fn set(&self, tags: BTreeMap<String, String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(tags);
    }

    /// What was set since this was last called.
    fn take(&self) -> Option<BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A request's head, borrowed from its bytes.
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, &'a str)>,
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value)
    }
}

/// Status line, extra headers and body of an answer.
struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
}

impl Reply {
    fn status(status: &'static str) -> Reply {
        Reply {
            status,
            headers: String::new(),
            body: Vec::new(),
        }
    }
}

impl Service {
    /// Serves `documents`, with tokens that live on `clock`.
    pub fn new(documents: InstanceDocuments, clock: Clock) -> Service {
        Service {
            tree: LazyLock::new(Box::new(|| documents.into_tree())),
            tags: LiveTags::default(),
            tokens: Tokens::new(clock),
        }
    }

    /// What changes the tags.
    pub fn tags(&self) -> LiveTags {
        self.tags.clone()
    }

    /// Takes one whole request from the front of `bytes` and answers it; `None` when there is no whole one
    /// yet.
    pub fn take_request(&mut self, bytes: &mut Vec<u8>) -> Option<Answer> {
        let Some(head_len) = find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
            let refused = || answer("GET", Reply::status("431 Request Header Fields Too Large"), true);
            return (bytes.len() > HEAD_CAP)
                .then(|| take_all(bytes))
                .map(|()| refused());
        };
        let head = bytes[..head_len].to_vec();
        let Some(request) = parse(&head).filter(|_| head_len <= HEAD_CAP) else {
            take_all(bytes);
            return Some(answer("GET", Reply::status("400 Bad Request"), true));
        };
        let body_len = request
            .header("content-length")
            .map_or(Some(0), |value| value.parse::<usize>().ok());
        match body_len {
            Some(length) if length <= BODY_CAP && request.header("transfer-encoding").is_none() => {
                if bytes.len() < head_len + length {
                    return None;
                }
                bytes.drain(..head_len + length);
            }
            _ => {
                take_all(bytes);
                return Some(answer(
                    request.method,
                    Reply::status("413 Content Too Large"),
                    true,
                ));
            }
        }
        let close = request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if let Some(tags) = self.tags.take() {
            replace_tags(LazyLock::force_mut(&mut self.tree), &tags);
        }
        let is_put = request.method == "PUT";
        let mut reply = answer(request.method, self.reply(&request), close);
        reply.hop_limit = is_put.then_some(1);
        Some(reply)
    }

    fn reply(&self, request: &Request<'_>) -> Reply {
        let Some(path) = normalize(request.path) else {
            return Reply::status("400 Bad Request");
        };
        match request.method {
            "PUT" if path == "latest/api/token" => self.token(request),
            "PUT" => Reply::status("404 Not Found"),
            "GET" | "HEAD" => self.get(request, &path),
            _ => Reply {
                headers: "Allow: GET, HEAD, PUT\r\n".to_owned(),
                ..Reply::status("405 Method Not Allowed")
            },
        }
    }

    fn token(&self, request: &Request<'_>) -> Reply {
        if request.header("x-forwarded-for").is_some() {
            // A proxy in the guest must not fetch tokens for others.
            return Reply::status("403 Forbidden");
        }
        let ttl = request
            .header(TTL_HEADER)
            .and_then(|value| value.trim().parse::<u64>().ok());
        match ttl {
            Some(ttl) if (1..=TTL_MAX).contains(&ttl) => Reply {
                status: "200 OK",
                headers: format!("X-Aws-Ec2-Metadata-Token-Ttl-Seconds: {ttl}\r\n"),
                body: self.tokens.issue(ttl).into_bytes(),
            },
            _ => Reply::status("400 Bad Request"),
        }
    }

    fn get(&self, request: &Request<'_>, path: &str) -> Reply {
        if !request
            .header(TOKEN_HEADER)
            .is_some_and(|token| self.tokens.accepts(token.trim()))
        {
            return Reply::status("401 Unauthorized");
        }
        let found = match path.split_once('/').unwrap_or((path, "")) {
            ("", _) => Some(VERSIONS.join("\n").into_bytes()),
            (version, below) if VERSIONS.contains(&version) => look_up(&self.tree, below),
            _ => None,
        };
        found.map_or_else(
            || Reply::status("404 Not Found"),
            |body| Reply {
                status: "200 OK",
                headers: String::new(),
                body,
            },
        )
    }
}

/// A request's path as the tree has it: without its query, percent-encoding (clients encode the colons of a
/// MAC address), and slashes that separate nothing.
fn normalize(path: &str) -> Option<String> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut bytes = path.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?].map(|digit| char::from(digit).to_digit(16));
            decoded.push(u8::try_from(digits[0]? * 16 + digits[1]?).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    let decoded = String::from_utf8(decoded).ok()?;
    let names: Vec<_> = decoded.split('/').filter(|name| !name.is_empty()).collect();
    Some(names.join("/"))
}

fn take_all(bytes: &mut Vec<u8>) {
    bytes.clear();
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Reads the head that `head` is, and is all of; `None` when it is not such a head.
fn parse(head: &[u8]) -> Option<Request<'_>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_CAP];
    let mut parsed = httparse::Request::new(&mut headers);
    if parsed.parse(head) != Ok(httparse::Status::Complete(head.len())) {
        return None;
    }
    let (method, path) = (parsed.method?, parsed.path?);
    let headers = parsed.headers.iter().map(|header| {
        let value = std::str::from_utf8(header.value).ok()?;
        Some((header.name, value.trim()))
    });
    let headers = headers.collect::<Option<Vec<_>>>()?;
    path.starts_with('/').then_some(Request {
        method,
        path,
        headers,
    })
}

fn answer(method: &str, reply: Reply, close: bool) -> Answer {
    let Reply {
        status,
        headers,
        body,
    } = reply;
    let connection = if close { "close" } else { "keep-alive" };
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nServer: EC2ws\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: {connection}\r\n{headers}\r\n",
        body.len()
    )
    .into_bytes();
    if method != "HEAD" {
        bytes.extend_from_slice(&body);
    }
    Answer {
        bytes,
        hop_limit: None,
        close,
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
