//! Transfers that break off: continued where they ended, or given up with advice, and never taken for
//! complete.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use super::*;
use crate::fetch;
use crate::store::{Sha256, Store};

const CONTENT: &[u8] = b"The quick brown fox jumps over the lazy dog.";

/// A server that answers one connection after the other with `answers`; it hands back each request's Range
/// header.
fn serve(answers: Vec<Vec<u8>>) -> (String, mpsc::Receiver<Option<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut range = None;
            for line in BufReader::new(&stream).lines() {
                let line = line.unwrap().to_ascii_lowercase();
                if line.is_empty() {
                    break;
                }
                if let Some(value) = line.strip_prefix("range: ") {
                    range = Some(value.to_owned());
                }
            }
            let _ = sender.send(range);
            let _ = stream.write_all(&answer);
        }
    });
    (url, receiver)
}

/// The whole file promised, `sent` bytes of it sent, then the connection ends.
fn cut(sent: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        CONTENT.len()
    );
    [head.as_bytes(), &CONTENT[..sent]].concat()
}

/// The rest from `from` on.
fn rest(from: usize) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        CONTENT.len() - 1,
        CONTENT.len(),
        CONTENT.len() - from
    );
    [head.as_bytes(), &CONTENT[from..]].concat()
}

fn download(url: &str, store: &Store) -> Result<(), fetch::Error> {
    let wanted = fetch::Download {
        name: "file".into(),
        url: url.into(),
        sha256: Sha256::of(CONTENT),
        size: CONTENT.len() as u64,
    };
    fetch::fetch_debs(
        &Client::through(Proxies::default(), None),
        store,
        &[wanted],
        &|_| {},
    )
}

#[test]
fn a_transfer_that_breaks_off_continues_where_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let (url, ranges) = serve(vec![cut(10), rest(10)]);
    download(&url, &store).unwrap();
    assert_eq!(
        ranges.iter().take(2).collect::<Vec<_>>(),
        [None, Some("bytes=10-".into())]
    );
    let stored = store.get(&Sha256::of(CONTENT), CONTENT.len() as u64).unwrap();
    assert_eq!(stored.as_deref(), Some(CONTENT));
}

#[test]
fn a_server_that_cannot_continue_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let (url, _) = serve(vec![cut(10), cut(CONTENT.len())]);
    download(&url, &store).unwrap();
    assert!(store.has(&Sha256::of(CONTENT), CONTENT.len() as u64));
}

#[test]
fn a_transfer_that_always_breaks_off_is_given_up_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let (url, _) = serve(vec![cut(10); ATTEMPTS as usize]);
    let error = download(&url, &store).unwrap_err().report();
    for word in [&*url, "4 attempts", "try:"] {
        assert!(error.contains(word), "`{word}` is missing: {error}");
    }
    assert!(
        !store.has(&Sha256::of(CONTENT), CONTENT.len() as u64),
        "half a file is no file"
    );
    // A later run needs only the rest.
    let (url, ranges) = serve(vec![rest(10)]);
    download(&url, &store).unwrap();
    assert_eq!(ranges.recv().unwrap().as_deref(), Some("bytes=10-"));
}

/// The server says the length before it sends a byte: what is of another one cannot be what was listed.
#[test]
fn a_file_of_another_length_is_another_version() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    for length in [CONTENT.len() - 1, CONTENT.len() + 1] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let other = [head.as_bytes(), &vec![b'x'; length]].concat();
        let (url, ranges) = serve(vec![other]);
        let error = download(&url, &store).unwrap_err().report();
        let said = format!("it has {length} bytes instead of {}", CONTENT.len());
        for word in [&*url, "another version", &said, "snapshot"] {
            assert!(error.contains(word), "`{word}` is missing: {error}");
        }
        assert_eq!(ranges.iter().count(), 1, "it is asked for once");
    }
    // What a transfer that broke off has left counts as well.
    let (url, _) = serve(vec![cut(10), {
        let mut answer = rest(10);
        let text = String::from_utf8_lossy(&answer).replace("Content-Length: 34", "Content-Length: 33");
        answer = text.into_bytes();
        answer
    }]);
    let error = download(&url, &store).unwrap_err().report();
    assert!(error.contains("it has 43 bytes instead of 44"), "{error}");
}

