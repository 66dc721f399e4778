//! What a launch does before the guest runs: opening the image, placing the kernel, writing the tables.

use std::hint::black_box;
use std::path::{Path, PathBuf};

use ami::{Ami, Architecture, BlockDeviceMapping, Manifest, PartName, Source, Writer};
use criterion::{Criterion, criterion_group, criterion_main};
use machine::arch::{self, Controller, Platform};
use machine::memory::{self, Part};

const MIB: usize = 1 << 20;
/// Bytes of the kernel: about those of Debian's.
const KERNEL: usize = 48 * MIB;

/// An ELF kernel of `len` bytes with one segment at 1 MiB (System V ABI, chapters 4 and 5), which no
/// processor will enter.
fn kernel(len: usize) -> Vec<u8> {
    const HEADER: u16 = 64;
    const PROGRAM_HEADER: u16 = 56;
    const AT: u64 = 1 << 20;
    let offset = 4096_u64;
    let size = len as u64 - offset;
    let mut file = Vec::with_capacity(len);
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_EXEC, EM_X86_64, version 1, entry, program headers, no sections, no flags.
    file.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    file.extend(1_u32.to_le_bytes());
    file.extend([AT, u64::from(HEADER), 0].map(u64::to_le_bytes).concat());
    file.extend(0_u32.to_le_bytes());
    file.extend(
        [HEADER, PROGRAM_HEADER, 1, 64, 0, 0]
            .map(u16::to_le_bytes)
            .concat(),
    );
    // PT_LOAD, readable and executable.
    file.extend([1_u32, 5].map(u32::to_le_bytes).concat());
    file.extend([offset, AT, AT, size, size, 4096].map(u64::to_le_bytes).concat());
    file.resize(len, 0x90);
    file
}

fn image(directory: &Path) -> PathBuf {
    let path = directory.join("bench.ami");
    let (kernel, initramfs, root) = (kernel(KERNEL), vec![1; 3 * MIB], vec![2; 64 * MIB]);
    let parts: [(PartName, &[u8]); 3] = [
        (PartName::Kernel, &kernel),
        (PartName::Initramfs, &initramfs),
        (PartName::Root, &root),
    ];
    let lengths = parts.map(|(part, bytes)| (part, bytes.len() as u64));
    let writer = Writer::create(&path, &lengths).expect("a new image");
    for (part, bytes) in parts {
        writer.fill(part, Source::Bytes(bytes)).expect("a part");
    }
    let mut manifest = Manifest::new("bench", Architecture::X86_64);
    manifest.block_device_mappings = vec![BlockDeviceMapping {
        device: "/dev/vda".into(),
        size: 128 << 20,
        delete_on_termination: true,
    }];
    writer.finish(manifest, &|_| {}).expect("the manifest");
    path
}

fn open(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = image(directory.path());
    criterion.bench_function("ami-open", |bencher| {
        bencher.iter(|| Ami::open(black_box(&path)).expect("the image"));
    });
}

fn place(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let guest = Architecture::X86_64;
    let slots: Vec<_> = (0..5)
        .filter_map(|n| arch::layout(guest).virtio_slot(n))
        .collect();
    let platform = Platform {
        cpus: 2,
        cmdline: "quiet panic=-1 console=ttyS0 console=hvc0",
        virtio: &slots,
        serial: true,
        uuid: Some([7; 16]),
        controller: Controller::Apic,
    };
    let part = |name: &str, len: usize| {
        let path = directory.path().join(name);
        std::fs::write(&path, kernel(len)).expect("a temporary file");
        Part::open(&path).expect("the kernel")
    };
    let allocate = || memory::allocate(&arch::ram_regions(guest, 256 << 20)).expect("RAM");
    let boot = |memory: &memory::Memory, kernel: &Part| {
        let loaded = arch::load(guest, memory, kernel, None).expect("a kernel");
        arch::prepare(memory, &loaded, black_box(&platform)).expect("its tables")
    };
    let large = part("vmlinux", KERNEL);
    criterion.bench_function("kernel-and-tables-48MiB", |bencher| {
        bencher.iter_with_large_drop(|| {
            let memory = allocate();
            let boot = boot(&memory, &large);
            (memory, boot)
        });
    });
    // RAM that was touched before, and a kernel of two pages: what is left are ACPI, SMBIOS, page tables and
    // parameters.
    let (small, memory) = (part("small", 3 * 4096), allocate());
    criterion.bench_function("tables", |bencher| {
        bencher.iter(|| boot(&memory, &small));
    });
}

criterion_group!(benches, open, place);
criterion_main!(benches);
