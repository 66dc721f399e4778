//! A repository on disk, signed here, and what happens when it is not what it should be.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{OnceLock, mpsc};

use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedPublicKey, SignedSecretKey,
};
use pgp::types::Password;

use super::*;
use crate::store::{Sha256, Store};

/// A signing key and the keyring that trusts it; two of them, made once.
fn keys() -> &'static [SignedSecretKey; 2] {
    static KEYS: OnceLock<[SignedSecretKey; 2]> = OnceLock::new();
    KEYS.get_or_init(|| {
        ["one <one@example.org>", "two <two@example.org>"].map(|name| {
            let mut builder = SecretKeyParamsBuilder::default();
            builder
                .key_type(KeyType::Ed25519Legacy)
                .can_sign(true)
                .can_certify(true)
                .primary_user_id(name.into());
            builder.build().unwrap().generate(rand::thread_rng()).unwrap()
        })
    })
}

struct Archive {
    dir: tempfile::TempDir,
}

impl Archive {
    /// One package, `hello`, whose file holds `deb`.
    fn new(fields: &str, signer: &SignedSecretKey) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let archive = Self { dir };
        let packages =
            "Package: hello\nVersion: 1\nArchitecture: all\nFilename: pool/hello.deb\nSize: 3\nSHA256: "
                .to_owned()
                + &Sha256::of(b"deb").to_string()
                + "\n";
        archive.write("pool/hello.deb", b"deb");
        archive.write("dists/s/main/binary-amd64/Packages", packages.as_bytes());
        let text = format!(
            "Suite: s\nArchitectures: amd64\n{fields}SHA256:\n {} {} main/binary-amd64/Packages\n",
            Sha256::of(packages.as_bytes()),
            packages.len()
        );
        let signed =
            CleartextSignedMessage::sign(rand::thread_rng(), &text, &**signer, &Password::empty()).unwrap();
        archive.write(
            "dists/s/InRelease",
            signed
                .to_armored_string(ArmorOptions::default())
                .unwrap()
                .as_bytes(),
        );
        let trusted = SignedPublicKey::from(keys()[0].clone());
        archive.write(
            "keys.asc",
            trusted
                .to_armored_string(ArmorOptions::default())
                .unwrap()
                .as_bytes(),
        );
        archive
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, data: &[u8]) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), data).unwrap();
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{text}");
        self.write(name, text.replace(from, to).as_bytes());
    }

    fn fetch(&self) -> Result<Vec<Index>, Error> {
        self.fetch_from(format!("file://{}", self.dir.path().display()))
    }

    fn fetch_from(&self, url: String) -> Result<Vec<Index>, Error> {
        let repository = Repository {
            url,
            suite: "s".into(),
            components: vec!["main".into()],
            keyring: Some(self.path("keys.asc")),
            pinned: None,
        };
        fetch_indexes(
            &Client::through(proxy::Proxies::default(), None),
            &self.store(),
            &[repository],
            "amd64",
            &|_| {},
        )
    }

    /// Serves the files over HTTP. Who names the tag that they have is answered that they are unchanged; each
    /// answer's path and status are handed back.
    fn serve(&self) -> (String, mpsc::Receiver<(String, u16)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, receiver) = mpsc::channel();
        let root = self.dir.path().to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(&stream).lines().map(Result::unwrap);
                let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                let path = head[0].split(' ').nth(1).unwrap().to_owned();
                let known = head
                    .iter()
                    .any(|line| line.eq_ignore_ascii_case("if-none-match: \"tag\""));
                let body = std::fs::read(root.join(&path[1..])).unwrap();
                let (status, body) = if known { (304, &[][..]) } else { (200, &body[..]) };
                let _ = sender.send((path, status));
                let head = format!(
                    "HTTP/1.1 {status} x\r\nETag: \"tag\"\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), body].concat());
            }
        });
        (url, receiver)
    }

    fn store(&self) -> Store {
        Store::at(self.path("cache"))
    }

    fn download(&self, expected: &[u8]) -> Result<(), Error> {
        let download = Download {
            name: "hello 1".into(),
            url: format!("file://{}", self.path("pool/hello.deb").display()),
            sha256: Sha256::of(expected),
            size: expected.len() as u64,
        };
        fetch_debs(
            &Client::through(proxy::Proxies::default(), None),
            &self.store(),
            &[download],
            &|_| {},
        )
    }

    fn blobs(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut queue = vec![self.path("cache")];
        while let Some(dir) = queue.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.path().is_dir() {
                    true => queue.push(entry.path()),
                    false => drop(found.insert(entry.path(), std::fs::read(entry.path()).unwrap())),
                }
            }
        }
        found
    }
}

const DATE: &str = "Date: Sat, 21 Nov 2020 09:15:44 UTC\n";

