//! `inspect`, `verify` and `extract --part`.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ami::{Ami, Manifest, NewFile, PartName, SignatureError};
use serde_json::json;

use super::Error;
use crate::compose::sbom;
use crate::progress::{self, Unit};
use crate::sign::PublicKey;

pub(super) fn inspect(path: &Path, as_json: bool, out: &mut dyn Write) -> Result<(), Error> {
    let ami = Ami::open(path)?;
    let metadata = ami.file().metadata().map_err(|source| Error::Read {
        what: path.display().to_string(),
        source,
    })?;
    let (length, allocated) = (metadata.len(), metadata.blocks() * 512);
    let signed = ami.signature()?.map(|s| ami::Signature::show_key(s.key_id));
    if as_json {
        let value = json!({
            "id": ami.id(),
            "path": path,
            "length": length,
            "allocated": allocated,
            "signed_by": signed,
            "manifest": ami.manifest(),
        });
        serde_json::to_writer_pretty(&mut *out, &value).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    writeln!(out, "{:<14} {}", "id", ami.id())?;
    for (key, value) in lines(ami.manifest()) {
        writeln!(out, "{key:<14} {value}")?;
    }
    writeln!(
        out,
        "{:<14} {}",
        "signed by",
        signed.as_deref().unwrap_or("nobody")
    )?;
    writeln!(
        out,
        "{:<14} {} ({} on disk)",
        "file",
        size(length),
        size(allocated)
    )?;
    for part in &ami.manifest().parts {
        writeln!(
            out,
            "  {:<12} {:>10} at {:>10}  {}",
            part.name,
            size(part.length),
            part.offset,
            part.blake3
        )?;
    }
    Ok(())
}

fn lines(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let Manifest {
        schema: _,
        name,
        description,
        architecture,
        created,
        boot_mode: _,
        kernel_release,
        command_line,
        console,
        init,
        modules,
        root_device,
        block_device_mappings,
        exposed_ports,
        default_cpus,
        default_memory,
        package_lock,
        parent,
        source_instance,
        tags,
        parts: _,
    } = manifest;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let volumes = block_device_mappings.iter().map(|m| {
        let keep = if m.delete_on_termination { "" } else { ", kept" };
        format!("{} {}{keep}", m.device, size(m.size))
    });
    let tags = tags.iter().map(|(key, value)| format!("{key}={value}"));
    let mut lines = vec![
        ("name", name.clone()),
        ("description", description.clone()),
        ("architecture", architecture.to_string()),
        ("created", text(created)),
        ("kernel", text(kernel_release)),
        ("command line", command_line.clone()),
        ("console", console.clone()),
        ("init", init.clone()),
        ("modules", modules.join(" ")),
        ("root device", root_device.clone()),
        ("volumes", volumes.collect::<Vec<_>>().join("; ")),
        (
            "ports",
            exposed_ports
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" "),
        ),
        ("processors", default_cpus.to_string()),
        ("memory", size(*default_memory)),
        (
            "package lock",
            package_lock.map(|d| d.to_string()).unwrap_or_default(),
        ),
        (
            "parent",
            parent.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        ("instance", text(source_instance)),
        ("tags", tags.collect::<Vec<_>>().join(" ")),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    lines
}

/// Bytes as a person reads them.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in units {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

pub(super) fn verify(
    path: &Path,
    key: Option<&Path>,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let ami = Ami::open(path)?;
    // The signature first: it decides whether the digests are worth comparing.
    if let Some(key) = key {
        let key = PublicKey::load(key)?;
        let signature = ami.signature()?.ok_or(SignatureError::Unsigned);
        let checked = signature.and_then(|s| s.verify(ami.manifest_bytes(), &key.key, key.id));
        checked.map_err(|source| Error::Signature {
            path: path.into(),
            source,
        })?;
    }
    let total = ami.manifest().parts.iter().map(|part| part.length).sum();
    let progress = progress::choose(as_json, false);
    let step = progress.start("verify", Some(total), Unit::Bytes);
    ami.verify_all(&|_, bytes| step.advance(bytes))?;
    step.finish("every byte is as the manifest says");
    let signed = if key.is_some() { ", signed by the key" } else { "" };
    writeln!(out, "{} {}: ok{signed}", ami.id(), path.display())?;
    Ok(())
}

pub(super) fn sbom(path: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let ami = Ami::open(path)?;
    ami.verify_part(PartName::Sbom)?;
    let read = |source| Error::Read {
        what: "the bill of materials".into(),
        source,
    };
    let document = sbom::decompress(ami.reader(PartName::Sbom)?).map_err(read)?;
    let value: serde_json::Value = serde_json::from_slice(&document).map_err(|e| read(e.into()))?;
    serde_json::to_writer_pretty(&mut *out, &value).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

pub(super) fn extract_part(path: &Path, part: PartName, to: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let ami = Ami::open(path)?;
    ami.verify_part(part)?;
    let found = ami.part(part)?;
    let new = NewFile::create(to)?;
    let write = |source| Error::Write {
        path: to.into(),
        source,
    };
    new.file().set_len(found.length).map_err(write)?;
    ami::copy_sparse(ami.file(), found.offset, new.file(), 0, found.length).map_err(write)?;
    new.publish()?;
    writeln!(out, "{part}, {}: {}", size(found.length), to.display())?;
    Ok(())
}
