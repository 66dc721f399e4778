//! OpenPGP: is this text signed by a key that we trust, today?
//!
//! Crate `pgp` does the cryptography; the policy is here. A signature counts if it is of text or binary data
//! with a SHA-2 or SHA-3 digest, made by a signing-capable key of the keyring that is bound to its
//! certificate by signatures as strong, is neither expired nor revoked, and if it is itself neither expired
//! nor from the future. One such signature is enough; signatures of unknown keys are passed over, because an
//! archive signs with its next key before we know it; a *wrong* signature of a known key refuses the file.

use std::time::{SystemTime, UNIX_EPOCH};

use displaydoc::Display;
use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, Tag, Timestamp};

use crate::advice::Reason;
use crate::time::show_time;

/// Clocks differ: a signature may be this many seconds ahead of ours.
const MAX_CLOCK_SKEW: u64 = 24 * 60 * 60;

/// Debian's archive keys of bookworm and trixie, which also sign testing and sid.
///
/// Exported with `gpg --armor --export-options export-minimal` from
/// /usr/share/keyrings/debian-archive-keyring.gpg of package debian-archive-keyring 2023.3+deb12u2 (SHA-256
/// of that file: 506b815cbb32d9b6066b4a2aa524071e071761e7e7f68c3ac74f3061ba852017). Fingerprints, as
/// <https://ftp-master.debian.org/keys.html> publishes them:
///
/// - `4D64FEC119C2029067D6E791F8D2585B8783D481` stable release key, bookworm
/// - `B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8` archive, bookworm
/// - `05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0` security archive, bookworm
/// - `41587F7DB8C774BCCF131416762F67A0B2C39DE4` stable release key, trixie
/// - `04B54C3CDCA79751B16BC6B5225629DF75B188BD` archive, trixie
/// - `5E04A1E3223A19A20706E20F9904613D4CCE68C6` security archive, trixie
const DEBIAN_KEYS: &[u8] = include_bytes!("debian-archive-keyring.asc");

/// Why a text does not count as signed.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// the keyring cannot be read: {0}
    Keyring(#[source] Reason),
    /// it is not one clear-signed OpenPGP message: {0}
    Form(#[source] Reason),
    /// no signature on it can be trusted: {0}
    Untrusted(String),
    /// the signature of key {0} does not fit the text: it was changed after it was signed
    Bad(String),
}

/// The keys whose signatures count.
#[derive(Debug, Clone)]
pub struct Keyring {
    certificates: Vec<SignedPublicKey>,
}

impl Keyring {
    /// Debian's archive keys, built in.
    pub fn debian() -> Result<Self, Error> {
        Self::parse(DEBIAN_KEYS)
    }

    /// Reads a keyring: certificates one after the other, binary or in ASCII armour.
    pub fn parse(data: &[u8]) -> Result<Self, Error> {
        let error = |e: pgp::errors::Error| Error::Keyring(e.into());
        let (certificates, _) = SignedPublicKey::from_reader_many(data).map_err(error)?;
        let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(error)?;
        match certificates.is_empty() {
            true => Err(Error::Keyring("it holds no certificate".into())),
            false => Ok(Self { certificates }),
        }
    }

    /// Verifies a clear-signed message at time `at` and returns the signed text, with `\n` line ends.
    pub fn verify(&self, message: &[u8], at: SystemTime) -> Result<String, Error> {
        let text = str::from_utf8(message)
            .map_err(|e| Error::Form(e.into()))?
            .trim_end();
        let (message, _) = CleartextSignedMessage::from_string(text).map_err(|e| Error::Form(e.into()))?;
        let signed = message.signed_text();
        let mut trusted = false;
        let mut reasons = Vec::new();
        for signature in message.signatures() {
            match self.judge(signature, signed.as_bytes(), at) {
                Verdict::Trusted => trusted = true,
                Verdict::Bad(key) => return Err(Error::Bad(key)),
                Verdict::Refused(reason) => reasons.push(reason),
            }
        }
        if !trusted {
            if reasons.is_empty() {
                reasons.push("there is none".into());
            }
            return Err(Error::Untrusted(reasons.join("; ")));
        }
        Ok(signed.replace("\r\n", "\n"))
    }

    fn judge(&self, signature: &Signature, text: &[u8], at: SystemTime) -> Verdict {
        for certificate in &self.certificates {
            let primary = &certificate.primary_key;
            if issued_by(signature, primary) {
                return match signature.verify(primary, text) {
                    Ok(()) => sound(signature, at)
                        .and_then(|()| primary_is_valid(certificate, at, true))
                        .into(),
                    Err(_) => weak_or_bad(signature, primary),
                };
            }
            for subkey in &certificate.public_subkeys {
                if issued_by(signature, &subkey.key) {
                    return match signature.verify(&subkey.key, text) {
                        Ok(()) => sound(signature, at)
                            .and_then(|()| primary_is_valid(certificate, at, false))
                            .and_then(|()| subkey_is_valid(certificate, subkey, at))
                            .into(),
                        Err(_) => weak_or_bad(signature, &subkey.key),
                    };
                }
            }
        }
        let issuer = signature.issuer_fingerprint().first().map(|f| f.to_string());
        let issuer = issuer.or_else(|| signature.issuer_key_id().first().map(|k| k.to_string()));
        let issuer = issuer.unwrap_or_else(|| "an unnamed key".into());
        Verdict::Refused(format!("key {issuer} is not in the keyring"))
    }
}

enum Verdict {
    Trusted,
    Bad(String),
    Refused(String),
}

impl From<Result<(), String>> for Verdict {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Verdict::Refused, |()| Verdict::Trusted)
    }
}

