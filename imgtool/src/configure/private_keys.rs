//! Private keys in a root that no package ships: a script or the recipe's `run` has made them, so that every
//! instance has the same.

use std::collections::HashSet;
use std::io::Read;

use super::secrets::{OwnFiles, unreadable};
use super::{Error, keystore};
use crate::recipe::Recipe;
use crate::tree::{Kind, Node, NodeId, Tree, show};

/// As much of a file as is looked at: a key with its chain of certificates has some 10 kB.
const MAX_LOOKED_AT: u64 = 1 << 20;
/// Largest list of files that a package may have: the largest of Debian's is below 8 MB.
const MAX_LIST: u64 = 64 << 20;

const INFO: &str = "var/lib/dpkg/info";

/// A private key: its path, and what it is.
pub type Found = (String, &'static str);

/// The private keys that neither a package nor the recipe's `files` nor the base brings. A root without
/// dpkg's lists has none that a script could have made.
pub fn private_keys(tree: &Tree, recipe: &Recipe, base: Option<&Tree>) -> Result<Vec<Found>, Error> {
    let Some(info) = tree.find_followed(INFO.as_bytes()).map_err(Error::tree(INFO))? else {
        return Ok(Vec::new());
    };
    let shipped = shipped(tree, info)?;
    let own = OwnFiles::of(recipe);
    let mut found = Vec::new();
    for (path, id) in tree.walk() {
        let Kind::File(content) = &tree.node(id).kind else {
            continue;
        };
        let text = String::from_utf8_lossy(&path);
        if shipped.contains(&id) || own.contain(&text) || is_of(base, &path, tree.node(id)) {
            continue;
        }
        let mut bytes = Vec::new();
        let read = content
            .open()
            .and_then(|reader| reader.take(MAX_LOOKED_AT).read_to_end(&mut bytes));
        read.map_err(unreadable(&text))?;
        if let Some(what) = kind_of(&bytes) {
            found.push((show(&path), what));
        }
    }
    Ok(found)
}

/// What a person should know of a key.
pub fn warning((path, what): &Found) -> String {
    format!(
        "{path} is {what}, made by a package's script or by `run`: every instance has the same, and no two builds\n  \
         try: remove it in `run` and make it at the first boot, from user data or a service; or bring it with `files`"
    )
}

/// The files of dpkg's lists.
fn shipped(tree: &Tree, info: NodeId) -> Result<HashSet<NodeId>, Error> {
    let mut found = HashSet::new();
    for (name, id) in tree.children(info).filter(|(name, _)| name.ends_with(b".list")) {
        let Kind::File(content) = &tree.node(id).kind else {
            continue;
        };
        let list = content.read(MAX_LIST).map_err(unreadable(&show(name)))?;
        let paths = list.split(|b| *b == b'\n').filter(|path| !path.is_empty());
        found.extend(paths.filter_map(|path| tree.find(path).ok().flatten()));
    }
    Ok(found)
}

/// Whether the base has the same file: whoever built it knows.
fn is_of(base: Option<&Tree>, path: &[u8], node: &Node) -> bool {
    let there = base.and_then(|base| Some(base.node(base.find(path).ok()??)));
    there.is_some_and(|there| there.size() == node.size() && there.meta == node.meta)
}

/// What kind of private key the beginning of a file is.
fn kind_of(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(&keystore::MAGIC) {
        return keystore::has_private_key(bytes).then_some("a Java keystore with a key");
    }
    const BEGINNINGS: &[(&[u8], &str)] = &[
        (&[0xce, 0xce, 0xce, 0xce], "a Java keystore"),
        (b"PuTTY-User-Key-File-", "a private key of PuTTY"),
        (b"(11:private-key", "a private key of GnuPG"),
        (b"(21:protected-private-key", "a private key of GnuPG"),
        (b"\0\0\0\x07ssh-rsa", "a private key of Dropbear"),
        (b"\0\0\0\x0bssh-ed25519", "a private key of Dropbear"),
        (b"\0\0\0\x13ecdsa-sha2-nistp", "a private key of Dropbear"),
    ];
    if let Some((_, what)) = BEGINNINGS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(what);
    }
    if is_pkcs12(bytes) {
        return Some("a PKCS#12 keystore");
    }
    has_pem_key(bytes).then_some("a private key")
}

