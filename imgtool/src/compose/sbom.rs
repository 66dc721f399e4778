//! The bill of materials: SPDX 2.3 JSON of the packages in an image, zstd-compressed in its own part.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::lock::Package;
use crate::time::timestamp;

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
}
