//! What is read out of an image file: its tables and manifest, the kernel's formats, archives, the root file
//! system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use ami::{Ami, Architecture, Manifest, PartName, Source, Warm, Writer};
use imgtool::compose::{cpio, kernel, sbom};
use imgtool::progress::Quiet;
use imgtool::{base, imagefs, pack, sign};
use machine::arch::{self, Controller, Platform};
use machine::memory::{self, Part};
use vmm::profile::Symbols;

use crate::input::Input;
use crate::scratch;

/// RAM of a machine that a kernel is put into.
const RAM: u64 = 64 << 20;
/// Bytes of an image that an input may change.
const MAX_CHANGES: usize = 16;

/// The first byte chooses what the rest is.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 12 {
        0 => open(input.rest()),
        1 => damaged(&mut input),
        2 => manifest(input.rest()),
        3 => boot(Architecture::X86_64, input.rest()),
        4 => boot(Architecture::Arm64, input.rest()),
        5 => {
            let architecture = input.one_of(&[Architecture::X86_64, Architecture::Arm64]);
            let _ = kernel::from_bytes("kernel", input.rest(), architecture);
        }
        6 => {
            let _ = cpio::files(input.rest());
        }
        7 => {
            if let Ok(document) = sbom::decompress(input.rest()) {
                sbom::packages(&document);
            }
        }
        8 => root(input.rest()),
        9 => {
            let (folder, path) = scratch::file("packed", input.rest());
            let _ = pack::unpack(&path, &folder.path().join("plain"), &Quiet);
        }
        10 => {
            let (_folder, path) = scratch::file("key", input.rest());
            let _ = sign::PublicKey::load(&path);
            let _ = sign::SecretKey::load(&path);
        }
        _ => {
            let rest = input.rest();
            let _ = Symbols::of_kernel(rest);
            if let Ok(symbols) = Symbols::of_system_map(&String::from_utf8_lossy(rest)) {
                symbols.name(u64::MAX);
            }
        }
    }
}

fn open(bytes: &[u8]) {
    let (_folder, path) = scratch::file("image", bytes);
    if let Ok(ami) = Ami::open(&path) {
        look_into(&ami);
    }
}

/// All that is read from an image that was opened.
fn look_into(ami: &Ami) {
    for name in PartName::ALL {
        let mut first = [0; 64];
        let _ = ami.read_at(name, 0, &mut first);
        let _ = ami.verify_part(name);
    }
    let _ = ami.root_chunks();
    let _ = ami.signature();
    let _ = imagefs::of_ami(ami);
    let _ = base::kernel_of(ami);
}

fn content(name: PartName) -> Vec<u8> {
    match name {
        PartName::Kernel => [b"\x7fELF\x02\x01".as_slice(), &[0; 600]].concat(),
        PartName::Initramfs => cpio::Archive::new().finish(),
        PartName::Root => vec![0; 64 << 10],
        PartName::Sbom => vec![0; 32],
        PartName::Memory => vec![0; 4096],
        PartName::State => vec![0; 64],
    }
}

/// A sound image, once for all inputs.
fn intact() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let folder = scratch::folder();
        let path = folder.path().join("intact.ami");
        let lengths = PartName::ALL.map(|name| (name, content(name).len() as u64));
        let writer = Writer::create(&path, &lengths).expect("room for an image");
        for name in PartName::ALL {
            writer
                .fill(name, Source::Bytes(&content(name)))
                .expect("room for an image");
        }
        let mut manifest = Manifest::new("intact", Architecture::X86_64);
        manifest.warm = Some(Warm {
            accelerator: "soft".into(),
            cpus: 1,
            memory: content(PartName::Memory).len() as u64,
        });
        writer.finish(manifest, &|_| {}).expect("room for an image");
        (folder, path)
    });
    path
}

/// A sound image with a few bytes changed, mostly in its tables.
fn damaged(input: &mut Input<'_>) {
    let mut bytes = std::fs::read(intact()).expect("it was written");
    for _ in 0..MAX_CHANGES {
        if input.is_empty() {
            break;
        }
        let (kind, place, value) = (input.byte(), input.word() as usize, input.byte());
        let at = match kind % 4 {
            0 => place % 512,
            1 => 512 + place % 0x8000,
            2 => (1 << 20) + place % 0x4000,
            _ => place % bytes.len(),
        };
        bytes[at] = value;
    }
    open(&bytes);
}

/// A manifest that is read is one that can be written, to the same effect.
fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::from_bytes(bytes) else {
        return;
    };
    manifest.root_volume_size();
    let written = manifest.to_bytes().expect("what was read can be written");
    let again = Manifest::from_bytes(&written).expect("what was written can be read");
    assert!(again == manifest, "a manifest changed on its way");
}

/// Puts a kernel and an initramfs of the same bytes into RAM.
fn boot(architecture: Architecture, bytes: &[u8]) {
    let (_folder, path) = scratch::file("kernel", bytes);
    let (Ok(kernel), Ok(ram)) = (
        Part::open(&path),
        memory::allocate(&arch::ram_regions(architecture, RAM)),
    ) else {
        return;
    };
    let platform = Platform {
        cpus: 1,
        cmdline: "quiet",
        virtio: &[],
        serial: true,
        uuid: None,
        controller: Controller::Apic,
    };
    if let Ok(loaded) = arch::load(architecture, &ram, &kernel, Some(&kernel)) {
        let _ = arch::prepare(&ram, &loaded, &platform);
    }
}

fn root(bytes: &[u8]) {
    let (_folder, path) = scratch::file("root", bytes);
    let file = File::open(&path).expect("it was just written");
    let _ = imagefs::of_file(Arc::new(file), 0, bytes.len() as u64, &path);
}
