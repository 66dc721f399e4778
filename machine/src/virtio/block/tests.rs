use std::os::unix::fs::FileExt;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use std::time::Duration;

use super::*;
use crate::block::raw::RawFile;
use crate::virtio::core::status;
use crate::virtio::mmio::register;
use crate::virtio::testing::{Driver, RAM, SECOND_REGION};

const DISK: u64 = 1 << 20;

fn disk(read_only: bool) -> (std::fs::File, Driver) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    let backend = Arc::new(RawFile::new(file.try_clone().unwrap()).unwrap());
    let spec = Spec {
        read_only,
        id: "vol-0123456789abcdef0".into(),
        queues: 1,
    };
    (file, Driver::started(Block::new(backend, spec), u64::MAX))
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&sectors.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

/// Sends a request without data to the driver and returns its status.
fn send(driver: &mut Driver, kind: u32, sector: u64, data: &[u8]) -> u32 {
    let used = driver.request(0, &[&header(kind, sector), data], &[1]);
    assert_eq!(used.len, 1);
    used.data[0].into()
}

#[test]
fn written_sectors_are_read_back() {
    let (file, mut driver) = disk(false);
    let data: Vec<u8> = (0..8192u32).map(|i| i as u8 ^ (i >> 8) as u8).collect();
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_OUT, 3, &data),
        blk::VIRTIO_BLK_S_OK
    );
    let mut on_disk = vec![0; 8192];
    file.read_exact_at(&mut on_disk, 3 * 512).unwrap();
    assert_eq!(on_disk, data);
    let used = driver.request(0, &[&header(blk::VIRTIO_BLK_T_IN, 4)], &[500, 1000, 2596, 1]);
    assert_eq!(used.len, 4097);
    assert_eq!((&used.data[..4096], used.data[4096]), (&data[512..4608], 0));
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_FLUSH, 0, &[]),
        blk::VIRTIO_BLK_S_OK
    );
}

#[test]
fn buffers_may_cross_regions_and_come_from_an_indirect_table() {
    let (file, mut driver) = disk(false);
    file.write_all_at(&[0xab; 4096], 0).unwrap();
    let head = driver.buffer(16);
    driver
        .memory
        .write_slice(&header(blk::VIRTIO_BLK_T_IN, 0), GuestAddress(head))
        .unwrap();
    let status = driver.buffer(1);
    let write = VRING_DESC_F_WRITE as u16;
    let buffers = [
        (head, 16, 0),
        (SECOND_REGION - 1000, 4096, write),
        (status, 1, write),
    ];
    driver.submit_indirect(0, &buffers);
    driver.ring(0);
    let used = driver.wait_used(0);
    assert_eq!(used.len, 4097);
    assert_eq!(used.data[..4096], [0xab; 4096]);
}

#[test]
fn impossible_requests_fail_with_the_right_status() {
    let (_file, mut driver) = disk(false);
    let sector = [0; 512];
    let last = DISK / 512 - 1;
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_OUT, last, &sector),
        blk::VIRTIO_BLK_S_OK
    );
    for at in [last + 1, u64::MAX, u64::MAX / 512] {
        assert_eq!(
            send(&mut driver, blk::VIRTIO_BLK_T_OUT, at, &sector),
            blk::VIRTIO_BLK_S_IOERR,
            "{at}"
        );
    }
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_OUT, 0, &[0; 511]),
        blk::VIRTIO_BLK_S_IOERR
    );
    assert_eq!(send(&mut driver, 99, 0, &sector), blk::VIRTIO_BLK_S_UNSUPP);
    let discard = blk::VIRTIO_BLK_T_DISCARD;
    assert_eq!(
        send(&mut driver, discard, 0, &range(0, 8, 1)),
        blk::VIRTIO_BLK_S_UNSUPP
    );
    assert_eq!(
        send(&mut driver, discard, 0, &range(last, 2, 0)),
        blk::VIRTIO_BLK_S_IOERR
    );
    assert_eq!(
        send(&mut driver, discard, 0, &range(0, 8, 0)[..15]),
        blk::VIRTIO_BLK_S_IOERR
    );
    assert_eq!(send(&mut driver, discard, 0, &[]), blk::VIRTIO_BLK_S_IOERR);
    assert_eq!(
        send(&mut driver, discard, 0, &range(0, 8, 0).repeat(33)),
        blk::VIRTIO_BLK_S_IOERR
    );
    let used = driver.request(0, &[&header(blk::VIRTIO_BLK_T_IN, last + 1)], &[512, 1]);
    assert_eq!(used.len, 0, "nothing is promised to have been written");
    assert!(!driver.needs_reset());
}

