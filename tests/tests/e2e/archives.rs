//! Package archives with wrong signatures or digests, expired ones, and interrupted downloads: a build
//! refuses them with what, why and what to try, and leaves no image.
//!
//! Each test makes an archive of one package, signed with a key of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::trouble::{attempt, refused};

pub const TESTS: &[(&str, Test)] = &[
    ("a_signed_archive_is_built_from", a_signed_archive_is_built_from),
    ("a_bad_signature_is_refused", a_bad_signature_is_refused),
    ("an_expired_release_is_refused", an_expired_release_is_refused),
    ("a_wrong_digest_is_refused", a_wrong_digest_is_refused),
    (
        "an_interrupted_download_continues_later",
        an_interrupted_download_continues_later,
    ),
];

/// Shell functions: `archive` makes the package and `key` the key, `index` the index; `sign` writes and signs
/// the release; `build URL` builds of it. The kernel is the hello image's, the cache one of the attempt's
/// own. Bytes of `/dev/urandom` do not compress: the package is as long as they are.
const ARCHIVE: &str = r#"set -e
export XDG_CACHE_HOME=$PWD/cache GNUPGHOME=$PWD/gpg
trap 'gpgconf --kill all 2>/dev/null' EXIT
A=$(dpkg --print-architecture); B=dists/test/main/binary-$A
archive() {
    mkdir -p archive/$B archive/pool package/DEBIAN package/usr/share
    printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n' >package/DEBIAN/control
    head -c 300000 /dev/urandom >package/usr/share/x
    dpkg-deb --root-owner-group --build package archive/pool/x.deb >/dev/null
    key
}
key() {
    mkdir -m 700 gpg
    gpg --batch --quiet --passphrase '' --quick-generate-key 'Test <test@example.org>' ed25519 sign never
    gpg --export >key.gpg
}
digest() { sha256sum $1 | cut -d' ' -f1; }
index() {
    cat package/DEBIAN/control >archive/$B/Packages
    printf 'Filename: pool/x.deb\nSize: %s\nSHA256: %s\n' $(stat -c%s archive/pool/x.deb) $1 >>archive/$B/Packages
}
sign() {
    { printf 'Suite: test\nCodename: test\nComponents: main\nArchitectures: %s\nDate: %s\n%sSHA256:\n' $A "$(date -uRd '1 hour ago')" "$1"
      printf ' %s %s main/binary-%s/Packages\n' $(digest archive/$B/Packages) $(stat -c%s archive/$B/Packages) $A; } >Release
    gpg --batch --quiet --yes --clearsign --output archive/dists/test/InRelease Release
}
build() {
    imgtool extract "$OLDPWD/hello.ami" --part kernel -o kernel >/dev/null 2>&1
    printf 'name = "x"\nvariant = "extract"\npackages = ["x"]\nkernel.path = "kernel"\n[distribution]\nsuite = "test"\nmirror = "%s"\nkeyring = "key.gpg"\n' $1 >x.toml
    imgtool build x.toml -o x.ami --quiet
}
"#;

/// Runs `line` after the functions above.
fn capture(host: &TestHost, line: &str) -> Result<kiln_tests::lab::Output> {
    attempt(host, &format!("{ARCHIVE}{line}"))
}

/// Else the others could be refused for any reason.
fn a_signed_archive_is_built_from(host: &TestHost) -> Result<()> {
    let line = "archive; index $(digest archive/pool/x.deb); sign ''; build file://$PWD/archive; \
                imgtool cat x.ami /usr/share/x | cmp - package/usr/share/x; rm x.ami";
    let output = capture(host, line)?;
    ensure!(output.status == 0 && output.stdout.is_empty(), "{output:?}");
    Ok(())
}

fn a_bad_signature_is_refused(host: &TestHost) -> Result<()> {
    let line = "archive; index $(digest archive/pool/x.deb); sign ''; \
                sed -i 's/^Codename: test$/Codename: best/' archive/dists/test/InRelease; build file://$PWD/archive";
    refused(&capture(host, line)?, &["InRelease", "does not fit the text"])?;
    let line = "archive; index $(digest archive/pool/x.deb); sign ''; mv gpg gpg.old; key; \
                build file://$PWD/archive";
    refused(&capture(host, line)?, &["InRelease", "not in the keyring"])
}

