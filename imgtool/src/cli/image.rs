//! `inspect`, `verify` and `extract --part`.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ami::boot::{BootConfig, Service};
use ami::{Ami, Manifest, NewFile, PartName, SignatureError, Warm};
use serde_json::json;

use super::Error;
use crate::base;
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
    // An initramfs that is not ours says nothing of services, and is no reason not to show the rest.
    let boot = base::boot_of(&ami).ok();
    if as_json {
        let value = json!({
            "id": ami.id(),
            "path": path,
            "length": length,
            "allocated": allocated,
            "signed_by": signed,
            "manifest": ami.manifest(),
            "command": boot.as_ref().and_then(main_program).map(|main| &main.command),
            "services": boot.as_ref().map(|boot| &boot.services),
        });
        serde_json::to_writer_pretty(&mut *out, &value).map_err(io::Error::from)?;
        return Ok(writeln!(out)?);
    }
    writeln!(out, "{:<14} {}", "id", ami.id())?;
    for (key, value) in lines(ami.manifest()) {
        writeln!(out, "{key:<14} {value}")?;
    }
    for service in boot.iter().flat_map(|boot| &boot.services) {
        let (key, value) = program(service);
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

/// What the image is for, if it is for one program.
fn main_program(boot: &BootConfig) -> Option<&Service> {
    boot.services.iter().find(|service| service.main)
}

/// A line about a program that guest-init runs.
fn program(service: &Service) -> (&'static str, String) {
    let words: Vec<String> = service.command.iter().map(|word| quoted(word)).collect();
    let mut value = words.join(" ");
    if service.directory != "/" {
        value += &format!(" (in {})", quoted(&service.directory));
    }
    if service.user != "root" {
        value += &format!(" (as {})", quoted(&service.user));
    }
    match service.main {
        true => ("command", value),
        false => ("service", format!("{}: {value}", quoted(&service.name))),
    }
}

/// A word as a shell takes it; what could command a terminal is escaped.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let escaped: String = word
        .chars()
        .map(|c| match c {
            '\'' => "'\\''".to_owned(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        })
        .collect();
    format!("'{escaped}'")
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
        warm,
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
        ("warm", warm.as_ref().map(running).unwrap_or_default()),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    lines
}

/// The machine of the guest that a warm image holds.
fn running(warm: &Warm) -> String {
    let processors = if warm.cpus == 1 { "processor" } else { "processors" };
    format!(
        "a running guest: {}, {} {processors}, {} of memory",
        warm.accelerator,
        warm.cpus,
        size(warm.memory)
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let text = r#"{"name":"app","command":["/bin/server","-v","it's two words",""],"directory":"/srv","user":"www:www","main":true}"#;
        let mut service: Service = serde_json::from_str(text).unwrap();
        assert_eq!(
            program(&service),
            (
                "command",
                "/bin/server -v 'it'\\''s two words' '' (in /srv) (as www:www)".to_owned()
            )
        );
        service.main = false;
        (service.directory, service.user) = ("/".into(), "root".into());
        service.command.truncate(2);
        assert_eq!(program(&service), ("service", "app: /bin/server -v".to_owned()));
    }
}
