//! Key pairs: the public half is kept, the private half is shown once.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use instance::store::keys::public_keys;
use machine::entropy;
use sha2::{Digest, Sha256};

use super::tags;
use crate::api::Api;
use crate::error::{Error, Result};
use crate::filter::{Filters, of_tags};
use crate::ledger::KeyPair;
use crate::query::Params;
use crate::time;
use crate::xml::{Element, set, text};

const ED25519: &str = "ssh-ed25519";
/// Characters at most of a name: EC2's limit.
const MAX_NAME: usize = 255;

/// `CreateKeyPair`.
pub fn create(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let name = name(params)?;
    match params.text("KeyType") {
        None | Some("ed25519") => {}
        Some(other) => return Err(Error::Unsupported(format!("making a key of the type {other}"))),
    }
    match params.text("KeyFormat") {
        None | Some("pem") => {}
        Some(other) => return Err(Error::Unsupported(format!("the key format {other}"))),
    }
    let tags = tags::specified(params, "key-pair")?;
    let held = unused(api, name)?;
    params.finish()?;
    let secret = SigningKey::from_bytes(&entropy::bytes());
    let pair = pair(
        format!("{ED25519} {}", STANDARD.encode(public_blob(&secret))),
        tags,
    )?;
    held.put(&pair)?;
    let mut all = elements(name, &pair);
    all.push(text("keyMaterial", private_key(&secret, name)));
    Ok(all)
}

/// `ImportKeyPair`.
pub fn import(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let name = name(params)?;
    let material = params.required("PublicKeyMaterial")?;
    let tags = tags::specified(params, "key-pair")?;
    let decoded = STANDARD
        .decode(material)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let keys = public_keys(&decoded.ok_or(Error::KeyFormat)?).map_err(|_| Error::KeyFormat)?;
    let [line] = keys.as_slice() else {
        return Err(Error::KeyFormat);
    };
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    let (Some(kind), Some(key)) = (words.first(), words.get(1)) else {
        return Err(Error::KeyFormat);
    };
    let pair = pair(format!("{kind} {key}"), tags)?;
    let held = unused(api, name)?;
    params.finish()?;
    held.put(&pair)?;
    Ok(elements(name, &pair))
}

/// `DeleteKeyPair`. One that is not there is fine, as on EC2.
pub fn delete(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (name, id) = (params.text("KeyName"), params.text("KeyPairId"));
    if name.is_none() && id.is_none() {
        return Err(Error::MissingParameter("KeyName".into()));
    }
    params.finish()?;
    let found = api
        .ledger
        .key_pairs()?
        .into_iter()
        .find(|(known, pair)| name.is_none_or(|name| name == known) && id.is_none_or(|id| id == pair.id));
    let mut all = vec![text("return", true)];
    if let Some((name, pair)) = found {
        api.ledger.lock_key_pair(&name)?.remove()?;
        all.push(text("keyPairId", pair.id));
    }
    Ok(all)
}

/// `DescribeKeyPairs`.
pub fn describe(api: &Arc<Api>, params: &Params) -> Result<Vec<Element>> {
    let (names, ids) = (params.list("KeyName"), params.list("KeyPairId"));
    let filters = Filters::parse(
        params,
        &["key-name", "key-pair-id", "fingerprint", "tag-key", "tag-value"],
    )?;
    let with_key = params.flag("IncludePublicKey")?;
    let mut pairs = api.ledger.key_pairs()?;
    for name in &names {
        if !pairs.iter().any(|(known, _)| known == name) {
            return Err(Error::NoKeyPair((*name).to_owned()));
        }
    }
    for id in &ids {
        if !pairs.iter().any(|(_, pair)| pair.id == *id) {
            return Err(Error::NoKeyPair((*id).to_owned()));
        }
    }
    params.finish()?;
    let all = names.is_empty() && ids.is_empty();
    pairs.retain(|(name, pair)| {
        (all || names.contains(&name.as_str()) || ids.contains(&pair.id.as_str()))
            && filters.pass(|filter| match filter {
                "key-name" => vec![name.clone()],
                "key-pair-id" => vec![pair.id.clone()],
                "fingerprint" => vec![pair.fingerprint.clone()],
                filter => of_tags(filter, pair.tags.iter()).unwrap_or_default(),
            })
    });
    let items = pairs.iter().map(|(name, pair)| {
        let mut all = elements(name, pair);
        all.push(text("keyType", &pair.kind));
        all.push(text("createTime", time::iso(pair.created)));
        if with_key {
            all.push(text("publicKey", format!("{} {name}", pair.public_key)));
        }
        all
    });
    Ok(vec![set("keySet", items)])
}