fn refused(archive: &Archive, words: &[&str]) {
    let error = archive.fetch().unwrap_err().report();
    for word in words.iter().chain(&["try:"]) {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert!(
        archive.blobs().is_empty(),
        "nothing may be kept of a refused archive"
    );
}

#[test]
fn a_signed_archive_is_read() {
    let archive = Archive::new(DATE, &keys()[0]);
    let indexes = archive.fetch().unwrap();
    assert!(indexes[0].text.starts_with("Package: hello\n"));
    archive.download(b"deb").unwrap();
    assert_eq!(
        archive.store().get(&Sha256::of(b"deb"), 3).unwrap().unwrap(),
        b"deb"
    );
}

#[test]
fn a_damaged_file_of_the_cache_is_fetched_again() {
    let archive = Archive::new(DATE, &keys()[0]);
    let (url, answers) = archive.serve();
    let statuses = || {
        let seen = answers.try_iter();
        seen.map(|(path, status)| format!("{} {status}", path.rsplit('/').next().unwrap()))
            .collect::<Vec<_>>()
    };
    let sound = archive.fetch_from(url.clone()).unwrap()[0].text.clone();
    assert_eq!(statuses(), ["InRelease 200", "Packages 200"]);
    archive.fetch_from(url.clone()).unwrap();
    assert_eq!(statuses(), ["InRelease 304"]);
    for (path, mut bytes) in archive.blobs() {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(archive.fetch_from(url.clone()).unwrap()[0].text, sound);
        let fetched = match path.extension() {
            Some(_) => ["InRelease 200"].to_vec(),
            None => ["InRelease 304", "Packages 200"].to_vec(),
        };
        assert_eq!(statuses(), fetched, "{}", path.display());
    }
}

/// What was fetched once is used without network, and what was not is named.
#[test]
fn the_cache_alone_has_what_was_fetched() {
    let fields = format!("{DATE}Valid-Until: Sat, 28 Nov 2099 09:15:44 UTC\n");
    let archive = Archive::new(&fields, &keys()[0]);
    let repository = |suite: &str| Repository {
        url: format!("file://{}", archive.dir.path().display()),
        suite: suite.into(),
        components: vec!["main".into()],
        keyring: Some(archive.path("keys.asc")),
        pinned: None,
    };
    let cached = |suite: &str| cached_indexes(&archive.store(), &[repository(suite)], "amd64");
    let error = cached("s").unwrap_err().report();
    assert!(error.contains("dists/s/InRelease is not in the cache"), "{error}");
    let fetched = archive.fetch().unwrap();
    assert_eq!(cached("s").unwrap()[0].text, fetched[0].text);
    let error = cached("t").unwrap_err().report();
    assert!(
        error.contains("dists/t/InRelease") && error.contains("try:"),
        "{error}"
    );
    for path in archive
        .blobs()
        .into_keys()
        .filter(|path| path.extension().is_none())
    {
        std::fs::write(path, "damaged").unwrap();
    }
    let error = cached("s").unwrap_err().report();
    assert!(error.contains("binary-amd64/Packages"), "{error}");
}

#[test]
fn a_changed_text_is_refused() {
    let archive = Archive::new(DATE, &keys()[0]);
    archive.edit("dists/s/InRelease", "Nov 2020", "Nov 2021");
    refused(&archive, &["does not fit the text"]);
}

#[test]
fn text_around_the_signed_part_is_refused() {
    for (before, after) in [("Suite: s\n\n", ""), ("", "\nSuite: s\n")] {
        let archive = Archive::new(DATE, &keys()[0]);
        let text = std::fs::read_to_string(archive.path("dists/s/InRelease")).unwrap();
        archive.write("dists/s/InRelease", format!("{before}{text}{after}").as_bytes());
        refused(&archive, &["InRelease"]);
    }
}

#[test]
fn an_unknown_key_and_no_signature_are_refused() {
    refused(&Archive::new(DATE, &keys()[1]), &["not in the keyring"]);
    let archive = Archive::new(DATE, &keys()[0]);
    archive.write(
        "dists/s/InRelease",
        b"Suite: s\nDate: Sat, 21 Nov 2020 09:15:44 UTC\n",
    );
    refused(&archive, &["InRelease"]);
}

#[test]
fn an_expired_release_is_refused() {
    let fields = format!("{DATE}Valid-Until: Sat, 28 Nov 2020 09:15:44 UTC\n");
    refused(
        &Archive::new(&fields, &keys()[0]),
        &["expired on 2020-11-28", "snapshot"],
    );
}

#[test]
fn a_changed_index_is_refused() {
    let archive = Archive::new(DATE, &keys()[0]);
    archive.edit("dists/s/main/binary-amd64/Packages", "Version: 1", "Version: 2");
    refused(&archive, &["digest", "Packages"]);
}

#[test]
fn a_package_of_another_digest_length_or_none_is_refused() {
    let archive = Archive::new(DATE, &keys()[0]);
    for (expected, words) in [
        (&b"DEB"[..], "digest"),
        (b"de", "longer"),
        (b"debs", "ended after 3 of 4"),
    ] {
        let error = archive.download(expected).unwrap_err().report();
        assert!(error.contains(words) && error.contains("try:"), "{error}");
        assert!(!archive.store().has(&Sha256::of(expected), expected.len() as u64));
    }
    std::fs::remove_file(archive.path("pool/hello.deb")).unwrap();
    let error = archive.download(b"deb").unwrap_err().report();
    assert!(
        error.contains("does not exist") && error.contains("try:") && !error.contains("HTTP"),
        "{error}"
    );
}

#[test]
fn debians_own_keys_are_usable() {
    assert!(openpgp::Keyring::debian().is_ok());
}