fn an_expired_release_is_refused(host: &TestHost) -> Result<()> {
    let line = "archive; index $(digest archive/pool/x.deb); \
                sign 'Valid-Until: Sat, 21 Nov 2020 09:15:44 UTC\n'; build file://$PWD/archive";
    refused(&capture(host, line)?, &["expired on 2020-11-21", "snapshot"])
}

fn a_wrong_digest_is_refused(host: &TestHost) -> Result<()> {
    let line = "archive; index $(digest key.gpg); sign ''; build file://$PWD/archive";
    refused(&capture(host, line)?, &["digest", "x.deb"])
}

/// A server of files that breaks off in the middle of a package until it is asked to serve it whole.
struct Server {
    port: u16,
    root: PathBuf,
    /// How many bytes of a package come before the end, at most. 0: all.
    cut: AtomicUsize,
    /// `Range` headers of requests for packages.
    ranges: Mutex<Vec<String>>,
}

impl Server {
    fn start(root: PathBuf, cut: usize) -> Result<Arc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
        let server = Arc::new(Server {
            port: listener.local_addr()?.port(),
            root,
            cut: AtomicUsize::new(cut),
            ranges: Mutex::default(),
        });
        let answers = Arc::clone(&server);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up has seen enough.
                let _ = answers.answer(stream);
            }
        });
        Ok(server)
    }

    fn ranges(&self) -> Vec<String> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers one request and closes the connection.
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let (mut path, mut begin) = (String::new(), 0);
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("GET /") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                begin = range.trim_end_matches('-').parse()?;
                let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
                ranges.push(range.to_owned());
            } else if line.is_empty() {
                break;
            }
        }
        let Ok(bytes) = std::fs::read(self.root.join(&path)) else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(());
        };
        let rest = bytes.get(begin..).context("a range beyond the end")?;
        let status = match begin {
            0 => "200 OK".to_owned(),
            _ => format!(
                "206 Partial Content\r\nContent-Range: bytes {begin}-{}/{}",
                bytes.len() - 1,
                bytes.len()
            ),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            rest.len()
        )?;
        let cut = self.cut.load(Ordering::Relaxed);
        let sent = match path.ends_with(".deb") && cut > 0 {
            true => cut.saturating_sub(begin).min(rest.len()),
            false => rest.len(),
        };
        stream.write_all(&rest[..sent])?;
        Ok(())
    }
}

fn an_interrupted_download_continues_later(host: &TestHost) -> Result<()> {
    let dir = tempfile::tempdir().context("a folder for the archive")?;
    let server = Server::start(dir.path().to_owned(), 100_000)?;
    // The attempt's folder goes: archive, key and cache have to stay for the second one.
    let (place, port) = (dir.path().display(), server.port);
    let line = format!(
        "archive; index $(digest archive/pool/x.deb); sign ''; cp -r archive/. {place}; cp key.gpg {place}; \
         export XDG_CACHE_HOME={place}/cache; build http://127.0.0.1:{port}"
    );
    refused(&capture(host, &line)?, &["x.deb", "4 attempts"])?;
    let before = server.ranges().len();
    server.cut.store(0, Ordering::Relaxed);
    let line = format!(
        "cp {place}/key.gpg .; export XDG_CACHE_HOME={place}/cache; build http://127.0.0.1:{port}; \
         imgtool cat x.ami /usr/share/x | wc -c >&2; rm x.ami"
    );
    let output = capture(host, &line)?;
    ensure!(output.status == 0 && output.stdout.is_empty(), "{output:?}");
    ensure!(output.stderr.lines().any(|line| line == "300000"), "{output:?}");
    let later = &server.ranges()[before..];
    ensure!(later == ["100000-"], "the rest was asked for as {later:?}");
    Ok(())
}