fn issued_by(signature: &Signature, key: &impl KeyDetails) -> bool {
    let fingerprints = signature.issuer_fingerprint();
    match fingerprints.is_empty() {
        false => fingerprints.contains(&&key.fingerprint()),
        true => signature.issuer_key_id().contains(&&key.legacy_key_id()),
    }
}

/// The library refuses weak digests as it refuses wrong signatures; a person wants to know which it was.
fn weak_or_bad(signature: &Signature, key: &impl KeyDetails) -> Verdict {
    match strong(signature) {
        Ok(()) => Verdict::Bad(key.fingerprint().to_string()),
        Err(reason) => Verdict::Refused(reason),
    }
}

fn strong(signature: &Signature) -> Result<(), String> {
    use HashAlgorithm as H;
    match signature.hash_alg() {
        Some(H::Sha256 | H::Sha384 | H::Sha512 | H::Sha3_256 | H::Sha3_512) => Ok(()),
        Some(other) => Err(format!("it uses the weak digest {other}")),
        None => Err("it is of an unknown version".into()),
    }
}

/// A signature of data, strong, made in the past and not expired.
fn sound(signature: &Signature, at: SystemTime) -> Result<(), String> {
    strong(signature)?;
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return Err("it is not a signature of data".into());
    }
    let created = signature.created().ok_or("it has no date")?;
    if seconds(created) > unix(at) + MAX_CLOCK_SKEW {
        return Err(format!(
            "it was made in the future, on {}",
            show_time(seconds(created))
        ));
    }
    let lifetime = signature.signature_expiration_time().map_or(0, |d| d.as_secs());
    not_expired("it", created, lifetime, at)
}

/// The certificate is in force: a strong self-signature binds it, and it is neither revoked nor expired.
fn primary_is_valid(certificate: &SignedPublicKey, at: SystemTime, signs: bool) -> Result<(), String> {
    let key = &certificate.primary_key;
    let details = &certificate.details;
    let name = key.fingerprint().to_string();
    if details
        .revocation_signatures
        .iter()
        .any(|s| s.verify_key(key).is_ok())
    {
        return Err(format!("key {name} was revoked"));
    }
    let certifications = details.users.iter().flat_map(|user| {
        let valid = move |s: &&Signature| s.verify_certification(key, Tag::UserId, &user.id).is_ok();
        user.signatures
            .iter()
            .filter(|s| s.is_certification())
            .filter(valid)
    });
    let direct = details
        .direct_signatures
        .iter()
        .filter(|s| s.verify_key(key).is_ok());
    let latest = certifications
        .chain(direct)
        .filter(|s| strong(s).is_ok())
        .max_by_key(|s| s.created().map_or(0, seconds))
        .ok_or_else(|| format!("key {name} has no valid self-signature"))?;
    if signs && !latest.key_flags().sign() {
        return Err(format!("key {name} is not a signing key"));
    }
    let lifetime = latest.key_expiration_time().map_or(0, |d| d.as_secs());
    not_expired(&format!("key {name}"), key.created_at(), lifetime, at)
}

/// The subkey is bound by its certificate, agrees to it, may sign and is neither revoked nor expired.
fn subkey_is_valid(
    certificate: &SignedPublicKey,
    subkey: &SignedPublicSubKey,
    at: SystemTime,
) -> Result<(), String> {
    let primary = &certificate.primary_key;
    let name = subkey.key.fingerprint().to_string();
    let bound = |s: &&Signature| s.verify_subkey_binding(primary, &subkey.key).is_ok();
    let of_type = |typ| subkey.signatures.iter().filter(move |s| s.typ() == Some(typ));
    if of_type(SignatureType::SubkeyRevocation).any(|s| bound(&s)) {
        return Err(format!("key {name} was revoked"));
    }
    let latest = of_type(SignatureType::SubkeyBinding)
        .filter(bound)
        .filter(|s| strong(s).is_ok())
        .max_by_key(|s| s.created().map_or(0, seconds))
        .ok_or_else(|| format!("key {name} is not bound to its certificate"))?;
    let agrees = latest
        .embedded_signature()
        .is_some_and(|s| s.verify_primary_key_binding(&subkey.key, primary).is_ok());
    if !agrees || !latest.key_flags().sign() {
        return Err(format!("key {name} is not a signing key"));
    }
    let lifetime = latest.key_expiration_time().map_or(0, |d| d.as_secs());
    not_expired(&format!("key {name}"), subkey.key.created_at(), lifetime, at)
}

/// `lifetime` is in seconds from `created`; 0 means no expiry.
fn not_expired(what: &str, created: Timestamp, lifetime: u32, at: SystemTime) -> Result<(), String> {
    let end = seconds(created) + u64::from(lifetime);
    match lifetime != 0 && end <= unix(at) {
        true => Err(format!("{what} expired on {}", show_time(end))),
        false => Ok(()),
    }
}

fn seconds(time: Timestamp) -> u64 {
    u64::from(time.as_secs())
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