#[test]
fn other_bytes_of_the_right_length_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let mut answer = cut(CONTENT.len());
    let last = answer.len() - 1;
    answer[last] ^= 1;
    let (url, _) = serve(vec![answer]);
    let error = download(&url, &store).unwrap_err().report();
    assert!(error.contains("digest") && error.contains("try:"), "{error}");
    assert!(!store.has(&Sha256::of(CONTENT), CONTENT.len() as u64));
}

/// The bytes of an interrupted download were damaged on the disk, before and after the whole had arrived.
#[test]
fn a_damaged_part_is_transferred_again() {
    for kept in [10, CONTENT.len()] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path());
        let mut partial = store
            .partial(&Sha256::of(CONTENT), CONTENT.len() as u64)
            .unwrap()
            .unwrap();
        partial.append(&vec![b'?'; kept]).unwrap();
        drop(partial);
        let (url, ranges) = match kept {
            10 => serve(vec![rest(10), cut(CONTENT.len())]),
            _ => serve(vec![cut(CONTENT.len())]),
        };
        download(&url, &store).unwrap();
        assert_eq!(ranges.iter().last(), Some(None), "the whole is asked for");
        let stored = store.get(&Sha256::of(CONTENT), CONTENT.len() as u64).unwrap();
        assert_eq!(stored.as_deref(), Some(CONTENT));
    }
}

#[test]
fn a_damaged_validator_is_left_out() {
    let (url, _) = serve(vec![cut(CONTENT.len())]);
    let known = Validators {
        etag: Some("a\u{1}b".into()),
        last_modified: None,
    };
    let answer = Client::through(Proxies::default(), None)
        .get(&url, 1000, &known)
        .unwrap();
    assert!(matches!(answer, Answer::Body(body, _) if body == CONTENT));
}

/// A proxy that hands back the head of each request and answers with the file.
fn proxy() -> (std::net::SocketAddr, mpsc::Receiver<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let answer = match head[0].starts_with("GET ") {
                true => cut(CONTENT.len()),
                false => b"HTTP/1.1 403 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
            };
            let _ = sender.send(head);
            let _ = stream.write_all(&answer);
        }
    });
    (address, receiver)
}

/// As curl and apt do it. No name is resolved here: the proxy knows them.
#[test]
fn a_proxy_forwards_http_and_tunnels_https() {
    let (address, heads) = proxy();
    let variables = |name: &str| match name {
        "http_proxy" => Some(format!("http://user:p%40ss@{address}")),
        "https_proxy" => Some(address.to_string()),
        "no_proxy" => Some("127.0.0.1".into()),
        _ => None,
    };
    let client = Client::through(Proxies::of(variables).unwrap(), None);
    let known = Validators::default();
    let answer = client.get("http://mirror.invalid:8080/a/b?c", 1000, &known);
    assert!(matches!(answer, Ok(Answer::Body(body, _)) if body == CONTENT));
    let head = heads.recv().unwrap();
    assert_eq!(head[0], "GET http://mirror.invalid:8080/a/b?c HTTP/1.1");
    let has = |line: &str| head.iter().any(|known| known.eq_ignore_ascii_case(line));
    // printf user:p@ss | base64
    assert!(
        has("Host: mirror.invalid:8080") && has("Proxy-Authorization: Basic dXNlcjpwQHNz"),
        "{head:?}"
    );

    let error = client
        .get_once("https://mirror.invalid/x", 1000, &known)
        .map(drop);
    assert!(matches!(error, Err(Failure::Again(why)) if why.to_string().contains("403")));
    assert_eq!(heads.recv().unwrap()[0], "CONNECT mirror.invalid:443 HTTP/1.1");

    let (direct, _) = serve(vec![cut(CONTENT.len())]);
    let answer = client.get(&direct, 1000, &known);
    assert!(matches!(answer, Ok(Answer::Body(body, _)) if body == CONTENT));
    assert!(heads.try_recv().is_err(), "an exempt host is reached directly");
}

#[test]
fn an_error_names_the_proxy() {
    // No server listens there now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let variables = |name: &str| (name == "all_proxy").then(|| format!("http://{address}"));
    let client = Client::through(Proxies::of(variables).unwrap(), None);
    let error = client.get("http://mirror.invalid/x", 1000, &Validators::default());
    let error = error.map(drop).unwrap_err().report();
    assert!(error.contains(&format!("through the proxy {address}")), "{error}");
}
