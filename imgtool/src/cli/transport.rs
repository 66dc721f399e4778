//! `keygen`, `sign`, `convert`, `pack` and `unpack`.

use std::io::Write;
use std::path::{Path, PathBuf};

use ami::{Ami, NewFile, PartName};

use super::image::{extract_part, size};
use super::{Error, Format};
use crate::convert::{cold, qcow2};
use crate::progress::{self, Unit};
use crate::sign::SecretKey;
use crate::{archive, imagefs, pack as packing};

pub(super) fn keygen(file: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let public = with_suffix(file, "pub");
    let write = |source| Error::Write {
        path: file.into(),
        source,
    };
    let key = SecretKey::generate().map_err(write)?;
    key.save(file)?;
    key.public().save(&public)?;
    let id = ami::Signature::show_key(key.id);
    writeln!(
        out,
        "{id}: keep {} to yourself, publish {}",
        file.display(),
        public.display()
    )?;
    Ok(())
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

pub(super) fn sign(image: &Path, key: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let ami = Ami::open(image)?;
    let key = SecretKey::load(key)?;
    // A signature is a statement about the content, so the content is verified first.
    ami.verify_all(&|_, _| {})?;
    ami.set_signature(Some(&key.sign(ami.manifest_bytes())))?;
    writeln!(out, "{} signed by {}", ami.id(), ami::Signature::show_key(key.id))?;
    Ok(())
}

pub(super) fn convert(image: &Path, to: Format, output: &Path, out: &mut dyn Write) -> Result<(), Error> {
    if to == Format::Raw {
        return extract_part(image, PartName::Root, output, out);
    }
    let ami = Ami::open(image)?;
    ami.verify_part(PartName::Root)?;
    let part = ami.part(PartName::Root)?;
    let new = NewFile::create(output)?;
    let write = |source| Error::Write {
        path: output.into(),
        source,
    };
    let progress = progress::choose(false, false);
    let step = progress.start("convert", Some(part.length), Unit::Bytes);
    match to {
        Format::Qcow2 => {
            qcow2::write(ami.file(), part.offset, part.length, new.file(), &*step).map_err(write)?
        }
        _ => {
            let tree = imagefs::of_ami(&ami)?;
            archive::write(&tree, std::io::BufWriter::new(new.file())).map_err(write)?;
        }
    }
    let length = new.file().metadata().map_err(write)?.len();
    new.publish()?;
    step.finish(&size(length));
    writeln!(out, "{}: {}", output.display(), size(length))?;
    Ok(())
}

/// `convert --cold`.
pub(super) fn cool(image: &Path, output: &Path, out: &mut dyn Write) -> Result<(), Error> {
    let ami = Ami::open(image)?;
    let progress = progress::choose(false, false);
    let step = progress.start("convert", None, Unit::Bytes);
    let id = cold::write(&ami, output, &|bytes| step.advance(bytes))?;
    step.finish(id.as_str());
    writeln!(out, "{id} {}", output.display())?;
    Ok(())
}

pub(super) fn pack(image: &Path, output: Option<&Path>, out: &mut dyn Write) -> Result<(), Error> {
    let output = output.map_or_else(|| with_suffix(image, "zst"), Path::to_path_buf);
    let total = std::fs::metadata(image).map(|m| m.len()).ok();
    let progress = progress::choose(false, false);
    let step = progress.start("pack", total, Unit::Bytes);
    let length = packing::pack(image, &output, &*step)?;
    step.finish(&size(length));
    writeln!(out, "{}: {}", output.display(), size(length))?;
    Ok(())
}

pub(super) fn unpack(packed: &Path, output: Option<&Path>, out: &mut dyn Write) -> Result<(), Error> {
    let output = match output {
        Some(output) => output.to_path_buf(),
        None if packed.extension().is_some_and(|extension| extension == "zst") => packed.with_extension(""),
        None => {
            return Err(Error::NoName {
                path: packed.into(),
                option: "output",
            });
        }
    };
    let progress = progress::choose(false, false);
    let step = progress.start("unpack", Some(packing::plain_length(packed)?), Unit::Bytes);
    let id = packing::unpack(packed, &output, &*step)?;
    step.finish(id.as_str());
    writeln!(out, "{id} {}", output.display())?;
    Ok(())
}
