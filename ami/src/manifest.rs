//! The manifest: everything that a launcher must know about an image, in canonical JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::part::{Part, PartName};
use crate::{AmiId, ChunkTable, Digest, Error, Layout, MAX_PART, json};

/// Version of the manifest's schema and of the file's layout.
pub const SCHEMA: u32 = 1;
/// The same of a warm image, which has a [`Warm`] and its parts. A program that knows no such images refuses
/// the file by this number.
pub const SCHEMA_WARM: u32 = 2;
/// The value of [`Manifest::init`] that keeps guest-init as PID 1.
pub const INIT_GUEST: &str = "guest-init";

/// Longest kernel command line: the x86 boot protocol's `COMMAND_LINE_SIZE`, which arm64 has too.
const MAX_COMMAND_LINE: usize = 2047;
/// Most tags of one image, and their lengths: EC2's limits.
const MAX_TAGS: usize = 50;
const MAX_TAG_KEY: usize = 128;
const MAX_TAG_VALUE: usize = 256;
/// Longest name: EC2's limit.
const MAX_NAME: usize = 128;
/// Longest description: enough for a paragraph.
const MAX_DESCRIPTION: usize = 4096;
/// Most modules, mappings and ports: far above any use; they keep a malicious manifest small when printed.
const MAX_LIST: usize = 1024;
/// Most processors by default: what an x86 machine with 8-bit APIC ids can have.
const MAX_CPUS: u32 = 254;
/// Least and most memory by default, in bytes: no Linux boots below, no host has more.
const MEMORY: std::ops::RangeInclusive<u64> = 16 << 20..=64 << 40;

/// What an image is and how it is launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this schema: [`SCHEMA`], or [`SCHEMA_WARM`] for a warm image. [`crate::Writer`] sets it.
    pub schema: u32,
    /// Name for people: 1 to 128 letters, digits and `-._ ()/@'+`.
    pub name: String,
    /// One paragraph for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The processor that it runs on.
    pub architecture: Architecture,
    /// When it was made (RFC 3339, UTC), only if the recipe fixes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// How the machine starts it.
    pub boot_mode: BootMode,
    /// The kernel's release as `uname -r` prints it, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_release: Option<String>,
    /// The kernel's command line, at most 2047 bytes of printable ASCII. The launcher adds `console=` and its
    /// own.
    pub command_line: String,
    /// Console device in the guest without `/dev/`: `hvc0`, `ttyS0` or `ttyAMA0`.
    pub console: String,
    /// PID 1 of the running system: [`INIT_GUEST`], or the path of the image's own.
    pub init: String,
    /// Names of the kernel modules in the initramfs, in load order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// Device of the root volume in the guest: `/dev/vda`.
    pub root_device: String,
    /// The volumes that an instance gets; one of them is the root device's.
    pub block_device_mappings: Vec<BlockDeviceMapping>,
    /// Ports on which the image's services listen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<ExposedPort>,
    /// Virtual processors when the launch names none.
    pub default_cpus: u32,
    /// Memory in bytes when the launch names none; a multiple of 1 MiB.
    pub default_memory: u64,
    /// BLAKE3 of the lock file that the image was built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package_lock: Option<Digest>,
    /// The image that this one was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<AmiId>,
    /// The instance that this one was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_instance: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// A warm image also holds a guest that runs, in the parts `memory` and `state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<Warm>,
    /// The other partitions, in the order of the file. [`crate::Writer`] fills them in.
    pub parts: Vec<Part>,
}

/// The machine whose memory and state a warm image holds. Where another machine is asked for, the image boots
/// as any other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    /// What ran its instructions: `kvm` or `soft`.
    pub accelerator: String,
    /// Its virtual processors.
    pub cpus: u32,
    /// Its memory in bytes, a multiple of 4096: the length of the part.
    pub memory: u64,
}

/// How the machine starts an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// The launcher loads the kernel and enters it at its 64-bit entry: no firmware.
    DirectKernel,
}

