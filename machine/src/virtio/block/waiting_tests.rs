//! A disk whose host has no space, on demand.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, channel};

use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::VolatileSlice;

use super::*;
use crate::block::raw::RawFile;
use crate::limit::RateLimiter;
use crate::virtio::determinism::{Determinism, WorkerGate};
use crate::virtio::mmio::register;
use crate::virtio::testing::{Driver, Request as Sent};

const DISK: u64 = 1 << 20;

/// A plain file that has space or not, and whose flush can fail.
struct Tight {
    inner: RawFile,
    /// Takes writes of rings while there is no space: it is `/dev/full`.
    full_file: File,
    full: AtomicBool,
    /// As `full`, but rings read and write the file itself: only what is done synchronously fails.
    writes_full: AtomicBool,
    flush_fails: AtomicBool,
}

impl Tight {
    /// One without space.
    fn new(file: File, full_file: File) -> Tight {
        Tight {
            inner: RawFile::new(file).unwrap(),
            full_file,
            full: AtomicBool::new(true),
            writes_full: AtomicBool::new(false),
            flush_fails: AtomicBool::new(false),
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
}

impl Backend for Tight {
    fn size(&self) -> u64 {
        DISK
    }
    fn read_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.inner.read_at(offset, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check()?;
        if self.writes_full.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EDQUOT));
        }
        self.inner.write_at(offset, buffers)
    }
    fn flush(&self) -> io::Result<()> {
        if self.flush_fails.swap(false, Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.check()
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check()?;
        self.inner.write_zeroes(offset, len, unmap)
    }
    fn direct(&self, offset: u64, len: u64) -> Option<(BorrowedFd<'_>, u64)> {
        if self.writes_full.load(Ordering::SeqCst) && offset == 0 {
            return None;
        }
        if self.full.load(Ordering::SeqCst) {
            return Some((self.full_file.as_fd(), 0));
        }
        self.inner.direct(offset, len)
    }
}

struct World {
    file: File,
    tight: Arc<Tight>,
    driver: Driver,
    monitor: SpaceMonitor,
    /// `true` when a request waits, or waits again; `false` when none waits any more.
    reports: Receiver<bool>,
}

impl World {
    fn new(rings: Vec<AsyncIo>, prepare: impl FnOnce(&mut Driver)) -> World {
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK).unwrap();
        let full_file = File::options().write(true).open("/dev/full").unwrap();
        let tight = Arc::new(Tight::new(file.try_clone().unwrap(), full_file));
        let spec = Spec {
            read_only: false,
            id: "vol-1".into(),
            queues: 1,
        };
        let (report, reports) = channel();
        let monitor = SpaceMonitor::new(Box::new(move |event| {
            let _ = report.send(matches!(event, SpaceEvent::Exhausted(_)));
        }));
        let device = Block::with_limits(Arc::clone(&tight) as _, spec, rings, RateLimiter::default())
            .waiting_for_space(&monitor)
            .unwrap();
        let mut driver = Driver::new(device);
        prepare(&mut driver);
        driver.start(u64::MAX);
        World {
            file,
            tight,
            driver,
            monitor,
            reports,
        }
    }

    /// With the host's threads, one request after the other and several at once.
    fn both() -> Vec<World> {
        let ring = AsyncIo::new().into_iter().collect();
        [Vec::new(), ring].map(|rings| World::new(rings, |_| {})).into()
    }

    fn submit(&mut self, kind: u32, sector: u64, data: &[u8]) -> Sent {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let sent = self.driver.submit(0, &[&header, data], &[1]);
        self.driver.ring(0);
        sent
    }

    fn is_full(&self, full: bool) {
        self.tight.full.store(full, Ordering::SeqCst);
    }

    fn waits(&self) -> bool {
        self.reports.recv().unwrap()
    }

    fn status(&mut self) -> u32 {
        self.driver.wait_used(0).data[0].into()
    }

    fn on_disk(&self, sector: u64) -> [u8; 512] {
        let mut data = [0; 512];
        self.file.read_exact_at(&mut data, sector * 512).unwrap();
        data
    }
}

#[test]
fn a_write_waits_for_space_and_is_carried_out_when_there_is() {
    for mut world in World::both() {
        world.submit(blk::VIRTIO_BLK_T_OUT, 3, &[7; 512]);
        assert!(world.waits());
        // The queue takes nothing else meanwhile.
        world.submit(blk::VIRTIO_BLK_T_OUT, 4, &[8; 512]);
        world.submit(blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &[0; 16]);
        world.monitor.retry();
        assert!(world.waits(), "still no space");
        // A pause of the machine keeps the request, and going on tries it at once.
        world.driver.transport().pause();
        world.driver.transport().resume();
        assert!(world.waits(), "still no space");
        assert!(world.driver.take_used(0).is_none(), "nothing has failed");
        assert_eq!(world.on_disk(3), [0; 512]);
        world.is_full(false);
        world.monitor.retry();
        assert!(!world.waits());
        for _ in 0..3 {
            assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
        }
        assert_eq!((world.on_disk(3), world.on_disk(4)), ([7; 512], [8; 512]));
        // And again, as often as it happens.
        world.is_full(true);
        world.submit(blk::VIRTIO_BLK_T_OUT, 5, &[9; 512]);
        assert!(world.waits());
        world.is_full(false);
        world.monitor.retry();
        assert!(!world.waits());
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
        assert_eq!(world.on_disk(5), [9; 512]);
    }
}

