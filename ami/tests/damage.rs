//! Damaged files: a reader names the damaged part, never panics and never returns wrong data.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ami::{
    Ami, Architecture, ChunkTable, Error, Manifest, PartName, Region, SCHEMA, SCHEMA_WARM, Signature, Source,
    Warm, Writer,
};
use proptest::prelude::*;

fn content(name: PartName) -> Vec<u8> {
    let length = match name {
        PartName::Kernel => 5000,
        PartName::Initramfs => 1 << 20,
        PartName::Root => (3 << 20) + 8192,
        PartName::Sbom => 77,
        PartName::Memory => 3 << 12,
        PartName::State => 99,
    };
    (0..length)
        .map(|i: usize| (i * 7 + name as usize) as u8)
        .collect()
}

/// A warm image, which has every part.
fn write(path: &Path) -> ami::AmiId {
    let warm = Warm {
        accelerator: "soft".into(),
        cpus: 1,
        memory: content(PartName::Memory).len() as u64,
    };
    write_parts(path, &PartName::ALL, Some(warm))
}

fn write_parts(path: &Path, parts: &[PartName], warm: Option<Warm>) -> ami::AmiId {
    let lengths: Vec<_> = parts.iter().map(|n| (*n, content(*n).len() as u64)).collect();
    let writer = Writer::create(path, &lengths).unwrap();
    for &name in parts {
        writer.fill(name, Source::Bytes(&content(name))).unwrap();
    }
    let mut manifest = Manifest::new("test", Architecture::X86_64);
    manifest.command_line = "quiet".into();
    manifest.warm = warm;
    writer.finish(manifest, &|_| {}).unwrap().0
}

/// One intact image for all tests, and a directory that lives as long.
fn intact() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("intact.ami");
        write(&path);
        (dir, path)
    });
    path
}

fn open_and_verify(path: &Path) -> Result<(), Error> {
    Ami::open(path)?.verify_all(&|_, _| {})
}

/// A copy of the intact image, changed.
fn damaged(change: impl FnOnce(&File)) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.ami");
    std::fs::copy(intact(), &path).unwrap();
    change(&OpenOptions::new().read(true).write(true).open(&path).unwrap());
    let error = open_and_verify(&path).unwrap_err();
    assert!(!error.hint().is_empty());
    error
}

fn flip(at: u64) -> Error {
    damaged(|file| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    })
}

#[test]
fn an_intact_image_gives_back_what_was_written() {
    let ami = Ami::open(intact()).unwrap();
    ami.verify_all(&|_, _| {}).unwrap();
    for name in PartName::ALL {
        let mut read = Vec::new();
        std::io::Read::read_to_end(&mut ami.reader(name).unwrap(), &mut read).unwrap();
        assert!(read == content(name), "{name}");
        assert_eq!(ami.part(name).unwrap().offset % ami::ALIGNMENT, 0);
    }
    let table = ami.root_chunks().unwrap();
    assert_eq!(
        table.len(),
        ChunkTable::count_for(content(PartName::Root).len() as u64)
    );
    for (i, chunk) in content(PartName::Root).chunks(1 << 20).enumerate() {
        assert!(table.verify(i as u64, chunk));
    }
    assert!(ami.read_at(PartName::Sbom, 70, &mut [0; 8]).is_err());
    ami.read_at(PartName::Sbom, 70, &mut [0; 7]).unwrap();
}

#[test]
fn the_same_content_is_the_same_file_with_the_same_id() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    assert_eq!(write(&a), write(&b));
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        2,
        "nothing else is left behind"
    );
}

/// A program that reads format 1 only says so of a warm image, and reads every other image.
#[test]
fn only_a_warm_image_has_the_newer_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cold.ami");
    write_parts(&path, &PartName::ALL[..4], None);
    let format = |path: &Path| {
        let mut number = [0; 4];
        File::open(path)
            .unwrap()
            .read_exact_at(&mut number, (1 << 20) + 16)
            .unwrap();
        u32::from_le_bytes(number)
    };
    assert_eq!(format(&path), SCHEMA);
    assert_eq!(format(intact()), SCHEMA_WARM);
    let cold = Ami::open(&path).unwrap();
    cold.verify_all(&|_, _| {}).unwrap();
    assert_eq!(cold.manifest().schema, SCHEMA);
    // The memory is as long as it is, whatever of it is a hole.
    let warm = Ami::open(intact()).unwrap();
    let memory = warm.part(PartName::Memory).unwrap().length;
    assert!((1..=memory).contains(&warm.stored(PartName::Memory).unwrap()));
    let text = String::from_utf8(cold.manifest_bytes().to_vec()).unwrap();
    assert!(!text.contains("warm"), "{text}");
}

#[test]
fn a_format_of_the_future_is_named() {
    for (format, is_future) in [(SCHEMA, false), (SCHEMA_WARM + 1, true)] {
        let error = damaged(|file| {
            let mut header = [0u8; 4096];
            file.read_exact_at(&mut header, 1 << 20).unwrap();
            header[16..20].copy_from_slice(&format.to_le_bytes());
            let digest = ami::Digest::of(&header[..4064]).0;
            header[4064..].copy_from_slice(&digest);
            file.write_all_at(&header, 1 << 20).unwrap();
        });
        assert_eq!(error.region(), Some(Region::Header));
        assert_eq!(matches!(error, Error::Unsupported { .. }), is_future, "{error}");
    }
}

