//! What comes from a mirror: signed lists, indexes, packages and the archives in them.

use std::time::{Duration, UNIX_EPOCH};

use imgtool::fetch::Index;
use imgtool::fetch::openpgp::Keyring;
use imgtool::fetch::release::Release;
use imgtool::recipe::Variant;
use imgtool::resolve::{self, Universe, Wanted, relation, version};
use imgtool::unpack::{Deb, repack};
use imgtool::{archive, time};

use crate::input::Input;

/// Bytes of a stream of files that are read: a bomb goes on for 16 GiB, which is its cap.
const MAX_READ: u64 = 8 << 20;

/// The first byte chooses what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 7 {
        0 => in_release(input.rest()),
        1 => release(input.rest()),
        2 => index(input.rest()),
        3 => package(input.rest()),
        4 => {
            let _ = archive::visit(input.rest(), |_, _| Ok::<_, archive::Damage>(()));
        }
        5 => relations(input.rest()),
        _ => {
            let _ = Keyring::parse(input.rest());
        }
    }
}

/// A moment at which Debian's keys are valid.
fn moment() -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

fn in_release(bytes: &[u8]) {
    let keyring = Keyring::debian().expect("it is built in");
    let verified = keyring.verify(bytes, moment());
    assert!(
        verified.is_err() || bytes.len() > 1000,
        "a forged signature was accepted"
    );
}

fn release(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    time::parse_release_date(&text);
    time::parse_timestamp(&text);
    if let Ok(release) = Release::parse(&text, "trixie", moment(), true) {
        let _ = release.indexes("main", "amd64");
    }
}

fn index(bytes: &[u8]) {
    let index = Index {
        url: "http://mirror".to_owned(),
        suite: "trixie".to_owned(),
        text: String::from_utf8_lossy(bytes).into_owned(),
    };
    let indexes = [index];
    let Ok(universe) = Universe::new(&indexes, "amd64", ["i386"]) else {
        return;
    };
    let packages = universe.names().take(2).map(str::to_owned).collect();
    let wanted = Wanted {
        variant: Variant::Minbase,
        packages,
        recommends: true,
    };
    let _ = resolve::resolve(&universe, &wanted);
    let _ = resolve::as_wanted(&universe);
    if let Some(name) = universe.names().next() {
        let _ = resolve::resolve_kernel(&universe, name);
    }
}

fn package(bytes: &[u8]) {
    let Ok(package) = Deb::parse(bytes) else {
        return;
    };
    let _ = package.control();
    if let Ok(data) = package.data() {
        let _ = archive::visit(std::io::Read::take(data, MAX_READ), |_, _| {
            Ok::<_, archive::Damage>(())
        });
        // The whole stream is only followed where it is short.
        let mut data = match package.data() {
            Ok(data) => std::io::Read::take(data, MAX_READ),
            Err(_) => return,
        };
        if std::io::copy(&mut data, &mut std::io::sink()).is_ok_and(|length| length < MAX_READ) {
            let _ = repack(&package, &mut std::io::Cursor::new(Vec::new()));
        }
    }
}

/// Versions are in order whatever they are, and relations are shown as they were meant.
fn relations(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = relation::parse_field(&text);
    if let Ok(group) = relation::parse_group(&text) {
        let shown = relation::show_group(&group);
        assert!(
            relation::parse_group(&shown).is_ok(),
            "{text:?} is shown as {shown:?}, which is none"
        );
    }
    let mut versions = text.split_whitespace();
    if let (Some(a), Some(b)) = (versions.next(), versions.next()) {
        let (there, back) = (version::compare(a, b), version::compare(b, a));
        assert_eq!(there, back.map(std::cmp::Ordering::reverse), "{a} and {b}");
    }
}
