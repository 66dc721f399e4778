//! A warm image without the guest that it holds: an image that boots, of the format that every program reads.

use std::path::Path;

use ami::{Ami, AmiId, Error, Manifest, PartName, Source, Writer};

/// Writes `ami` without memory and state to `to`, with every other part as it is, verified. `progress` is
/// called with the number of bytes that were read.
///
/// # Errors
/// When a part is damaged, or the file cannot be written.
pub fn write(ami: &Ami, to: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<AmiId, Error> {
    let manifest = Manifest {
        warm: None,
        ..ami.manifest().clone()
    };
    let kept = || manifest.parts.iter().filter(|part| !is_warm(part.name));
    let lengths: Vec<_> = kept().map(|part| (part.name, part.length)).collect();
    let writer = Writer::create(to, &lengths)?;
    for part in kept() {
        ami.verify_part(part.name)?;
        let source = Source::File {
            file: ami.file(),
            offset: part.offset,
        };
        writer.fill(part.name, source)?;
    }
    Ok(writer.finish(manifest.clone(), progress)?.0)
}

/// Whether only a warm image has this part.
fn is_warm(name: PartName) -> bool {
    matches!(name, PartName::Memory | PartName::State)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ami::{Architecture, SCHEMA, Warm};

    const PARTS: [(PartName, &[u8]); 5] = [
        (PartName::Kernel, b"kernel"),
        (PartName::Initramfs, b"initramfs"),
        (PartName::Root, &[5; 8192]),
        (PartName::Memory, &[6; 4096]),
        (PartName::State, b"state"),
    ];

    /// An image of the first `count` parts.
    fn image(path: &Path, count: usize) -> Ami {
        let parts = &PARTS[..count];
        let lengths: Vec<_> = parts
            .iter()
            .map(|(name, bytes)| (*name, bytes.len() as u64))
            .collect();
        let writer = Writer::create(path, &lengths).unwrap();
        for (name, bytes) in parts {
            writer.fill(*name, Source::Bytes(bytes)).unwrap();
        }
        let mut manifest = Manifest::new("image", Architecture::X86_64);
        manifest.warm = (count == PARTS.len()).then(|| Warm {
            accelerator: "soft".into(),
            cpus: 1,
            memory: 4096,
        });
        writer.finish(manifest, &|_| {}).unwrap();
        Ami::open(path).unwrap()
    }

    #[test]
    fn it_is_the_image_that_never_was_warm() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (cold, warm) = (image(&at("cold"), 3), image(&at("warm"), 5));
        let id = write(&warm, &at("out"), &|_| {}).unwrap();
        assert_eq!(id, *cold.id());
        assert_eq!(Ami::open(at("out")).unwrap().manifest().schema, SCHEMA);
        assert!(std::fs::read(at("out")).unwrap() == std::fs::read(at("cold")).unwrap());
        // An image that is cold already comes out as it is.
        write(&cold, &at("again"), &|_| {}).unwrap();
        assert!(std::fs::read(at("again")).unwrap() == std::fs::read(at("cold")).unwrap());
    }

    #[test]
    fn a_damaged_part_is_not_passed_on() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("warm");
        let offset = image(&path, 5).part(PartName::Root).unwrap().offset;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"x", offset).unwrap();
        let error = write(&Ami::open(&path).unwrap(), &dir.path().join("out"), &|_| {}).unwrap_err();
        assert!(error.to_string().contains("root part"), "{error}");
        assert!(!dir.path().join("out").exists());
    }
}