#[test]
fn a_read_only_disk_takes_no_write() {
    let (_file, mut driver) = disk(true);
    driver.write(register::DEVICE_FEATURES_SEL, 0);
    let features = driver.read(register::DEVICE_FEATURES);
    assert_ne!(features & 1 << blk::VIRTIO_BLK_F_RO, 0);
    assert_eq!(features & 1 << blk::VIRTIO_BLK_F_DISCARD, 0);
    for kind in [
        blk::VIRTIO_BLK_T_OUT,
        blk::VIRTIO_BLK_T_DISCARD,
        blk::VIRTIO_BLK_T_WRITE_ZEROES,
    ] {
        assert_eq!(send(&mut driver, kind, 0, &[0; 512]), blk::VIRTIO_BLK_S_IOERR);
    }
}

#[test]
fn zeroes_and_discards_reach_the_medium() {
    let (file, mut driver) = disk(false);
    file.write_all_at(&[1; 65536], 0).unwrap();
    let two = [range(1, 2, 0), range(8, 8, 1)].concat();
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &range(1, 2, 0)),
        blk::VIRTIO_BLK_S_OK
    );
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_DISCARD, 0, &range(16, 8, 0)),
        blk::VIRTIO_BLK_S_OK
    );
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_WRITE_ZEROES, 0, &two),
        blk::VIRTIO_BLK_S_IOERR,
        "one range"
    );
    let mut data = vec![0; 65536];
    file.read_exact_at(&mut data, 0).unwrap();
    for (sector, bytes) in data.chunks(512).enumerate() {
        let zero = matches!(sector, 1..3 | 16..24);
        assert_eq!(bytes, [u8::from(!zero); 512], "sector {sector}");
    }
}

#[test]
fn the_disk_reports_its_id_capacity_and_block_size() {
    let (_file, mut driver) = disk(false);
    let used = driver.request(0, &[&header(blk::VIRTIO_BLK_T_GET_ID, 0)], &[20, 1]);
    assert_eq!(&used.data[..20], b"vol-0123456789abcdef");
    assert_eq!(driver.config(0, 8), (DISK / 512).to_le_bytes());
    assert_eq!(driver.config(20, 4), 512u32.to_le_bytes());
    assert_eq!(driver.config(34, 2), 1u16.to_le_bytes());
    assert_eq!(driver.config(200, 4), [0; 4]);
}

#[test]
fn interrupts_come_only_when_asked_for() {
    let (_file, mut driver) = disk(false);
    driver.start(1 << VIRTIO_RING_F_EVENT_IDX | 1 << blk::VIRTIO_BLK_F_FLUSH);
    let before = driver.line.edges();
    // used_event is 0: the driver wants to be notified of the first used buffer, not of those that follow.
    for _ in 0..8 {
        driver.submit(0, &[&header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]);
    }
    driver.ring(0);
    for _ in 0..8 {
        driver.wait_used(0);
    }
    let edges = driver.line.edges() - before;
    assert!((1..=8).contains(&edges), "{edges} edges");
}

#[test]
fn broken_requests_cost_the_driver_its_device_and_nothing_else() {
    let write = VRING_DESC_F_WRITE as u16;
    let next = VRING_DESC_F_NEXT as u16;
    type Break = fn(&mut Driver, u16, u16);
    let breaks: [(&str, Break); 9] = [
        ("a loop", |driver, _, next| {
            driver.write_descriptor(0, 0, 0x10_0000, 16, next, 1);
            driver.write_descriptor(0, 1, 0x10_0000, 16, next, 0);
            driver.make_available(0, 0);
        }),
        ("a buffer outside memory", |driver, write, next| {
            driver.write_descriptor(0, 0, RAM - 8, 16, next, 1);
            driver.write_descriptor(0, 1, 0, 1, write, 0);
            driver.make_available(0, 0);
        }),
        ("a buffer that wraps around", |driver, write, _| {
            driver.write_descriptor(0, 0, u64::MAX - 8, 16, write, 0);
            driver.make_available(0, 0);
        }),
        ("a huge length", |driver, write, _| {
            driver.write_descriptor(0, 0, 0, u32::MAX, write, 0);
            driver.make_available(0, 0);
        }),
        ("a head outside the table", |driver, _, _| {
            driver.make_available(0, 9999)
        }),
        ("a next outside the table", |driver, _, next| {
            driver.write_descriptor(0, 0, 0x10_0000, 16, next, 9999);
            driver.make_available(0, 0);
        }),
        ("an index that jumps", |driver, _, _| {
            driver.set_available_index(0, 5000)
        }),
        ("readable after writable", |driver, write, next| {
            driver.write_descriptor(0, 0, 0x10_0000, 16, write | next, 1);
            driver.write_descriptor(0, 1, 0x10_0000, 16, 0, 0);
            driver.make_available(0, 0);
        }),
        ("no room for a status", |driver, _, _| {
            driver.write_descriptor(0, 0, 0x10_0000, 16, 0, 0);
            driver.make_available(0, 0);
        }),
    ];
    for (what, break_it) in breaks {
        let (_file, mut driver) = disk(false);
        break_it(&mut driver, write, next);
        driver.ring(0);
        driver.wait_needs_reset();
        // Ringing a failed device does nothing; a reset brings it back.
        driver.ring(0);
        driver.start(u64::MAX);
        assert!(!driver.needs_reset(), "{what}");
        assert_eq!(
            send(&mut driver, blk::VIRTIO_BLK_T_FLUSH, 0, &[]),
            blk::VIRTIO_BLK_S_OK,
            "{what}"
        );
    }
}

