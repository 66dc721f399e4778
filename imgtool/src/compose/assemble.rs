//! The last stage: an initramfs, a root file system and a bill of materials around a kernel, in one file.

use std::path::Path;

use ami::boot::BootConfig;
use ami::{AmiId, BlockDeviceMapping, Manifest, PartName, Source, Writer};

use super::ext4::{self, FileSystem, Settings};
use super::kernel::Kernel;
use super::modules::Module;
use super::{Error, initramfs};
use crate::progress::{Progress, Unit};
use crate::tree::Tree;

/// Everything that goes into an image.
#[derive(Debug)]
pub struct Image<'a> {
    /// The root file system's files.
    pub tree: &'a Tree,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initramfs's modules, in load order.
    pub modules: &'a [Module],
    /// The guest-init program.
    pub guest_init: &'a [u8],
    /// The configuration of guest-init; `modules` is filled in.
    pub boot: BootConfig,
    /// The manifest; kernel release, modules, the root's mapping and the parts are filled in.
    pub manifest: Manifest,
    /// The bill of materials, SPDX JSON; nothing leaves the part out.
    pub sbom: Option<&'a [u8]>,
    /// Length of the root file system in bytes; nothing for content and headroom.
    pub root_size: Option<u64>,
    /// The file system's own times, in seconds since 1970.
    pub epoch: i64,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The image's identity.
    pub id: AmiId,
    /// Its manifest.
    pub manifest: Manifest,
}

/// Write an image. `path` has it when all of it is written, and not before.
pub fn write(image: Image<'_>, path: &Path, progress: &dyn Progress) -> Result<Written, Error> {
    let Image {
        tree,
        kernel,
        modules,
        guest_init,
        boot,
        mut manifest,
        sbom,
        root_size,
        epoch,
    } = image;
    let initramfs = initramfs::pack(guest_init, modules, boot)?;
    let sbom = sbom
        .map(super::sbom::compress)
        .transpose()
        .map_err(|source| Error::Read {
            what: "the bill of materials".into(),
            source,
        })?;
    let root = ext4::plan(
        tree,
        Settings {
            size: root_size,
            epoch,
        },
    )?;
    manifest.kernel_release.clone_from(&kernel.release);
    manifest.modules = modules.iter().map(|module| module.name.clone()).collect();
    map_root(&mut manifest, root.length());

    let mut lengths = vec![
        (PartName::Kernel, kernel.bytes.len() as u64),
        (PartName::Initramfs, initramfs.len() as u64),
        (PartName::Root, root.length()),
    ];
    lengths.extend(sbom.as_ref().map(|sbom| (PartName::Sbom, sbom.len() as u64)));
    let writer = Writer::create(path, &lengths)?;
    writer.fill(PartName::Kernel, Source::Bytes(&kernel.bytes))?;
    writer.fill(PartName::Initramfs, Source::Bytes(&initramfs))?;
    if let Some(sbom) = &sbom {
        writer.fill(PartName::Sbom, Source::Bytes(sbom))?;
    }
    write_root(&root, &writer, path, tree, progress)?;
    let total = lengths.iter().map(|(_, length)| length).sum();
    let step = progress.start("digest", Some(total), Unit::Bytes);
    let (id, manifest) = writer.finish(manifest, &|bytes| step.advance(bytes))?;
    step.finish(id.as_str());
    Ok(Written { id, manifest })
}

/// The root's volume is the first of the mappings.
fn map_root(manifest: &mut Manifest, length: u64) {
    let device = manifest.root_device.clone();
    manifest
        .block_device_mappings
        .retain(|mapping| mapping.device != device);
    let mapping = BlockDeviceMapping {
        device,
        size: length,
        delete_on_termination: true,
    };
    manifest.block_device_mappings.insert(0, mapping);
}

fn write_root(
    root: &impl FileSystem,
    writer: &Writer,
    path: &Path,
    tree: &Tree,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let missing = || ami::Error::NoSuchPart {
        path: path.into(),
        part: PartName::Root,
    };
    let offset = writer.layout().offset(PartName::Root).ok_or_else(missing)?;
    let content = tree
        .walk()
        .map(|(_, id)| tree.node(id))
        .filter(|node| !node.is_dir());
    let content = content.map(|node| node.size() / u64::from(node.links)).sum();
    let step = progress.start("write root", Some(content), Unit::Bytes);
    root.write(writer.file(), offset, &*step)
        .map_err(|error| match error {
            Error::Ami(ami::Error::Io { action, source, .. }) => Error::Ami(ami::Error::Io {
                action,
                path: path.into(),
                source,
            }),
            other => other,
        })?;
    step.finish(&format!("{} files, {} MiB", tree.len(), root.length() >> 20));
    Ok(())
}
