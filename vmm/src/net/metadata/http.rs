//! The HTTP/1.1 of the service: requests from untrusted bytes, answers by the rules of IMDSv2.

use super::documents::{InstanceDocuments, Tree, look_up};
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

/// An answer on its way.
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
    tree: Tree,
    tokens: Tokens,
}

/// A request's head, borrowed from its bytes.
struct Request<'a> {
    method: &'a str,
    path: &'a str,
    headers: Vec<(String, &'a str)>,
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
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
            tree: documents.into_tree(),
            tokens: Tokens::new(clock),
        }
    }

    /// Takes one whole request from the front of `bytes` and answers it; `None` when there is no whole one yet.
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
        let is_put = request.method == "PUT";
        let mut reply = answer(request.method, self.reply(&request), close);
        reply.hop_limit = is_put.then_some(1);
        Some(reply)
    }

    fn reply(&self, request: &Request<'_>) -> Reply {
        let path = request
            .path
            .split(['?', '#'])
            .next()
            .unwrap_or_default()
            .trim_start_matches('/');
        match request.method {
            "PUT" if path == "latest/api/token" => self.token(request),
            "PUT" => Reply::status("404 Not Found"),
            "GET" | "HEAD" => self.get(request, path),
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

fn take_all(bytes: &mut Vec<u8>) {
    bytes.clear();
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn parse(head: &[u8]) -> Option<Request<'_>> {
    let mut lines = std::str::from_utf8(head).ok()?.trim_end().split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, path, version) = (first.next()?, first.next()?, first.next()?);
    if first.next().is_some() || !version.starts_with("HTTP/1.") || !path.starts_with('/') {
        return None;
    }
    let headers = lines.map(|line| {
        line.split_once(':')
            .map(|(key, value)| (key.to_ascii_lowercase(), value.trim()))
    });
    let headers = headers.collect::<Option<Vec<_>>>()?;
    (headers.len() <= HEADERS_CAP).then_some(Request {
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
        "HTTP/1.1 {status}\r\nServer: EC2ws\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n{headers}\r\n",
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
mod tests {
    use super::*;
    use crate::net::metadata::PublicKey;

    fn service() -> Service {
        let documents = InstanceDocuments {
            ami_id: "ami-0123456789abcdef0".to_owned(),
            instance_id: "i-0123456789abcdef0".to_owned(),
            instance_type: "kiln.1x512".to_owned(),
            local_hostname: "ip-10-0-2-15".to_owned(),
            local_ipv4: Some([10, 0, 2, 15].into()),
            prefix: 24,
            mac: [2, 0, 0, 0, 0, 0xa],
            public_keys: vec![PublicKey {
                name: "mine".to_owned(),
                key: "ssh-ed25519 AAAA me".to_owned(),
            }],
            block_device_mapping: vec![("root".to_owned(), "/dev/vda".to_owned())],
            reservation_id: "r-1".to_owned(),
            architecture: "x86_64".to_owned(),
            tags: [
                ("Name".to_owned(), "web".to_owned()),
                ("a/b".to_owned(), "no".to_owned()),
            ]
            .into(),
            user_data: Some(b"#!/bin/sh\n\xff".to_vec()),
            ..InstanceDocuments::default()
        };
        Service::new(documents, Clock::monotonic())
    }

    /// Status and body.
    fn ask(service: &mut Service, request: &str) -> (String, Vec<u8>) {
        let mut bytes = request.replace('\n', "\r\n").into_bytes();
        let answer = service.take_request(&mut bytes).expect("a whole request").bytes;
        assert!(bytes.is_empty(), "the request was not taken whole");
        let head = find(&answer, b"\r\n\r\n").unwrap();
        let status = String::from_utf8(answer[9..12].to_vec()).unwrap();
        (status, answer[head + 4..].to_vec())
    }

    fn token(service: &mut Service) -> String {
        let (status, body) = ask(
            service,
            &format!("PUT /latest/api/token HTTP/1.1\n{TTL_HEADER}: 60\n\n"),
        );
        assert_eq!(status, "200");
        String::from_utf8(body).unwrap()
    }

    fn get(service: &mut Service, path: &str) -> (String, String) {
        let token = token(service);
        let (status, body) = ask(
            service,
            &format!("GET {path} HTTP/1.1\n{TOKEN_HEADER}: {token}\n\n"),
        );
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[test]
    fn documents_are_found_and_folders_listed() {
        let mut service = service();
        let cases = [
            ("/latest/meta-data/instance-id", "i-0123456789abcdef0"),
            ("/2021-03-23/meta-data/ami-id", "ami-0123456789abcdef0"),
            ("/latest/meta-data/public-keys/", "0=mine"),
            ("/latest/meta-data/public-keys/0/", "openssh-key"),
            (
                "/latest/meta-data/public-keys/0/openssh-key",
                "ssh-ed25519 AAAA me\n",
            ),
            ("/latest/meta-data/tags/instance/", "Name"),
            ("/latest/meta-data/tags/instance/Name", "web"),
            ("/latest/meta-data/network/interfaces/macs", "02:00:00:00:00:0a/"),
            (
                "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:0a/subnet-ipv4-cidr-block",
                "10.0.2.0/24",
            ),
            ("/latest/meta-data/block-device-mapping/root", "/dev/vda"),
            ("/latest", "dynamic/\nmeta-data/\nuser-data"),
        ];
        for (path, expected) in cases {
            assert_eq!(
                get(&mut service, path),
                ("200".to_owned(), expected.to_owned()),
                "{path}"
            );
        }
        let (_, listing) = get(&mut service, "/latest/meta-data/");
        for name in [
            "ami-id",
            "block-device-mapping/",
            "public-keys/",
            "placement/",
            "mac",
        ] {
            assert!(
                listing.lines().any(|line| line == name),
                "{name} is missing in {listing}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_not_found() {
        let mut service = service();
        for path in [
            "/latest/meta-data/iam",
            "/latest/meta-data/public-ipv4",
            "/3000-01-01/meta-data/",
            "/latest/nothing",
        ] {
            assert_eq!(get(&mut service, path).0, "404", "{path}");
        }
    }

    #[test]
    fn user_data_comes_as_it_was_given() {
        let mut service = service();
        let token = token(&mut service);
        let (status, body) = ask(
            &mut service,
            &format!("GET /latest/user-data HTTP/1.1\n{TOKEN_HEADER}: {token}\n\n"),
        );
        assert_eq!(
            (status.as_str(), body.as_slice()),
            ("200", b"#!/bin/sh\n\xff".as_slice())
        );
    }

    #[test]
    fn nothing_without_a_token() {
        let mut service = service();
        for headers in ["", "x-aws-ec2-metadata-token: forged\n"] {
            let (status, _) = ask(
                &mut service,
                &format!("GET /latest/meta-data/ami-id HTTP/1.1\n{headers}\n"),
            );
            assert_eq!(status, "401");
        }
    }

    #[test]
    fn tokens_have_their_rules() {
        let mut service = service();
        for (headers, expected) in [
            ("", "400"),
            (&*format!("{TTL_HEADER}: 0\n"), "400"),
            (&*format!("{TTL_HEADER}: 21601\n"), "400"),
            (&*format!("{TTL_HEADER}: 21600\n"), "200"),
            (&*format!("{TTL_HEADER}: 60\nX-Forwarded-For: 192.0.2.1\n"), "403"),
        ] {
            assert_eq!(
                ask(
                    &mut service,
                    &format!("PUT /latest/api/token HTTP/1.1\n{headers}\n")
                )
                .0,
                expected,
                "{headers}"
            );
        }
        let mut bytes = format!("PUT /latest/api/token HTTP/1.1\r\n{TTL_HEADER}: 1\r\n\r\n").into_bytes();
        assert_eq!(service.take_request(&mut bytes).unwrap().hop_limit, Some(1));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let mut service = service();
        for (request, expected) in [
            ("\n\n", "400"),
            ("GET\n\n", "400"),
            ("GET x HTTP/1.1\n\n", "400"),
            ("GET / HTTP/9\n\n", "400"),
            ("GET / HTTP/1.1\nno colon\n\n", "400"),
            ("DELETE / HTTP/1.1\n\n", "405"),
            ("PUT / HTTP/1.1\nContent-Length: 99999999999999999999\n\n", "413"),
            ("PUT / HTTP/1.1\nTransfer-Encoding: chunked\n\n", "413"),
        ] {
            assert_eq!(ask(&mut service, request).0, expected, "{request}");
        }
        let mut endless = vec![b'a'; HEAD_CAP + 1];
        assert!(service.take_request(&mut endless).unwrap().close);
        assert!(service.take_request(&mut b"GET / HT".to_vec()).is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..500), cut in 0_usize..200) {
            let mut service = service();
            let mut dressed = b"GET /latest/meta-data/ HTTP/1.1\r\nContent-Length: 5\r\n\r\n".to_vec();
            dressed.truncate(cut);
            dressed.append(&mut bytes);
            while service.take_request(&mut dressed).is_some() {}
        }
    }
}