/// A volume that an instance gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockDeviceMapping {
    /// Device in the guest, such as `/dev/vdb`.
    pub device: String,
    /// Size in bytes; a multiple of 4096. The root's is at least its part's length: the guest grows its file
    /// system.
    pub size: u64,
    /// The volume goes when the instance is terminated.
    pub delete_on_termination: bool,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl FromStr for Protocol {
    type Err = String;

    /// `tcp` or `udp`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Protocol::Tcp),
            "udp" => Ok(Protocol::Udp),
            other => Err(format!("{other:?} is neither tcp nor udp")),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A port on which the image serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposedPort {
    /// The number, 1 to 65535.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl Manifest {
    /// A manifest with Kiln's defaults: one processor, 256 MiB, the root on `/dev/vda`, the console on
    /// `hvc0`.
    pub fn new(name: impl Into<String>, architecture: Architecture) -> Self {
        Manifest {
            schema: SCHEMA,
            name: name.into(),
            description: String::new(),
            architecture,
            created: None,
            boot_mode: BootMode::DirectKernel,
            kernel_release: None,
            command_line: String::new(),
            console: "hvc0".into(),
            init: INIT_GUEST.into(),
            modules: Vec::new(),
            root_device: "/dev/vda".into(),
            block_device_mappings: Vec::new(),
            exposed_ports: Vec::new(),
            default_cpus: 1,
            default_memory: 256 << 20,
            package_lock: None,
            parent: None,
            source_instance: None,
            tags: BTreeMap::new(),
            warm: None,
            parts: Vec::new(),
        }
    }

    /// The manifest as it stands in the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        json::canonical(self).map_err(Error::Manifest)
    }

    /// A part by name.
    pub fn part(&self, name: PartName) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The size of the root volume that an instance gets, in bytes: the mapping's, or the part's own length.
    pub fn root_volume_size(&self) -> u64 {
        let part = self.part(PartName::Root).map_or(0, |part| part.length);
        let mapped = self
            .block_device_mappings
            .iter()
            .find(|m| m.device == self.root_device);
        mapped.map_or(part, |m| m.size.max(part))
    }

    /// Parse and check a manifest. Only the canonical spelling is accepted.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let manifest = Manifest::from_known_bytes(bytes)?;
        if manifest.to_bytes()? != bytes {
            return Err(Error::Manifest("it is not in canonical form".into()));
        }
        Ok(manifest)
    }

    /// The same of bytes whose spelling is known to be canonical.
    pub(crate) fn from_known_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| Error::Manifest(e.to_string()))?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Check every rule that the fields' documentation states, and that the parts lie as [`Layout`] puts
    /// them.
    pub fn validate(&self) -> Result<(), Error> {
        self.check_names()
            .and_then(|()| self.check_boot())
            .and_then(|()| self.check_volumes())
            .and_then(|()| self.check_warm())
            .map_err(Error::Manifest)?;
        self.check_parts().map_err(Error::Manifest)
    }

    fn check_names(&self) -> Result<(), String> {
        let letter = |c: char| c.is_alphanumeric() || "-._ ()/@'+".contains(c);
        ensure(
            (1..=MAX_NAME).contains(&self.name.len()) && self.name.chars().all(letter),
            || {
                format!(
                    "name {:?} must have 1 to {MAX_NAME} bytes of letters, digits and `-._ ()/@'+`",
                    self.name
                )
            },
        )?;
        ensure(self.description.len() <= MAX_DESCRIPTION, || {
            format!("description above {MAX_DESCRIPTION} bytes")
        })?;
        ensure(self.tags.len() <= MAX_TAGS, || {
            format!("more than {MAX_TAGS} tags")
        })?;
        for (key, value) in &self.tags {
            ensure(
                (1..=MAX_TAG_KEY).contains(&key.len()) && value.len() <= MAX_TAG_VALUE,
                || format!("tag {key:?}: keys have 1 to {MAX_TAG_KEY} bytes, values at most {MAX_TAG_VALUE}"),
            )?;
        }
        for text in [&self.created, &self.kernel_release, &self.source_instance]
            .into_iter()
            .flatten()
        {
            let plain = text.bytes().all(|b| b.is_ascii_graphic());
            ensure((1..=MAX_NAME).contains(&text.len()) && plain, || {
                format!("{text:?} must have 1 to {MAX_NAME} printable bytes")
            })?;
        }
        Ok(())
    }

    fn check_boot(&self) -> Result<(), String> {
        let printable = self
            .command_line
            .bytes()
            .all(|b| b == b' ' || b.is_ascii_graphic());
        ensure(self.command_line.len() <= MAX_COMMAND_LINE && printable, || {
            format!("the kernel command line must have at most {MAX_COMMAND_LINE} printable bytes")
        })?;
        ensure(device_name(&self.console), || {
            format!("console {:?} is not a device name", self.console)
        })?;
        let path = self.init.starts_with('/') && self.init.len() < 4096 && !self.init.contains('\0');
        ensure(self.init == INIT_GUEST || path, || {
            format!("init {:?} must be `{INIT_GUEST}` or an absolute path", self.init)
        })?;
        ensure(self.modules.len() <= MAX_LIST, || {
            format!("more than {MAX_LIST} modules")
        })?;
        for module in &self.modules {
            ensure(device_name(module), || {
                format!("module {module:?} is not a module's name")
            })?;
        }
        ensure((1..=MAX_CPUS).contains(&self.default_cpus), || {
            format!("default_cpus must be 1 to {MAX_CPUS}")
        })?;
        ensure(
            MEMORY.contains(&self.default_memory) && self.default_memory.is_multiple_of(1 << 20),
            || "default_memory must be a multiple of 1 MiB from 16 MiB to 64 TiB".into(),
        )
    }

    fn check_volumes(&self) -> Result<(), String> {
        ensure(self.exposed_ports.len() <= MAX_LIST, || {
            format!("more than {MAX_LIST} ports")
        })?;
        ensure(self.exposed_ports.iter().all(|p| p.port != 0), || {
            "port 0 cannot be exposed".into()
        })?;
        ensure(self.block_device_mappings.len() <= MAX_LIST, || {
            format!("more than {MAX_LIST} volumes")
        })?;
        let device = |d: &str| d.strip_prefix("/dev/").is_some_and(device_name);
        ensure(device(&self.root_device), || {
            format!("{:?} is not a device below /dev", self.root_device)
        })?;
        let mut seen = BTreeSet::new();
        for mapping in &self.block_device_mappings {
            ensure(device(&mapping.device), || {
                format!("{:?} is not a device below /dev", mapping.device)
            })?;
            ensure(seen.insert(&mapping.device), || {
                format!("{} is mapped twice", mapping.device)
            })?;
            let size = mapping.size;
            ensure(
                size > 0 && size <= json::MAX_INTEGER && size.is_multiple_of(4096),
                || {
                    format!(
                        "{}: a volume's size must be a positive multiple of 4096 bytes",
                        mapping.device
                    )
                },
            )?;
            let root = self.part(PartName::Root).map_or(0, |part| part.length);
            ensure(mapping.device != self.root_device || size >= root, || {
                format!("the root volume of {size} bytes cannot hold the root part of {root} bytes")
            })?;
        }
        Ok(())
    }

    fn check_warm(&self) -> Result<(), String> {
        let expected = match self.warm {
            None => SCHEMA,
            Some(_) => SCHEMA_WARM,
        };
        ensure(self.schema == expected, || {
            format!("schema {} is not {expected}", self.schema)
        })?;
        for name in [PartName::Memory, PartName::State] {
            ensure(self.part(name).is_some() == self.warm.is_some(), || {
                format!("a warm image has a {name} part and says so, any other has none")
            })?;
        }
        let Some(warm) = &self.warm else { return Ok(()) };
        ensure(device_name(&warm.accelerator), || {
            format!("accelerator {:?} is not the name of one", warm.accelerator)
        })?;
        ensure((1..=MAX_CPUS).contains(&warm.cpus), || {
            format!("the number of processors must be 1 to {MAX_CPUS}")
        })?;
        let length = self.part(PartName::Memory).map_or(0, |part| part.length);
        ensure(warm.memory == length && length.is_multiple_of(4096), || {
            format!(
                "the memory part of {length} bytes is not the memory of {} bytes, a multiple of 4096",
                warm.memory
            )
        })
    }

    fn check_parts(&self) -> Result<(), String> {
        ensure(self.parts.is_sorted_by(|a, b| a.name < b.name), || {
            "parts are not in order, each once".into()
        })?;
        for name in [PartName::Kernel, PartName::Initramfs, PartName::Root] {
            ensure(self.part(name).is_some(), || format!("there is no {name} part"))?;
        }
        for part in &self.parts {
            ensure((1..=MAX_PART).contains(&part.length), || {
                format!(
                    "the {} part has {} bytes, not 1 to {MAX_PART}",
                    part.name, part.length
                )
            })?;
        }
        let root = self.part(PartName::Root).map_or(0, |part| part.length);
        ensure(root.is_multiple_of(4096), || {
            "the root part is not a multiple of 4096 bytes".into()
        })?;
        let lengths: Vec<_> = self.parts.iter().map(|part| (part.name, part.length)).collect();
        let layout = Layout::new(&lengths);
        debug_assert_eq!(layout.chunks, ChunkTable::count_for(root));
        for part in &self.parts {
            let offset = layout.offset(part.name);
            ensure(offset == Some(part.offset), || {
                format!(
                    "the {} part is at byte {}, not where the layout has it",
                    part.name, part.offset
                )
            })?;
        }
        Ok(())
    }
}

fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn device_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Manifest {
        let mut manifest = Manifest::new("hello", Architecture::X86_64);
        let lengths = [
            (PartName::Kernel, 10),
            (PartName::Initramfs, 20),
            (PartName::Root, 8192),
        ];
        let layout = Layout::new(&lengths);
        manifest.parts = lengths
            .iter()
            .map(|(name, length)| Part {
                name: *name,
                offset: layout.offset(*name).unwrap(),
                length: *length,
                blake3: Digest::of(b""),
            })
            .collect();
        manifest
    }

    #[test]
    fn a_manifest_round_trips() {
        let manifest = valid();
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
    }

    fn warm(memory: u64) -> Option<Warm> {
        Some(Warm {
            accelerator: "soft".into(),
            cpus: 1,
            memory,
        })
    }

    /// The manifest of an image with the parts of a guest.
    fn valid_warm(memory: u64) -> Manifest {
        let mut manifest = valid();
        (manifest.warm, manifest.schema) = (warm(memory), SCHEMA_WARM);
        let lengths: Vec<_> = manifest
            .parts
            .iter()
            .map(|part| (part.name, part.length))
            .chain([(PartName::Memory, memory), (PartName::State, 77)])
            .collect();
        let layout = Layout::new(&lengths);
        for (name, length) in &lengths[3..] {
            manifest.parts.push(Part {
                name: *name,
                offset: layout.offset(*name).unwrap(),
                length: *length,
                blake3: Digest::of(b""),
            });
        }
        manifest
    }

    #[test]
    fn a_warm_image_says_what_its_memory_is() {
        let manifest = valid_warm(8192);
        let bytes = manifest.to_bytes().unwrap();
        assert_eq!(Manifest::from_bytes(&bytes).unwrap(), manifest);
        type Change = fn(&mut Manifest);
        let rules: &[(&str, Change)] = &[
            ("schema", |m| m.schema = SCHEMA),
            ("schema", |m| m.warm = None),
            ("has a state part", |m| m.parts.truncate(4)),
            ("memory part of 8192", |m| m.warm = warm(4096)),
            ("accelerator", |m| {
                m.warm.as_mut().unwrap().accelerator = "a b".into()
            }),
            ("processors", |m| m.warm.as_mut().unwrap().cpus = 0),
        ];
        for (word, change) in rules {
            let mut manifest = valid_warm(8192);
            change(&mut manifest);
            let error = manifest.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
        let error = valid_warm(8191).validate().unwrap_err().to_string();
        assert!(error.contains("multiple of 4096"), "{error}");
    }

    #[test]
    fn a_manifest_that_is_not_canonical_is_refused() {
        let bytes = valid().to_bytes().unwrap();
        let spaced = String::from_utf8(bytes).unwrap().replace(",\"", ", \"");
        let error = Manifest::from_bytes(spaced.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("canonical"), "{error}");
    }

    #[test]
    fn a_broken_rule_is_named() {
        type Change = fn(&mut Manifest);
        let rules: &[(&str, Change)] = &[
            ("name", |m| m.name = "a\nb".into()),
            ("schema", |m| m.schema = SCHEMA_WARM),
            ("command line", |m| m.command_line = "x".repeat(2048)),
            ("command line", |m| m.command_line = "a\nb".into()),
            ("init", |m| m.init = "sbin/init".into()),
            ("default_cpus", |m| m.default_cpus = 0),
            ("default_memory", |m| m.default_memory = (256 << 20) + 1),
            ("below /dev", |m| m.root_device = "vda".into()),
            ("module", |m| m.modules = vec!["../x".into()]),
            ("port 0", |m| {
                m.exposed_ports = vec![ExposedPort {
                    port: 0,
                    protocol: Protocol::Tcp,
                }]
            }),
            ("no kernel part", |m| m.parts.truncate(0)),
            ("in order", |m| m.parts.swap(0, 1)),
            ("layout", |m| m.parts[1].offset += 1 << 20),
            ("root part of", |m| {
                m.block_device_mappings = vec![BlockDeviceMapping {
                    device: "/dev/vda".into(),
                    size: 4096,
                    delete_on_termination: true,
                }]
            }),
            ("not 1 to", |m| m.parts[2].length = 1 << 62),
            ("schema", |m| m.warm = warm(4096)),
            ("has a memory part", |m| {
                (m.warm, m.schema) = (warm(4096), SCHEMA_WARM);
            }),
        ];
        for (word, change) in rules {
            let mut manifest = valid();
            change(&mut manifest);
            let error = manifest.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