#[test]
fn requests_in_flight_complete_while_a_write_waits() {
    for mut world in World::both() {
        // Reads and a write are taken together: the reads' answers come, whatever becomes of the write.
        let mut read = [0; 16];
        read[8] = 1;
        world.is_full(false);
        world.driver.submit(0, &[&read], &[512, 1]);
        world.driver.submit(0, &[&read], &[512, 1]);
        let mut write = [0; 16];
        write[0] = blk::VIRTIO_BLK_T_OUT as u8;
        world.tight.writes_full.store(true, Ordering::SeqCst);
        world.driver.submit(0, &[&write, &[7; 512]], &[1]);
        world.driver.ring(0);
        assert!(world.waits());
        for _ in 0..2 {
            assert_eq!(world.driver.wait_used(0).data[512], 0);
        }
        world.tight.writes_full.store(false, Ordering::SeqCst);
        world.monitor.retry();
        assert!(!world.waits());
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
    }
}

#[test]
fn a_reset_forgets_what_waits() {
    for mut world in World::both() {
        world.submit(blk::VIRTIO_BLK_T_OUT, 3, &[7; 512]);
        assert!(world.waits());
        world.driver.write(register::STATUS, 0);
        assert!(!world.waits());
        world.is_full(false);
        world.driver.start(u64::MAX);
        world.submit(blk::VIRTIO_BLK_T_OUT, 4, &[8; 512]);
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
        assert_eq!((world.on_disk(3), world.on_disk(4)), ([0; 512], [8; 512]));
    }
}

#[test]
fn a_driver_that_breaks_its_queue_gets_nothing_back() {
    for mut world in World::both() {
        world.submit(blk::VIRTIO_BLK_T_OUT, 3, &[7; 512]);
        assert!(world.waits());
        // More chains than the queue has descriptors.
        world.driver.set_available_index(0, u16::MAX / 2);
        world.is_full(false);
        world.monitor.retry();
        assert!(!world.waits());
        world.driver.wait_needs_reset();
    }
}

#[test]
fn a_discard_without_space_succeeds() {
    for mut world in World::both() {
        let mut range = [0; 16];
        range[8] = 8;
        world.submit(blk::VIRTIO_BLK_T_DISCARD, 0, &range);
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
    }
}

#[test]
fn a_failed_flush_is_never_reported_as_successful_later() {
    for mut world in World::both() {
        world.is_full(false);
        world.submit(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
        world.tight.flush_fails.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            world.submit(blk::VIRTIO_BLK_T_FLUSH, 0, &[]);
            assert_eq!(world.status(), blk::VIRTIO_BLK_S_IOERR);
        }
    }
}

#[test]
fn without_a_monitor_the_guest_sees_an_error() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    let tight = Tight::new(file, File::open("/dev/null").unwrap());
    let spec = Spec {
        read_only: false,
        id: "vol-1".into(),
        queues: 1,
    };
    let mut driver = Driver::started(Block::new(Arc::new(tight), spec), u64::MAX);
    let mut header = [0; 16];
    header[0] = blk::VIRTIO_BLK_T_OUT as u8;
    let used = driver.request(0, &[&header, &[0; 512]], &[1]);
    assert_eq!(u32::from(used.data[0]), blk::VIRTIO_BLK_S_IOERR);
}

/// A disk in step with the processor: its worker waits, and so does the processor that has rung.
fn in_step() -> World {
    World::new(Vec::new(), |driver| {
        driver
            .transport()
            .keep_step(WorkerGate::new(Determinism::enabled()).unwrap());
    })
}

#[test]
fn in_step_the_processor_waits_with_the_write() {
    let mut world = in_step();
    let (monitor, tight) = (world.monitor.clone(), Arc::clone(&world.tight));
    std::thread::scope(|scope| {
        let reports = std::mem::replace(&mut world.reports, channel().1);
        scope.spawn(move || {
            assert!(reports.recv().unwrap());
            monitor.retry();
            assert!(reports.recv().unwrap(), "still no space");
            tight.full.store(false, Ordering::SeqCst);
            monitor.retry();
            assert!(!reports.recv().unwrap());
        });
        world.submit(blk::VIRTIO_BLK_T_OUT, 3, &[7; 512]);
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_OK);
    });
    assert_eq!(world.on_disk(3), [7; 512]);
}

#[test]
fn in_step_the_end_of_the_machine_ends_the_wait() {
    let mut world = in_step();
    let monitor = world.monitor.clone();
    std::thread::scope(|scope| {
        let reports = std::mem::replace(&mut world.reports, channel().1);
        scope.spawn(move || {
            assert!(reports.recv().unwrap());
            monitor.abandon();
        });
        world.submit(blk::VIRTIO_BLK_T_OUT, 3, &[7; 512]);
        assert_eq!(world.status(), blk::VIRTIO_BLK_S_IOERR);
    });
}