#[test]
fn a_paused_disk_goes_on_where_it_was() {
    let (_file, mut driver) = disk(false);
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_FLUSH, 0, &[]),
        blk::VIRTIO_BLK_S_OK
    );
    driver.transport().pause();
    driver.submit(0, &[&header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]);
    driver.ring(0);
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!(driver.take_used(0), None);
    driver.transport().resume();
    assert_eq!(driver.wait_used(0).len, 1);
    assert_eq!(driver.read(register::STATUS) & status::NEEDS_RESET, 0);
}

/// A disk whose reads return when two of them have come.
struct Meeting(std::sync::Barrier);

impl Backend for Meeting {
    fn size(&self) -> u64 {
        DISK
    }

    fn read_at(&self, _: u64, _: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
        self.0.wait();
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn queues_are_served_at_once_and_come_back_in_order() {
    let spec = Spec {
        read_only: false,
        id: String::new(),
        queues: 2,
    };
    let backend = Arc::new(Meeting(std::sync::Barrier::new(2)));
    let mut driver = Driver::started(Block::new(backend, spec), u64::MAX);
    assert_eq!(driver.config(34, 2), 2u16.to_le_bytes());
    // The second time after the queues were handed back and taken again.
    for _ in 0..2 {
        for queue in 0..2 {
            driver.submit(queue, &[&header(blk::VIRTIO_BLK_T_IN, 0)], &[512, 1]);
            driver.ring(queue);
        }
        for queue in 0..2 {
            assert_eq!(driver.wait_used(queue).len, 513);
        }
        driver.transport().pause();
        driver.transport().resume();
    }
}

/// A disk with a ring for its queue; `None`, and a message, where the kernel gives no ring.
fn asynchronous() -> Option<(std::fs::File, Driver)> {
    let ring = AsyncIo::new()
        .inspect_err(|error| eprintln!("no io_uring here ({error}): this test shows nothing"))
        .ok()?;
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    let backend = Arc::new(RawFile::new(file.try_clone().unwrap()).unwrap());
    let spec = Spec {
        read_only: false,
        id: "asynchronous".into(),
        queues: 1,
    };
    let device = Block::with_limits(backend, spec, vec![ring], RateLimiter::default());
    Some((file, Driver::started(device, u64::MAX)))
}

#[test]
fn requests_in_flight_all_complete() {
    let Some((file, mut driver)) = asynchronous() else {
        return;
    };
    // More than are carried at once, and others that are served synchronously among them.
    for round in 0..3 {
        let mut status = Vec::new();
        for n in 0..80u64 {
            let fill = [n as u8 + round; 512];
            driver.submit(0, &[&header(blk::VIRTIO_BLK_T_OUT, n), &fill], &[1]);
            if n % 16 == 0 {
                driver.submit(0, &[&header(blk::VIRTIO_BLK_T_FLUSH, 0)], &[1]);
                status.push(());
            }
            status.push(());
            if n % 40 == 39 {
                driver.ring(0);
            }
        }
        for () in status {
            let used = driver.wait_used(0);
            assert_eq!((used.len, used.data), (1, vec![blk::VIRTIO_BLK_S_OK as u8]));
        }
        let mut content = vec![0; 80 * 512];
        file.read_exact_at(&mut content, 0).unwrap();
        for (n, sector) in content.chunks(512).enumerate() {
            assert_eq!(sector, [n as u8 + round; 512], "sector {n}");
        }
        let used = driver.request(0, &[&header(blk::VIRTIO_BLK_T_IN, 5)], &[100, 1436, 1]);
        assert_eq!((used.len, &used.data[..1536]), (1537, &content[5 * 512..8 * 512]));
        driver.transport().pause();
        driver.transport().resume();
    }
}

#[test]
fn invalid_requests_fail_with_asynchronous_io_as_well() {
    let Some((file, mut driver)) = asynchronous() else {
        return;
    };
    let beyond = DISK / 512;
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_OUT, beyond, &[0; 512]),
        blk::VIRTIO_BLK_S_IOERR
    );
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_OUT, 0, &[0; 100]),
        blk::VIRTIO_BLK_S_IOERR
    );
    assert_eq!(send(&mut driver, 99, 0, &[]), blk::VIRTIO_BLK_S_UNSUPP);
    // A file that has become shorter gives less than is asked for.
    file.set_len(1000).unwrap();
    let used = driver.request(0, &[&header(blk::VIRTIO_BLK_T_IN, 0)], &[4096, 1]);
    assert_eq!(used.len, 0);
    // A broken request costs the device; what was in flight is no danger to the next start.
    for n in 0..8 {
        driver.submit(0, &[&header(blk::VIRTIO_BLK_T_OUT, n), &[n as u8; 512]], &[1]);
    }
    driver.submit(0, &[&[0; 3]], &[1]);
    driver.ring(0);
    driver.wait_needs_reset();
    driver.start(u64::MAX);
    assert_eq!(
        send(&mut driver, blk::VIRTIO_BLK_T_OUT, 9, &[9; 512]),
        blk::VIRTIO_BLK_S_OK
    );
    assert!(file.metadata().unwrap().len() >= 10 * 512);
}

