//! Disks: creating a root volume at different sizes, reading and writing through the backends, a request
//! through the virtqueue.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use machine::block::Backend;
use machine::block::raw::RawFile;
use machine::block::volume::{Base, Volume};
use machine::virtio::block::{Block, Spec};
use machine::virtio::testing::Driver;
use vm_memory::VolatileSlice;

/// Bytes of the base.
const BASE: usize = 16 << 20;
const BLOCK: usize = 4096;

/// A file of `BASE` bytes of data.
fn data_file(path: &Path) -> File {
    std::fs::write(path, vec![0xa5; BASE]).expect("a temporary file");
    File::open(path).expect("the file that was just written")
}

/// A base over the same file each time.
fn base(directory: &Path) -> Base {
    let path = directory.join("base");
    let file = File::open(&path).unwrap_or_else(|_| data_file(&path));
    Base::new(file, 0, BASE as u64, [1; 32])
}

/// Creation costs the same at any size: nothing is written but a header, and the file is sparse.
fn create(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut group = criterion.benchmark_group("volume-create");
    for gib in [1_u64, 100] {
        let path = directory.path().join("volume");
        group.bench_function(BenchmarkId::from_parameter(format!("{gib}GiB")), |bencher| {
            bencher.iter_custom(|count| {
                let mut spent = Duration::ZERO;
                for _ in 0..count {
                    // Opening the image is not part of making the volume.
                    let base = base(directory.path());
                    let begin = Instant::now();
                    let volume = Volume::create(&path, base, gib << 30).expect("a volume");
                    spent += begin.elapsed();
                    drop(volume);
                    std::fs::remove_file(&path).expect("the volume's file");
                }
                spent
            });
        });
    }
    group.finish();
}

fn transfer(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    drop(data_file(&directory.path().join("raw")));
    let raw = RawFile::open(&directory.path().join("raw"), false).expect("the raw file");
    let fresh =
        Volume::create(&directory.path().join("fresh"), base(directory.path()), 1 << 30).expect("a volume");
    let written =
        Volume::create(&directory.path().join("written"), base(directory.path()), 1 << 30).expect("a volume");
    let mut whole = vec![1; BASE];
    written
        .write_at(0, &[VolatileSlice::from(&mut whole[..])])
        .expect("writing");

    let mut buffer = vec![0; BLOCK];
    let mut group = criterion.benchmark_group("backend-4k");
    group.throughput(Throughput::Bytes(BLOCK as u64));
    let backends: [(&str, &dyn Backend); 3] =
        [("raw", &raw), ("volume-base", &fresh), ("volume-file", &written)];
    for (name, backend) in backends {
        let mut at = 0;
        group.bench_function(BenchmarkId::new("read", name), |bencher| {
            bencher.iter(|| {
                // A stride that is not a power of two visits every block.
                at = (at + 37 * BLOCK as u64) % BASE as u64;
                let slice = [VolatileSlice::from(&mut buffer[..])];
                backend.read_at(black_box(at), &slice).expect("reading");
            });
        });
    }
    for (name, backend) in [backends[0], backends[2]] {
        let mut at = 0;
        group.bench_function(BenchmarkId::new("write", name), |bencher| {
            bencher.iter(|| {
                at = (at + 37 * BLOCK as u64) % BASE as u64;
                let slice = [VolatileSlice::from(&mut buffer[..])];
                backend.write_at(black_box(at), &slice).expect("writing");
            });
        });
    }
    group.finish();
}

/// A read of 4 KiB from the driver's request to the interrupt, the hand-over to the device's thread included,
/// one at a time and 32 at once.
fn virtqueue(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    drop(data_file(&directory.path().join("raw")));
    let raw = RawFile::open(&directory.path().join("raw"), false).expect("the raw file");
    let spec = Spec {
        read_only: false,
        id: "bench".into(),
        queues: 1,
    };
    let mut driver = Driver::started(Block::new(Arc::new(raw), spec), u64::MAX);
    let mut group = criterion.benchmark_group("virtqueue-read-4k");
    for depth in [1, 32] {
        group.throughput(Throughput::Elements(depth));
        group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
            bencher.iter(|| {
                for sector in 0..depth {
                    // VIRTIO 1.3 §5.2.6: type VIRTIO_BLK_T_IN (0), reserved, sector.
                    let mut header = [0; 16];
                    header[8..].copy_from_slice(&(sector * 8).to_le_bytes());
                    driver.submit(0, &[&header], &[BLOCK as u32, 1]);
                }
                driver.ring(0);
                for _ in 0..depth {
                    let used = driver.wait_used(0);
                    assert_eq!(used.data.last(), Some(&0), "the request's status");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, create, transfer, virtqueue);
criterion_main!(benches);