/// The name in a request: it is the comment of the key in the guest, one word.
fn name(params: &Params) -> Result<&str> {
    let name = params.required("KeyName")?;
    if name.len() > MAX_NAME || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::value(
            "KeyName",
            name,
            "up to 255 ASCII characters, no space among them",
        ));
    }
    Ok(name)
}

/// Takes hold of the name of a pair that there is not.
fn unused(api: &Api, name: &str) -> Result<instance::store::documents::LockedDocument> {
    let held = api.ledger.lock_key_pair(name)?;
    match api.ledger.key_pair(name)? {
        Some(_) => Err(Error::KeyPairExists(name.to_owned())),
        None => Ok(held),
    }
}

fn pair(public_key: String, tags: BTreeMap<String, String>) -> Result<KeyPair> {
    let (kind, key) = public_key.split_once(' ').ok_or(Error::KeyFormat)?;
    let kind = match kind {
        ED25519 => "ed25519",
        "ssh-rsa" => "rsa",
        _ => return Err(Error::KeyFormat),
    };
    let blob = STANDARD.decode(key).map_err(|_| Error::KeyFormat)?;
    let id: u128 = u128::from_le_bytes(entropy::bytes());
    Ok(KeyPair {
        id: format!("key-{:017x}", id >> (128 - 4 * 17)),
        kind: kind.to_owned(),
        fingerprint: STANDARD.encode(Sha256::digest(blob)),
        public_key,
        created: time::now(),
        tags,
    })
}

fn elements(name: &str, pair: &KeyPair) -> Vec<Element> {
    vec![
        text("keyName", name),
        text("keyFingerprint", &pair.fingerprint),
        text("keyPairId", &pair.id),
        tags::element(&pair.tags),
    ]
}

/// A string of the SSH protocol: its length, then its bytes (RFC 4251 §5).
fn string(bytes: &[u8], to: &mut Vec<u8>) {
    to.extend((bytes.len() as u32).to_be_bytes());
    to.extend(bytes);
}

fn public_blob(secret: &SigningKey) -> Vec<u8> {
    let mut blob = Vec::new();
    string(ED25519.as_bytes(), &mut blob);
    string(secret.verifying_key().as_bytes(), &mut blob);
    blob
}

/// The private key as OpenSSH keeps it, without a passphrase (openssh-portable, `PROTOCOL.key`).
fn private_key(secret: &SigningKey, comment: &str) -> String {
    const MAGIC: &[u8] = b"openssh-key-v1\0";
    const BLOCK: usize = 8;
    const LINE: usize = 70;
    let check: [u8; 4] = entropy::bytes();
    let mut private = [check, check].concat();
    private.extend(public_blob(secret));
    string(&secret.to_keypair_bytes(), &mut private);
    string(comment.as_bytes(), &mut private);
    for padding in 1.. {
        if private.len() % BLOCK == 0 {
            break;
        }
        private.push(padding);
    }
    let mut file = MAGIC.to_vec();
    for none in [&b"none"[..], b"none", b""] {
        string(none, &mut file);
    }
    file.extend(1_u32.to_be_bytes());
    string(&public_blob(secret), &mut file);
    string(&private, &mut file);
    let encoded = STANDARD.encode(file);
    let lines: Vec<_> = encoded
        .as_bytes()
        .chunks(LINE)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    format!(
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    #[test]
    fn openssh_reads_the_private_key_and_finds_the_public_one() {
        let dir = tempfile::tempdir().unwrap();
        let secret = SigningKey::from_bytes(&entropy::bytes());
        let path = dir.path().join("key");
        std::fs::write(&path, private_key(&secret, "web")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let output = Command::new("ssh-keygen")
            .arg("-y")
            .arg("-f")
            .arg(&path)
            .output()
            .unwrap();
        let expected = format!("{ED25519} {} web\n", STANDARD.encode(public_blob(&secret)));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    }
}