use crate::memory::{Bytes, GuestAddress};

#[test]
fn a_limited_disk_serves_everything_in_its_time() {
    limited_disk(Vec::new());
    // Where the host has no io_uring there is nothing more to try.
    if let Ok(ring) = AsyncIo::new() {
        limited_disk(vec![ring]);
    }
}

fn limited_disk(rings: Vec<AsyncIo>) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    let spec = Spec {
        read_only: false,
        id: String::new(),
        queues: 1,
    };
    // 100 requests pass at once, 60 more in as many milliseconds.
    let limiter = RateLimiter::new(std::num::NonZeroU64::new(1000), None);
    let device = Block::with_limits(Arc::new(RawFile::new(file).unwrap()), spec, rings, limiter);
    let mut driver = Driver::started(device, u64::MAX);
    let start = std::time::Instant::now();
    for _ in 0..4 {
        for _ in 0..40 {
            driver.submit(0, &[&header(blk::VIRTIO_BLK_T_IN, 0)], &[512, 1]);
        }
        driver.ring(0);
        for _ in 0..40 {
            assert_eq!(driver.wait_used(0).len, 513);
        }
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(55), "160 requests took {took:?}");
    // What waits when the machine is paused goes on afterwards; a reset forgets it.
    for _ in 0..40 {
        driver.submit(0, &[&header(blk::VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    }
    driver.ring(0);
    driver.transport().pause();
    driver.transport().resume();
    for _ in 0..40 {
        assert_eq!(driver.wait_used(0).len, 513);
    }
    driver.submit(0, &[&header(blk::VIRTIO_BLK_T_IN, 0)], &[512, 1]);
    driver.ring(0);
    driver.start(u64::MAX);
    assert_eq!(
        driver
            .request(0, &[&header(blk::VIRTIO_BLK_T_IN, 0)], &[512, 1])
            .len,
        513
    );
}

#[test]
fn every_write_that_was_acknowledged_is_there_after_a_snapshot() {
    for features in [u64::MAX, !(1 << VIRTIO_RING_F_EVENT_IDX)] {
        let (file, mut driver) = disk(false);
        driver.start(features);
        let again = |file: &std::fs::File, sectors: u64| {
            file.set_len(sectors * SECTOR).unwrap();
            let backend = Arc::new(RawFile::new(file.try_clone().unwrap()).unwrap());
            let spec = Spec {
                read_only: false,
                id: String::new(),
                queues: 1,
            };
            Block::new(backend, spec)
        };
        for round in 0..20u64 {
            // Some are rung for, some are not, and the device is stopped in the middle of them.
            for n in 0..8 {
                let data = [(round * 8 + n) as u8 + 1; SECTOR as usize];
                driver.submit(0, &[&header(blk::VIRTIO_BLK_T_OUT, round * 8 + n), &data], &[1]);
                if n % 3 == 0 {
                    driver.ring(0);
                }
            }
            driver.go_on_with(again(&file, DISK / SECTOR));
            for _ in 0..8 {
                assert_eq!(driver.wait_used(0).data, [blk::VIRTIO_BLK_S_OK as u8]);
            }
        }
        let mut all = vec![0; 160 * SECTOR as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        let expected = (0..160).flat_map(|n| [n as u8 + 1; SECTOR as usize]);
        assert!(all.into_iter().eq(expected));
        // Another disk's state is no state of this one.
        driver.transport().pause();
        let state = driver.transport().save().unwrap();
        let mut other = Driver::new(again(&file, 7));
        let refused = other.transport().restore(&state).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "its disk's number of sectors is 2048, and 7 is needed"
        );
    }
}
