//! As much of HTTP/1.1 (RFC 9112) as the control socket needs, each input with a cap: one request or response per
//! connection, bodies with `Content-Length` only, and `Upgrade` to a plain stream.

use std::io::{self, Read, Write};

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
    /// Header lines besides those that every response has. Those of a response that was received are not kept.
    pub headers: Vec<(&'static str, String)>,
    /// The body; JSON throughout.
    pub body: Vec<u8>,
}

/// What is wrong with a message. [`status`](Malformed::status) is what a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// the first line is not one of HTTP/1.1
    #[error("the first line is not one of HTTP/1.1")]
    FirstLine,
    /// a header line is malformed
    #[error("a header line is malformed")]
    Header,
    /// the head is longer than {MAX_HEAD} bytes or has more than {MAX_HEADERS} lines
    #[error("the head is longer than {MAX_HEAD} bytes or has more than {MAX_HEADERS} lines")]
    LongHead,
    /// the body is longer than {MAX_BODY} bytes
    #[error("the body is longer than {MAX_BODY} bytes")]
    LongBody,
    /// a transfer encoding is not understood
    #[error("a transfer encoding is not understood; send Content-Length")]
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

/// A message's first line and the headers that matter here.
struct Head {
    first: String,
    length: usize,
    upgrade: bool,
    /// Where the body begins.
    end: usize,
}

/// Reads a head out of `bytes`, or `None` if it is not all there yet.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let Some(end) = bytes.windows(4).take(MAX_HEAD).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() >= MAX_HEAD {
            Err(Malformed::LongHead)
        } else {
            Ok(None)
        };
    };
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed::Header)?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let mut length = None;
    let mut upgrade = false;
    for (count, line) in lines.enumerate() {
        if count >= MAX_HEADERS {
            return Err(Malformed::LongHead);
        }
        let (name, value) = line.split_once(':').ok_or(Malformed::Header)?;
        // No space before the colon and no folded lines: both have been used to smuggle requests (RFC 9112 §5.1, §5.2).
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_graphic())
            || value.bytes().any(|b| b.is_ascii_control() && b != b'\t')
        {
            return Err(Malformed::Header);
        }
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            // `parse` alone would take a sign.
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            let n = value.parse::<u64>().ok().filter(|_| digits);
            // Digits that do not fit are a long body; two lengths are an attack.
            let n = if digits {
                n.unwrap_or(u64::MAX)
            } else {
                return Err(Malformed::Header);
            };
            if length.replace(n).is_some_and(|other| other != n) {
                return Err(Malformed::Header);
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Malformed::Encoding);
        } else if name.eq_ignore_ascii_case("upgrade") {
            upgrade |= value.eq_ignore_ascii_case(STREAM);
        }
    }
    let length = length.unwrap_or(0);
    if length > MAX_BODY as u64 {
        return Err(Malformed::LongBody);
    }
    Ok(Some(Head {
        first,
        length: length as usize,
        upgrade,
        end: end + 4,
    }))
}

/// Reads a request out of `bytes`; `None` while more is needed. With the request comes its length in bytes.
pub fn parse_request(bytes: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    let Some(head) = parse_head(bytes)? else {
        return Ok(None);
    };
    let mut words = head.first.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed::FirstLine);
    };
    let printable = target.bytes().all(|b| b.is_ascii_graphic());
    if method.is_empty()
        || !method.bytes().all(|b| b.is_ascii_uppercase())
        || !target.starts_with('/')
        || !printable
    {
        return Err(Malformed::FirstLine);
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let end = head.end + head.length;
    let Some(body) = bytes.get(head.end..end) else {
        return Ok(None);
    };
    let request = Request {
        method: method.into(),
        path: path.into(),
        query,
        upgrade: head.upgrade,
        body: body.into(),
    };
    Ok(Some((request, end)))
}

/// Reads a response out of `bytes`; `None` while more is needed. With the response comes its length in bytes.
pub fn parse_response(bytes: &[u8]) -> Result<Option<(Response, usize)>, Malformed> {
    let Some(head) = parse_head(bytes)? else {
        return Ok(None);
    };
    let status = head
        .first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.split(' ').next())
        .filter(|code| code.len() == 3)
        .and_then(|code| code.parse().ok())
        .ok_or(Malformed::FirstLine)?;
    let end = head.end + head.length;
    let Some(body) = bytes.get(head.end..end) else {
        return Ok(None);
    };
    Ok(Some((
        Response {
            status,
            headers: Vec::new(),
            body: body.into(),
        },
        end,
    )))
}

/// Reads from `stream` until `parse` has its message. Returns it with what came after it. `Ok(Err(_))` is the peer's
/// fault, `Err(_)` the stream's.
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
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{headers}Connection: close\r\n\r\n",
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
    fn what_is_sent_is_what_is_parsed() {
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
    fn curl_is_understood() {
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
    fn the_malformed_is_refused_by_name() {
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
        fn any_bytes_give_an_answer_and_never_more_than_was_given(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Some((_, used))) = parse_request(&bytes) {
                prop_assert!(used <= bytes.len());
            }
            let _ = parse_response(&bytes);
        }

        #[test]
        fn mutations_of_a_request_give_an_answer(at in 0usize..70, value: u8) {
            let mut text = b"POST /v1/instance/stop HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}".to_vec();
            let at = at % text.len();
            text[at] = value;
            if let Ok(Some((_, used))) = parse_request(&text) {
                prop_assert!(used <= text.len());
            }
        }
    }
}