/// `PFX ::= SEQUENCE { version INTEGER 3, authSafe ContentInfo … }` (RFC 7292), the content of type data or
/// signedData.
fn is_pkcs12(bytes: &[u8]) -> bool {
    const DATA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x07];
    let head = &bytes[..bytes.len().min(32)];
    let contains = |part: &[u8]| head.windows(part.len()).any(|window| window == part);
    head.first() == Some(&0x30) && contains(&[0x02, 0x01, 0x03, 0x30]) && contains(DATA)
}

/// A line `-----BEGIN … PRIVATE KEY-----` with base64 or a header in the next: a program that only knows the
/// words has no key.
fn has_pem_key(bytes: &[u8]) -> bool {
    let mut after_begin = false;
    for line in bytes.split(|b| *b == b'\n') {
        let line = line.trim_ascii_end();
        if after_begin {
            let base64 = |c: &u8| c.is_ascii_alphanumeric() || b"+/=".contains(c);
            let header = [&b"Proc-Type:"[..], b"Version:", b"Comment:"];
            if (line.len() >= 16 && line.iter().all(base64))
                || header.iter().any(|word| line.starts_with(word))
                || line.is_empty()
            {
                return true;
            }
        }
        let label = line
            .strip_prefix(b"-----BEGIN ")
            .and_then(|line| line.strip_suffix(b"-----"));
        after_begin =
            label.is_some_and(|label| label.ends_with(b"PRIVATE KEY") || label == b"PGP PRIVATE KEY BLOCK");
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configure::edit::make_parents;
    use crate::configure::keystore::tests::keystore;
    use crate::tree::{Content, Meta};

    const PEM: &str = "Bag Attributes\n-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\n-----END CERTIFICATE-----\n\
        -----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\n-----END PRIVATE KEY-----\n";

    fn put(tree: &mut Tree, path: &str, bytes: &[u8]) {
        make_parents(tree, path, 0).unwrap();
        tree.insert(
            path.as_bytes(),
            Kind::File(Content::bytes(bytes)),
            Meta::new(0o600, 0, 0, 0),
        )
        .unwrap();
    }

    #[test]
    fn a_key_of_a_script_is_found_and_others_are_not() {
        let mut tree = Tree::new();
        put(
            &mut tree,
            "var/lib/dpkg/info/tests.list",
            b"/.\n/usr/share/tests/key.pem\n",
        );
        for path in [
            "usr/share/tests/key.pem",
            "etc/own/tls/key.pem",
            "etc/base.key",
            "etc/made.key",
        ] {
            put(&mut tree, path, PEM.as_bytes());
        }
        let mut base = Tree::new();
        put(&mut base, "etc/base.key", PEM.as_bytes());
        let recipe: Recipe =
            toml::from_str("name = 'x'\nfiles = [{ path = '/etc/own', source = 'own' }]").unwrap();
        let found = private_keys(&tree, &recipe, Some(&base)).unwrap();
        assert_eq!(found, [("/etc/made.key".into(), "a private key")]);
        assert!(warning(&found[0]).contains("/etc/made.key") && warning(&found[0]).contains("try:"));
    }

    #[test]
    fn kinds_of_keys() {
        let pkcs12 = [
            &[0x30, 0x82, 9, 9, 2, 1, 3, 0x30, 0x82, 9, 9, 6, 9][..],
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 1],
        ]
        .concat();
        for key in [
            PEM.as_bytes(),
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n",
            b"-----BEGIN RSA PRIVATE KEY-----\r\nProc-Type: 4,ENCRYPTED\r\n",
            b"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQdGBGc",
            b"PuTTY-User-Key-File-3: ssh-ed25519",
            &pkcs12,
            &keystore(&[(1, "k", 1)]),
            b"\0\0\0\x0bssh-ed25519\0\0\0\x40",
        ] {
            assert!(kind_of(key).is_some(), "{}", String::from_utf8_lossy(key));
        }
        for other in [
            &b""[..],
            b"-----BEGIN PUBLIC KEY-----\nMIGHAgEAMBMGByqGSM49AgEG\n",
            b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA a@b",
            b"if line == '-----BEGIN PRIVATE KEY-----': return\n",
            b"-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n",
            &[0x30, 0x82, 1, 2, 3],
            &keystore(&[(2, "a", 1)]),
        ] {
            assert_eq!(kind_of(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
