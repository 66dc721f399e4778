//! As much of HTTP/1.1 (RFC 9112) as the control socket needs, each input with a cap: one request or response
//! per connection, bodies with `Content-Length` only, and `Upgrade` to a plain stream. `httparse` reads the
//! heads; what a head may ask for is decided here.

use std::io::{self, Read, Write};

use displaydoc::Display;

/// Longest head: our own requests take about 100 bytes, curl's 150.
pub const MAX_HEAD: usize = 8 << 10;
/// Longest body of a request or response: the longest one is an instance's record.
pub const MAX_BODY: usize = 1 << 20;
/// Most header lines looked at.
const MAX_HEADERS: usize = 64;
/// The protocol that an upgraded connection speaks: bytes, both ways, until one side closes.
pub const STREAM: &str = "kiln-stream";

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method, as sent.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// What follows the `?`, if anything.
    pub query: Option<String>,
    /// Whether the peer offers to switch to [`STREAM`].
    pub upgrade: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// The status and body of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines besides those that every response has. Those of a response that was received are not
    /// kept.
    pub headers: Vec<(&'static str, String)>,
    /// The body; JSON throughout.
    pub body: Vec<u8>,
}

/// What is wrong with a message. [`status`](Malformed::status) is what a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Display, thiserror::Error)]
pub enum Malformed {
    /// the first line is not one of HTTP/1.1
    FirstLine,
    /// a header line is malformed
    Header,
    /// the head is longer than 8192 bytes or has more than 64 lines
    LongHead,
    /// the body is longer than 1048576 bytes
    LongBody,
    /// a transfer encoding is not understood; send Content-Length
    Encoding,
}

impl Malformed {
    /// The status code of the answer.
    pub const fn status(self) -> u16 {
        match self {
            Malformed::FirstLine | Malformed::Header => 400,
            Malformed::LongBody => 413,
            Malformed::LongHead => 431,
            Malformed::Encoding => 501,
        }
    }
}

impl From<httparse::Error> for Malformed {
    fn from(error: httparse::Error) -> Malformed {
        match error {
            httparse::Error::Token | httparse::Error::Version | httparse::Error::Status => {
                Malformed::FirstLine
            }
            httparse::Error::TooManyHeaders => Malformed::LongHead,
            httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine => {
                Malformed::Header
            }
        }
    }
}

/// The bytes that a head may be in. An empty line before it, which the parser would skip, is none of ours.
fn head(bytes: &[u8]) -> Result<&[u8], Malformed> {
    match bytes.first() {
        Some(b'\r' | b'\n') => Err(Malformed::FirstLine),
        _ => Ok(&bytes[..bytes.len().min(MAX_HEAD)]),
    }
}

/// Where the head ends, or `None` if it is not all there yet.
fn end_of(parsed: httparse::Status<usize>, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match parsed {
        httparse::Status::Complete(end) => Ok(Some(end)),
        httparse::Status::Partial if bytes.len() >= MAX_HEAD => Err(Malformed::LongHead),
        httparse::Status::Partial => Ok(None),
    }
}

/// The headers that matter here.
#[derive(Default)]
struct Fields {
    /// Bytes of the body.
    length: usize,
    /// Whether [`STREAM`] is among the protocols offered.
    upgrade: bool,
}

impl Fields {
    fn of(headers: &[httparse::Header<'_>]) -> Result<Fields, Malformed> {
        let mut length = None;
        let mut upgrade = false;
        for httparse::Header { name, value } in headers {
            if name.eq_ignore_ascii_case("content-length") {
                // Two lengths are an attack (RFC 9112 §6.3).
                let here = content_length(value)?;
                if length.replace(here).is_some_and(|other| other != here) {
                    return Err(Malformed::Header);
                }
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Malformed::Encoding);
            } else if name.eq_ignore_ascii_case("upgrade") {
                upgrade |= value.eq_ignore_ascii_case(STREAM.as_bytes());
            }
        }
        let length = length.unwrap_or(0);
        if length > MAX_BODY as u64 {
            return Err(Malformed::LongBody);
        }
        Ok(Fields {
            length: length as usize,
            upgrade,
        })
    }
}

