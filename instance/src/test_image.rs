//! A tiny AMI for tests: valid in every respect, bootable in none.

use std::path::{Path, PathBuf};

use ami::{Architecture, BlockDeviceMapping, Manifest, PartName, Source, Writer};

/// Bytes of its root.
pub const ROOT: u64 = 2 << 20;

/// Writes one called `name` into `directory`; `content` makes it differ from others.
pub fn write(directory: &Path, name: &str, content: u8) -> PathBuf {
    write_for(Architecture::X86_64, directory, name, content)
}

/// The same for an architecture.
pub fn write_for(architecture: Architecture, directory: &Path, name: &str, content: u8) -> PathBuf {
    let path = directory.join(format!("{name}.ami"));
    let root = vec![content; ROOT as usize];
    let parts: [(PartName, &[u8]); 3] = [
        (PartName::Kernel, b"no kernel"),
        (PartName::Initramfs, b"no initramfs"),
        (PartName::Root, &root),
    ];
    let lengths = parts.map(|(part, bytes)| (part, bytes.len() as u64));
    let writer = Writer::create(&path, &lengths).unwrap();
    for (part, bytes) in parts {
        writer.fill(part, Source::Bytes(bytes)).unwrap();
    }
    let mut manifest = Manifest::new(name, architecture);
    manifest.block_device_mappings = vec![BlockDeviceMapping {
        device: "/dev/vda".into(),
        size: 8 << 20,
        delete_on_termination: true,
    }];
    writer.finish(manifest, &|_| {}).unwrap();
    path
}
