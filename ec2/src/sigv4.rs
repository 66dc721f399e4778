//! Verifying signatures of requests: AWS Signature Version 4 in the header `Authorization`.
//!
//! The client and this module build the same text of the request, the *canonical request*, and derive the
//! same key from the secret key, the day, the region and the service. Any region is accepted: it is part of
//! what is signed, and there is one place here.

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};

use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::time;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const TERMINATOR: &str = "aws4_request";
/// Seconds that the client's clock may differ.
const MAX_SKEW: u64 = 15 * 60;
/// What is not written as `%XX` (RFC 3986 §2.3).
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The same in a path.
const IN_PATH: &AsciiSet = &UNRESERVED.remove(b'/');

/// A request as it came.
#[derive(Debug)]
pub struct Signed<'a> {
    /// The method.
    pub method: &'a str,
    /// The path as it was sent.
    pub path: &'a str,
    /// The query string as it was sent, without the question mark.
    pub query: &'a str,
    /// Names in lower case and values, in their order.
    pub headers: &'a [(String, String)],
    /// The body.
    pub body: &'a [u8],
}

/// The parts of the header `Authorization`.
struct Authorization<'a> {
    access_key: &'a str,
    /// Day, region, service, terminator.
    scope: &'a str,
    headers: Vec<&'a str>,
    signature: Vec<u8>,
}

impl Signed<'_> {
    /// Checks that whoever sent the request has the secret key, and sent it about `now`.
    ///
    /// # Errors
    /// The reason to refuse it.
    pub fn verify(&self, credentials: &Credentials, now: u64) -> Result<()> {
        let header = self.header("authorization").ok_or(Error::Unsigned)?;
        let authorization =
            Authorization::parse(&header).ok_or(Error::Malformed("the header Authorization"))?;
        if authorization.access_key != credentials.access_key {
            return Err(Error::UnknownKey);
        }
        let date = self
            .header("x-amz-date")
            .ok_or(Error::Malformed("there is no header X-Amz-Date"))?;
        let signed = time::parse_basic(&date).ok_or(Error::Malformed("the header X-Amz-Date"))?;
        if signed.abs_diff(now) > MAX_SKEW {
            return Err(Error::Expired {
                signed: date,
                now: time::basic(now),
            });
        }
        let key = authorization.key(&credentials.secret_key, &date)?;
        let request = self.canonical(&authorization.headers)?;
        let digest = hex(&Sha256::digest(request.as_bytes()));
        let text = format!("{ALGORITHM}\n{date}\n{}\n{digest}", authorization.scope);
        // In a time that says nothing of where they differ.
        mac(&key, text.as_bytes())
            .verify_slice(&authorization.signature)
            .map_err(|_| Error::WrongSignature)
    }

    /// The canonical request.
    fn canonical(&self, names: &[&str]) -> Result<String> {
        // Without these a request could be sent elsewhere or again.
        if !names.contains(&"host") || !names.contains(&"x-amz-date") {
            return Err(Error::WrongSignature);
        }
        let mut headers = String::new();
        for name in names {
            let value = self.header(name).ok_or(Error::WrongSignature)?;
            headers.push_str(&format!("{name}:{value}\n"));
        }
        let body = hex(&Sha256::digest(self.body));
        if self
            .header("x-amz-content-sha256")
            .is_some_and(|claimed| claimed != body)
        {
            return Err(Error::WrongSignature);
        }
        Ok(format!(
            "{}\n{}\n{}\n{headers}\n{}\n{body}",
            self.method,
            utf8_percent_encode(self.path, IN_PATH),
            canonical_query(self.query),
            names.join(";"),
        ))
    }

    /// The values of a header, joined as they are signed.
    pub fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self
            .headers
            .iter()
            .filter(|(known, _)| known == name)
            .map(|(_, value)| value.split_ascii_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        (!values.is_empty()).then(|| values.join(","))
    }
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Option<Authorization<'a>> {
        let (mut credential, mut headers, mut signature) = (None, None, None);
        for part in header.strip_prefix(ALGORITHM)?.split(',') {
            let (name, value) = part.trim().split_once('=')?;
            match name {
                "Credential" => credential = Some(value),
                "SignedHeaders" => headers = Some(value.split(';').collect()),
                "Signature" => signature = Some(unhex(value)?),
                _ => return None,
            }
        }
        let (access_key, scope) = credential?.split_once('/')?;
        Some(Authorization {
            access_key,
            scope,
            headers: headers?,
            signature: signature?,
        })
    }

    /// The key for this scope.
    fn key(&self, secret: &str, date: &str) -> Result<Vec<u8>> {
        let parts: Vec<_> = self.scope.split('/').collect();
        let [day, _region, service, TERMINATOR] = parts[..] else {
            return Err(Error::Malformed("the scope of the credential"));
        };
        if !date.starts_with(day) || day.len() != 8 || !matches!(service, "ec2" | "sts") {
            return Err(Error::Malformed("the scope of the credential"));
        }
        let first = format!("AWS4{secret}").into_bytes();
        let derive = |key: Vec<u8>, part: &&str| mac(&key, part.as_bytes()).finalize().into_bytes().to_vec();
        Ok(parts.iter().fold(first, derive))
    }
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    // HMAC takes a key of any length (RFC 2104 §2).
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(text);
    mac
}