/// Digits and no sign, which `parse` alone would take. Digits that do not fit are a long body.
fn content_length(value: &[u8]) -> Result<u64, Malformed> {
    let text = std::str::from_utf8(value).map_err(|_| Malformed::Header)?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Malformed::Header);
    }
    Ok(text.parse().unwrap_or(u64::MAX))
}

/// Reads a request out of `bytes`; `None` while more is needed. With the request comes its length in bytes.
pub fn parse_request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let Some(start) = end_of(parsed.parse(head(bytes)?)?, bytes)? else {
        return Ok(None);
    };
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let upper = method.bytes().all(|b| b.is_ascii_uppercase());
    if !upper || !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Malformed::FirstLine);
    }
    let Fields { length, upgrade } = Fields::of(parsed.headers)?;
    let Some(body) = bytes.get(start..start + length) else {
        return Ok(None);
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let request = Request {
        method: method.into(),
        path: path.into(),
        query,
        upgrade,
        body: body.into(),
    };
    Ok(Some((request, start + length)))
}

/// Reads a response out of `bytes`; `None` while more is needed. With the response comes its length in bytes.
pub fn parse_response(bytes: &[u8]) -> Result<Option<(Response, usize)>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    let Some(start) = end_of(parsed.parse(head(bytes)?)?, bytes)? else {
        return Ok(None);
    };
    let (Some(1), Some(status)) = (parsed.version, parsed.code) else {
        return Err(Malformed::FirstLine);
    };
    let Fields { length, .. } = Fields::of(parsed.headers)?;
    let Some(body) = bytes.get(start..start + length) else {
        return Ok(None);
    };
    let response = Response {
        status,
        headers: Vec::new(),
        body: body.into(),
    };
    Ok(Some((response, start + length)))
}

/// Reads from `stream` until `parse` has its message. Returns it with what came after it. `Ok(Err(_))` is the
/// peer's fault, `Err(_)` the stream's.
pub fn receive<T>(
    stream: &mut impl Read,
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, Malformed>,
) -> io::Result<Result<(T, Vec<u8>), Malformed>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match parse(&bytes) {
            Ok(Some((message, used))) => return Ok(Ok((message, bytes.split_off(used)))),
            Ok(None) => {}
            Err(malformed) => return Ok(Err(malformed)),
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Writes a request.
pub fn send_request(
    stream: &mut impl Write,
    method: &str,
    target: &str,
    upgrade: bool,
    body: &[u8],
) -> io::Result<()> {
    let upgrade = if upgrade {
        format!("Connection: Upgrade\r\nUpgrade: {STREAM}\r\n")
    } else {
        String::new()
    };
    let length = body.len();
    let mut text =
        format!("{method} {target} HTTP/1.1\r\nHost: kiln\r\n{upgrade}Content-Length: {length}\r\n\r\n")
            .into_bytes();
    text.extend_from_slice(body);
    stream.write_all(&text)
}

/// Writes a response with a JSON body and says that the connection ends with it.
pub fn send_response(stream: &mut impl Write, response: &Response) -> io::Result<()> {
    let Response {
        status,
        headers,
        body,
    } = response;
    let headers: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let mut text = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}\
         Connection: close\r\n\r\n",
        phrase(*status),
        body.len()
    )
    .into_bytes();
    text.extend_from_slice(body);
    stream.write_all(&text)
}

/// Says that the connection is a plain stream from here on.
pub fn send_upgrade(stream: &mut impl Write) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {STREAM}\r\n\r\n"
    )
}

const fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        413 => "Content Too Large",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(text: &str) -> Request {
        parse_request(text.as_bytes()).unwrap().unwrap().0
    }

    #[test]
    fn a_request_round_trips() {
        let mut wire = Vec::new();
        send_request(&mut wire, "POST", "/v1/instance/stop?x=1", true, b"{\"time\":3}").unwrap();
        let (request, used) = parse_request(&wire).unwrap().unwrap();
        assert_eq!(used, wire.len());
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("POST", "/v1/instance/stop")
        );
        assert_eq!((request.query.as_deref(), request.upgrade), (Some("x=1"), true));
        assert_eq!(request.body, b"{\"time\":3}");

        let response = Response {
            status: 409,
            headers: Vec::new(),
            body: b"{}".to_vec(),
        };
        let mut wire = Vec::new();
        send_response(&mut wire, &response).unwrap();
        wire.extend_from_slice(b"rest");
        let (parsed, rest) = receive(&mut wire.as_slice(), parse_response).unwrap().unwrap();
        assert_eq!((parsed, rest.as_slice()), (response, &b"rest"[..]));
    }

    #[test]
    fn a_request_of_curl_is_parsed() {
        let request = whole(
            "GET /v1/instance HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\nAccept: */*\r\n\r\n",
        );
        assert_eq!(
            (request.method.as_str(), request.body.len(), request.upgrade),
            ("GET", 0, false)
        );
    }

    #[test]
    fn every_prefix_of_a_request_asks_for_more() {
        let text = b"POST /x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        for end in 0..text.len() {
            assert_eq!(parse_request(&text[..end]), Ok(None), "{end}");
        }
        assert!(parse_request(text).unwrap().is_some());
    }

    #[test]
    fn a_malformed_request_is_refused_with_its_defect() {
        for (text, expected) in [
            ("GET / HTTP/2\r\n\r\n", Malformed::FirstLine),
            ("GET /\r\n\r\n", Malformed::FirstLine),
            ("GET  / HTTP/1.1\r\n\r\n", Malformed::FirstLine),
            ("get / HTTP/1.1\r\n\r\n", Malformed::FirstLine),
            ("GET x HTTP/1.1\r\n\r\n", Malformed::FirstLine),
            ("\r\n\r\n", Malformed::FirstLine),
            ("GET / HTTP/1.1\r\nno colon\r\n\r\n", Malformed::Header),
            ("GET / HTTP/1.1\r\nName : x\r\n\r\n", Malformed::Header),
            ("GET / HTTP/1.1\r\n folded: x\r\n\r\n", Malformed::Header),
            ("GET / HTTP/1.1\r\nA: x\0y\r\n\r\n", Malformed::Header),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", Malformed::Header),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", Malformed::Header),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                Malformed::Header,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                Malformed::LongBody,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n",
                Malformed::LongBody,
            ),
            (
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Malformed::Encoding,
            ),
        ] {
            assert_eq!(parse_request(text.as_bytes()), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn the_caps_are_those_that_the_messages_name() {
        for (malformed, caps) in [
            (Malformed::LongHead, &[MAX_HEAD, MAX_HEADERS][..]),
            (Malformed::LongBody, &[MAX_BODY]),
        ] {
            let text = malformed.to_string();
            assert!(
                caps.iter().all(|cap| text.contains(&format!(" {cap} "))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_head_without_end_is_cut_off() {
        let long = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &vec![b'x'; MAX_HEAD]].concat();
        assert_eq!(parse_request(&long), Err(Malformed::LongHead));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(parse_request(many.as_bytes()), Err(Malformed::LongHead));
        let endless = io::repeat(b'x');
        assert_eq!(
            receive(&mut endless.take(1 << 30), parse_request)
                .unwrap()
                .unwrap_err(),
            Malformed::LongHead
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_consume_more_than_was_given(
            bytes in proptest::collection::vec(any::<u8>(), 0..600)
        ) {
            if let Ok(Some((_, used))) = parse_request(&bytes) {
                prop_assert!(used <= bytes.len());
            }
            let _ = parse_response(&bytes);
        }

        #[test]
        fn mutations_of_a_request_give_an_answer(at in 0usize..70, value: u8) {
            let head = "POST /v1/instance/stop HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n";
            let mut text = format!("{head}{{}}").into_bytes();
            let at = at % text.len();
            text[at] = value;
            if let Ok(Some((_, used))) = parse_request(&text) {
                prop_assert!(used <= text.len());
            }
        }
    }
}