#[test]
fn each_damaged_region_is_named() {
    let ami = Ami::open(intact()).unwrap();
    let length = std::fs::metadata(intact()).unwrap().len();
    let mib = 1 << 20;
    assert_eq!(flip(446).region(), Some(Region::Table));
    assert_eq!(flip(512 + 60).region(), Some(Region::Table));
    assert_eq!(flip(1024 + 130).region(), Some(Region::Table));
    assert_eq!(flip(length - 512).region(), Some(Region::BackupTable));
    assert_eq!(flip(mib).region(), Some(Region::Header));
    assert_eq!(flip(mib + 20).region(), Some(Region::Header));
    assert_eq!(flip(mib + 2000).region(), Some(Region::Header));
    assert_eq!(flip(mib + 4096 + 9).region(), Some(Region::Manifest));
    assert_eq!(flip(mib + 4096 + (256 << 10) + 33).region(), Some(Region::Chunks));
    assert_eq!(
        flip(mib + 4096 + (256 << 10) + 4096).region(),
        Some(Region::Signature)
    );
    assert_eq!(flip(mib - 1).region(), Some(Region::Padding));
    for part in &ami.manifest().parts {
        assert_eq!(flip(part.offset).region(), Some(Region::Part(part.name)));
        assert_eq!(
            flip(part.offset + part.length - 1).region(),
            Some(Region::Part(part.name))
        );
        if part.length % mib != 0 {
            assert_eq!(flip(part.offset + part.length).region(), Some(Region::Padding));
        }
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    let length = std::fs::metadata(intact()).unwrap().len();
    let error = damaged(|file| file.write_all_at(b"x", length).unwrap());
    assert!(error.to_string().contains("1 bytes follow"), "{error}");
}

#[test]
fn files_of_other_kinds_are_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for (bytes, word) in [
        (&b""[..], "empty"),
        (b"QFI\xfb", "qcow2"),
        (b"\x28\xb5\x2f\xfd", "unpack"),
        (b"x", "1 MiB"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Ami::open(&path).unwrap_err();
        assert!(
            matches!(error, Error::NotAnAmi { .. }) && error.to_string().contains(word),
            "{error}"
        );
    }
    let error = Ami::open(dir.path().join("nothing")).unwrap_err();
    assert!(error.hint().contains("imgtool build"), "{error}");
}

#[test]
fn signing_changes_neither_id_nor_verification() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("signed.ami");
    let id = write(&path);
    let ami = Ami::open(&path).unwrap();
    assert_eq!(ami.signature().unwrap(), None);
    let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let signature = Signature::sign(ami.manifest_bytes(), &key, *b"kiln-key");
    ami.set_signature(Some(&signature)).unwrap();
    let ami = Ami::open(&path).unwrap();
    ami.verify_all(&|_, _| {}).unwrap();
    assert_eq!(*ami.id(), id);
    ami.signature()
        .unwrap()
        .unwrap()
        .verify(ami.manifest_bytes(), &key.verifying_key(), *b"kiln-key")
        .unwrap();
}

/// Rewrite the manifest of a valid image with correct digests, to reach the checks behind them.
fn with_manifest(text: &str) -> Error {
    damaged(|file| {
        let mut header = [0u8; 4096];
        file.read_exact_at(&mut header, 1 << 20).unwrap();
        header[20..24].copy_from_slice(&(text.len() as u32).to_le_bytes());
        header[32..64].copy_from_slice(&ami::Digest::of(text.as_bytes()).0);
        let digest = ami::Digest::of(&header[..4064]).0;
        header[4064..].copy_from_slice(&digest);
        file.write_all_at(&header, 1 << 20).unwrap();
        file.write_all_at(text.as_bytes(), (1 << 20) + 4096).unwrap();
    })
}

#[test]
fn impossible_values_in_a_forged_manifest_are_refused() {
    let bytes = Ami::open(intact()).unwrap().manifest_bytes().to_vec();
    let good = String::from_utf8(bytes).unwrap();
    let root = (3 << 20) + 8192;
    for (from, to) in [
        (
            format!("\"length\":{root}"),
            "\"length\":9007199254740991".to_owned(),
        ),
        (
            format!("\"length\":{root}"),
            "\"length\":1099511627776".to_owned(),
        ),
        (
            "\"name\":\"test\"".into(),
            "\"name\":\"test\",\"nothing\":1".into(),
        ),
        (
            "\"parts\":[".into(),
            format!("\"parts\":[{}", "[".repeat(100_000)),
        ),
    ] {
        assert!(good.contains(&from));
        let error = with_manifest(&good.replace(&from, &to));
        assert!(
            matches!(error.region(), Some(Region::Manifest | Region::Part(_))),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_flipped_bit_is_refused_by_name(at in 0u64..10 << 20, bit in 0u8..8) {
        let length = std::fs::metadata(intact()).unwrap().len();
        let at = at % length;
        let error = damaged(|file| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << bit)], at).unwrap();
        });
        prop_assert!(error.region().is_some(), "{error}");
    }

    #[test]
    fn any_truncation_is_refused_by_name(length in 0u64..10 << 20) {
        let length = length % std::fs::metadata(intact()).unwrap().len();
        let error = damaged(|file| file.set_len(length).unwrap());
        prop_assert!(error.region().is_some(), "{error}");
    }

    #[test]
    fn random_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 1..9000)) {
        let error = damaged(|file| file.write_all_at(&bytes, 1 << 20).unwrap_or(()));
        prop_assert!(error.region().is_some(), "{error}");
    }
}
