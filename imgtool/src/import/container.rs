//! Container images in an archive on disk: what `docker save` writes, and the OCI image layout
//! (image-layout.md of the OCI image specification). Every blob is checked against the digest that names it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Error, Imported, Layer, decompress, decompress_stream, environment};
use crate::tree::{Content, Kind, Tree};

/// Largest manifest, index or configuration: registries refuse more than 4 MiB.
const MAX_JSON: u64 = 4 << 20;
/// Most layers: Docker refuses more than 127.
const MAX_LAYERS: usize = 1024;

/// What a container image says about how it is run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Program and arguments: entry point and command.
    pub command: Vec<String>,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Working directory; empty for `/`.
    pub directory: String,
    /// User name or number, maybe with `:group`; empty for root.
    pub user: String,
    /// `80/tcp`.
    pub ports: Vec<String>,
    /// The architecture of its programs, where it is one that images can have.
    pub architecture: Option<ami::Architecture>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize, Clone)]
struct Descriptor {
    digest: String,
    #[serde(rename = "mediaType", default)]
    media_type: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct ImageConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RunConfig>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: String,
    user: String,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
}

/// True for an archive that has one of the files that make a container image.
pub(super) fn is_one(file: &File) -> std::io::Result<bool> {
    let mut archive = tar::Archive::new(decompress(file)?);
    let Ok(entries) = archive.entries() else {
        return Ok(false);
    };
    // They may follow all blobs; a root's archive is read to its end for nothing, which costs a second.
    for entry in entries {
        let Ok(entry) = entry else { return Ok(false) };
        let path = entry.path_bytes();
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        match path {
            b"manifest.json" | b"oci-layout" => return Ok(true),
            // Directories that every root has, and no container archive.
            b"usr/" | b"etc/" | b"usr" | b"etc" => return Ok(false),
            _ => {}
        }
    }
    Ok(false)
}

/// Unpack the image in an archive of these files.
pub(super) fn assemble(
    what: &str,
    files: &Tree,
    machine: ami::Architecture,
    scratch: &Path,
) -> Result<Imported, Error> {
    let store = Blobs { what, tree: files };
    let (config, layers) = match store.json::<Vec<DockerManifest>>("manifest.json")? {
        Some(manifests) => {
            let [manifest] = &manifests[..] else {
                return Err(store.wrong(format!("it holds {} images, not one", manifests.len())));
            };
            (manifest.config.clone(), manifest.layers.clone())
        }
        None => store.oci(machine)?,
    };
    if layers.len() > MAX_LAYERS {
        return Err(store.wrong(format!("it has {} layers", layers.len())));
    }
    let config: ImageConfig = store
        .json(&config)?
        .ok_or_else(|| store.wrong("its configuration is missing"))?;
    let mut root = Layer::new(scratch, true)?;
    for name in &layers {
        let content = store
            .file(name)?
            .ok_or_else(|| store.wrong(format!("its layer {name} is missing")))?;
        store.check(name, content)?;
        let read = |e: std::io::Error| store.wrong(format!("layer {name}: {e}"));
        let stream = decompress_stream(content.open().map_err(read)?).map_err(read)?;
        root.apply(&format!("{what}, layer {name}"), stream)?;
    }
    Ok(Imported {
        tree: root.tree,
        config: Some(Config {
            architecture: config.architecture.parse().ok(),
            ..run_config(config.config.unwrap_or_default())
        }),
    })
}

fn run_config(config: RunConfig) -> Config {
    let RunConfig {
        env,
        entrypoint,
        cmd,
        working_dir,
        user,
        exposed_ports,
    } = config;
    Config {
        command: [entrypoint.unwrap_or_default(), cmd.unwrap_or_default()].concat(),
        environment: environment(&env.unwrap_or_default()),
        directory: working_dir,
        user,
        ports: exposed_ports.unwrap_or_default().into_keys().collect(),
        architecture: None,
    }
}

/// What an index has images for.
fn platforms(index: &Index) -> String {
    let platforms = index.manifests.iter().filter_map(|m| m.platform.as_ref());
    let names: Vec<_> = platforms
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    names.join(", ")
}

/// The files of the archive, by name or by digest.
struct Blobs<'a> {
    what: &'a str,
    tree: &'a Tree,
}

impl Blobs<'_> {
    fn wrong(&self, why: impl Into<String>) -> Error {
        Error::Archive {
            what: self.what.to_owned(),
            why: why.into(),
        }
    }

    fn file(&self, path: &str) -> Result<Option<&Content>, Error> {
        // Old versions of `docker save` link layers that are alike; the tree keeps such links inside.
        let found = self
            .tree
            .find_followed(path.as_bytes())
            .map_err(|e| self.wrong(e.to_string()))?;
        Ok(found.and_then(|id| match &self.tree.node(id).kind {
            Kind::File(content) => Some(content),
            _ => None,
        }))
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<Option<T>, Error> {
        let Some(content) = self.file(path)? else {
            return Ok(None);
        };
        self.check(path, content)?;
        let bytes = content
            .read(MAX_JSON)
            .map_err(|e| self.wrong(format!("{path}: {e}")))?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| self.wrong(format!("{path}: {e}")))
    }

    /// A file whose name is its digest must have that digest.
    fn check(&self, path: &str, content: &Content) -> Result<(), Error> {
        let Some(expected) = path.strip_prefix("blobs/sha256/") else {
            return Ok(());
        };
        let mut hasher = Sha256::new();
        let read = |e: std::io::Error| self.wrong(format!("{path}: {e}"));
        let mut reader = content.open().map_err(read)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer).map_err(read)? {
                0 => break,
                got => hasher.update(&buffer[..got]),
            }
        }
        let found = crate::store::Sha256::from_hasher(hasher).to_string();
        if found == expected {
            Ok(())
        } else {
            Err(self.wrong(format!("{path} has the digest {found}")))
        }
    }

    fn blob(&self, digest: &str) -> Result<String, Error> {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(format!("blobs/sha256/{hex}"))
        } else {
            Err(self.wrong(format!("`{digest}` is not a SHA-256 digest")))
        }
    }

    /// The configuration and the layers by the OCI layout: index, maybe an index by platform, manifest.
    fn oci(&self, machine: ami::Architecture) -> Result<(String, Vec<String>), Error> {
        let mut index: Index = self
            .json("index.json")?
            .ok_or_else(|| self.wrong("it has no index.json"))?;
        // An index in an index is usual; deeper nesting is not.
        for _ in 0..3 {
            let fits = |m: &&Descriptor| {
                m.platform
                    .as_ref()
                    .is_none_or(|p| p.os == "linux" && p.architecture == machine.oci())
            };
            let chosen = index.manifests.iter().find(fits).cloned();
            let chosen = chosen.ok_or_else(|| Error::NoPlatform {
                what: self.what.to_owned(),
                wanted: machine,
                found: platforms(&index),
            })?;
            let path = self.blob(&chosen.digest)?;
            let missing = || self.wrong(format!("{path} is missing"));
            if chosen.media_type.contains("index") || chosen.media_type.contains("manifest.list") {
                index = self.json(&path)?.ok_or_else(missing)?;
                continue;
            }
            let manifest: Manifest = self.json(&path)?.ok_or_else(missing)?;
            let layers = manifest.layers.iter().map(|layer| self.blob(&layer.digest));
            return Ok((
                self.blob(&manifest.config.digest)?,
                layers.collect::<Result<_, _>>()?,
            ));
        }
        Err(self.wrong("its indexes are nested too deep"))
    }
}
