//! Transfers that break off: continued where they ended, or given up with advice, and never taken for complete.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::mpsc;

use super::*;
use crate::fetch;
use crate::store::{Sha256, Store};

const CONTENT: &[u8] = b"The quick brown fox jumps over the lazy dog.";

/// A server that answers one connection after the other with `answers`; it hands back each request's Range header.
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
    fetch::fetch_debs(&Client::new(), store, &[wanted], &|_| {})
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
    let error = download(&url, &store).unwrap_err().to_string();
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

#[test]
fn other_bytes_of_the_right_length_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path());
    let mut answer = cut(CONTENT.len());
    let last = answer.len() - 1;
    answer[last] ^= 1;
    let (url, _) = serve(vec![answer]);
    let error = download(&url, &store).unwrap_err().to_string();
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
    let answer = Client::new().get(&url, 1000, &known).unwrap();
    assert!(matches!(answer, Answer::Body(body, _) if body == CONTENT));
}
