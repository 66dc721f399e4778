//! The bill of materials: SPDX 2.3 JSON of the packages in an image, zstd-compressed in its own part.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::lock::Package;

/// How hard the part is compressed. Fixed: it is part of the image's identity.
const LEVEL: i32 = 9;
/// Largest document read back: 100,000 packages.
const MAX_DOCUMENT: u64 = 64 << 20;

/// The document, as compact JSON. `epoch` is its creation time in seconds since 1970.
pub fn document(name: &str, packages: &[Package], epoch: i64) -> Vec<u8> {
    let mut sorted: Vec<&Package> = packages.iter().collect();
    sorted
        .sort_by(|a, b| (&a.name, &a.architecture, &a.version).cmp(&(&b.name, &b.architecture, &b.version)));
    let entries: Vec<Value> = sorted.iter().map(|package| entry(package)).collect();
    let relations: Vec<Value> = sorted
        .iter()
        .map(|package| {
            json!({
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": id(package),
            })
        })
        .collect();
    let content = serde_json::to_vec(&entries).unwrap_or_default();
    let document = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        "documentNamespace": format!("urn:uuid:{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, &content)),
        "creationInfo": { "created": timestamp(epoch), "creators": ["Tool: kiln-imgtool"] },
        "packages": entries,
        "relationships": relations,
    });
    serde_json::to_vec(&document).unwrap_or_default()
}

/// The packages that a document of ours names. Entries that others wrote, and in another form, are left out.
pub fn packages(document: &[u8]) -> Vec<Package> {
    let document: Value = serde_json::from_slice(document).unwrap_or_default();
    let entries = document["packages"].as_array().map_or(&[][..], Vec::as_slice);
    entries.iter().filter_map(package).collect()
}

fn package(entry: &Value) -> Option<Package> {
    let purl = entry["externalRefs"][0]["referenceLocator"].as_str()?;
    let text = |key: &str| entry[key].as_str().map(str::to_owned);
    Some(Package {
        name: text("name")?,
        version: text("versionInfo")?,
        architecture: purl.rsplit_once("?arch=")?.1.to_owned(),
        sha256: entry["checksums"][0]["checksumValue"].as_str()?.parse().ok()?,
        size: 0,
        url: text("downloadLocation")?,
        kernel: text("primaryPackagePurpose")? == "OPERATING-SYSTEM",
    })
}

/// The document as the part holds it.
pub fn compress(document: &[u8]) -> std::io::Result<Vec<u8>> {
    zstd::encode_all(document, LEVEL)
}

/// The document from the part.
pub fn decompress(part: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut out = Vec::new();
    zstd::Decoder::new(part)?
        .take(MAX_DOCUMENT + 1)
        .read_to_end(&mut out)?;
    if out.len() as u64 > MAX_DOCUMENT {
        return Err(std::io::Error::other("the SBOM has more than 64 MiB"));
    }
    Ok(out)
}

fn id(package: &Package) -> String {
    // SPDX identifiers know letters, digits, `.` and `-` only.
    let text = format!("{}-{}-{}", package.name, package.version, package.architecture);
    let plain = text
        .replace('+', ".plus.")
        .replace(':', ".colon.")
        .replace('~', ".tilde.")
        .replace('_', ".under.");
    format!("SPDXRef-Package-{plain}")
}

fn entry(package: &Package) -> Value {
    let Package {
        name,
        version,
        architecture,
        sha256,
        size: _,
        url,
        kernel,
    } = package;
    let purl = format!(
        "pkg:deb/debian/{}@{}?arch={architecture}",
        escape(name),
        escape(version)
    );
    json!({
        "SPDXID": id(package),
        "name": name,
        "versionInfo": version,
        "downloadLocation": url,
        "filesAnalyzed": false,
        "primaryPackagePurpose": if *kernel { "OPERATING-SYSTEM" } else { "INSTALL" },
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "checksums": [{ "algorithm": "SHA256", "checksumValue": sha256.to_string() }],
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }],
    })
}

/// Percent-encoding of what a package URL may not hold plainly.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Seconds since 1970 as RFC 3339 in UTC.
pub fn timestamp(epoch: i64) -> String {
    let (days, second) = (epoch.div_euclid(86_400), epoch.rem_euclid(86_400));
    // Days to civil date: proleptic Gregorian, eras of 400 years from 0000-03-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sha256;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            sha256: Sha256::of(name.as_bytes()),
            size: 1,
            url: format!("http://deb.debian.org/debian/pool/{name}.deb"),
            kernel: false,
        }
    }

    #[test]
    fn order_does_not_matter_and_identifiers_are_legal() {
        let (a, b) = (package("libstdc++6", "1:14.2~rc1+b_1"), package("adduser", "3.1"));
        let document = document("test", &[a.clone(), b.clone()], 0);
        assert_eq!(document, super::document("test", &[b, a], 0));
        let value: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(value["packages"][0]["name"], "adduser");
        let id = value["packages"][1]["SPDXID"].as_str().unwrap();
        assert!(
            id.bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'.' || c == b'-'),
            "{id}"
        );
        let purl = &value["packages"][1]["externalRefs"][0]["referenceLocator"];
        assert_eq!(
            purl,
            "pkg:deb/debian/libstdc%2B%2B6@1%3A14.2~rc1%2Bb_1?arch=amd64"
        );
        assert_eq!(decompress(&compress(&document).unwrap()[..]).unwrap(), document);
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_795_478_461), "2026-11-24T00:01:01Z");
    }
}