/// Names and values encoded anew, in order.
fn canonical_query(query: &str) -> String {
    let encode = |text: &str| {
        let plain = percent_decode_str(text).collect::<Vec<u8>>();
        percent_encoding::percent_encode(&plain, UNRESERVED).to_string()
    };
    let mut pairs: Vec<_> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(name), encode(value)))
        .collect();
    pairs.sort();
    let pairs: Vec<_> = pairs
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
    let pairs = digits?;
    Some(pairs.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// Signs as a client does, for tests.
#[cfg(test)]
pub fn sign(credentials: &Credentials, body: &[u8], now: u64) -> Vec<(String, String)> {
    let date = time::basic(now);
    let scope = format!("{}/us-east-1/ec2/{TERMINATOR}", &date[..8]);
    let mut headers = vec![
        ("host".to_owned(), "localhost".to_owned()),
        ("x-amz-date".to_owned(), date.clone()),
    ];
    let names = vec!["host", "x-amz-date"];
    let authorization = Authorization {
        access_key: &credentials.access_key,
        scope: &scope,
        headers: names.clone(),
        signature: Vec::new(),
    };
    let request = Signed {
        method: "POST",
        path: "/",
        query: "",
        headers: &headers,
        body,
    };
    let digest = hex(&Sha256::digest(request.canonical(&names).unwrap()));
    let text = format!("{ALGORITHM}\n{date}\n{scope}\n{digest}");
    let key = authorization.key(&credentials.secret_key, &date).unwrap();
    let signature = hex(&mac(&key, text.as_bytes()).finalize().into_bytes());
    let value = format!(
        "{ALGORITHM} Credential={}/{scope}, SignedHeaders=host;x-amz-date, Signature={signature}",
        credentials.access_key
    );
    headers.push(("authorization".to_owned(), value));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AWS's example in "Create a signed AWS API request": another implementation's signature.
    fn example() -> (Credentials, Vec<(String, String)>, u64) {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
        };
        let headers = sign(&credentials, b"Action=DescribeRegions", 1_440_938_160);
        (credentials, headers, 1_440_938_160)
    }

    fn verify(
        credentials: &Credentials,
        headers: &[(String, String)],
        body: &[u8],
        now: u64,
    ) -> &'static str {
        let request = Signed {
            method: "POST",
            path: "/",
            query: "",
            headers,
            body,
        };
        request
            .verify(credentials, now)
            .map_or_else(|error| error.code(), |()| "")
    }

    #[test]
    fn the_key_is_that_of_the_documentation() {
        let authorization = Authorization {
            access_key: "",
            scope: "20150830/us-east-1/iam/aws4_request",
            headers: Vec::new(),
            signature: Vec::new(),
        };
        // The example is for IAM, which is not served here.
        assert!(
            authorization
                .key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830T123600Z")
                .is_err()
        );
        let parts = authorization.scope.split('/');
        let key = parts.fold(
            b"AWS4wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_vec(),
            |key, part| mac(&key, part.as_bytes()).finalize().into_bytes().to_vec(),
        );
        assert_eq!(
            hex(&key),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }

    #[test]
    fn a_signed_request_passes_and_a_changed_one_does_not() {
        let (credentials, headers, now) = example();
        let body = b"Action=DescribeRegions";
        assert_eq!(verify(&credentials, &headers, body, now), "");
        assert_eq!(verify(&credentials, &headers, body, now + 600), "");
        assert_eq!(verify(&credentials, &headers, body, now + 1000), "RequestExpired");
        assert_eq!(verify(&credentials, &headers, body, now - 1000), "RequestExpired");
        assert_eq!(
            verify(&credentials, &headers, b"Action=Other", now),
            "SignatureDoesNotMatch"
        );
        assert_eq!(
            verify(&credentials, &headers[..2], body, now),
            "MissingAuthenticationToken"
        );
        let mut elsewhere = headers.clone();
        elsewhere[0].1 = "example.org".into();
        assert_eq!(
            verify(&credentials, &elsewhere, body, now),
            "SignatureDoesNotMatch"
        );
        let other = Credentials {
            secret_key: "other".into(),
            ..credentials.clone()
        };
        assert_eq!(verify(&other, &headers, body, now), "SignatureDoesNotMatch");
        let other = Credentials {
            access_key: "other".into(),
            ..credentials
        };
        assert_eq!(verify(&other, &headers, body, now), "AuthFailure");
    }

    #[test]
    fn headers_without_form_are_refused() {
        let (credentials, mut headers, now) = example();
        for value in [
            "",
            "AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/x/y, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/r/s3/aws4_request, SignedHeaders=host, Signature=00",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/r/ec2/aws4_request, SignedHeaders=host, Signature=é",
        ] {
            headers[2].1 = value.into();
            assert_eq!(
                verify(&credentials, &headers, b"", now),
                "MalformedQueryString",
                "{value}"
            );
        }
        // What does not bind host and time is no signature.
        headers[2].1 = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/r/ec2/aws4_request, SignedHeaders=host, Signature=00".into();
        assert_eq!(verify(&credentials, &headers, b"", now), "SignatureDoesNotMatch");
    }

    #[test]
    fn queries_are_in_one_order_and_encoding() {
        assert_eq!(canonical_query("b=2&a=%7e+x&a&c=%2f"), "a=&a=~%2Bx&b=2&c=%2F");
    }
}
