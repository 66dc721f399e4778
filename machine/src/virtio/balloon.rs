//! The memory balloon (VIRTIO 1.3 §5.5) with free page reporting: memory that the guest does not use goes
//! back to the host.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::VolatileSlice;

use super::ring::{Chain, QueueError};
use super::worker::{Context, Engine, Service};
use super::{
    Activation, DeviceInterrupt, DeviceState, DeviceTraits, Error, Queue, Unsaved, VirtioDevice,
    read_config_bytes,
};
use crate::memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, give_back};
use crate::sandbox::Kind;
use crate::state::Refused;

/// The guest may take pages back before it runs out of memory (§5.5.3).
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// The guest reports pages that it does not use (§5.5.3).
const F_REPORTING: u64 = 1 << 5;
/// Inflate, deflate, and, since no statistics are offered, reporting. Linux reports 32 ranges at a time.
const QUEUE_SIZES: [u16; 3] = [128, 128, 32];
const INFLATE: usize = 0;
const REPORTING: usize = 2;
/// Size of a balloon page, whatever the guest's pages are.
pub const PAGE: u64 = 4096;
/// Page numbers in one request: Linux sends 256. A request with more is served this far.
const MAX_PAGES: usize = 8192;
/// Where `actual` lies in the configuration (§5.5.4).
const ACTUAL: u64 = 4;

/// How large the balloon is to be, and is. Clones are of the same balloon.
#[derive(Clone, Default)]
pub struct Target {
    inner: Arc<TargetInner>,
}

#[derive(Default)]
struct TargetInner {
    wanted: AtomicU32,
    actual: AtomicU32,
    /// Held while the interrupt is raised; see `Bus` for what that locks.
    interrupt: Mutex<Option<Arc<dyn DeviceInterrupt>>>,
}

impl Target {
    /// Asks the guest to give up, in all, `bytes` of its memory (rounded down to pages).
    pub fn set(&self, bytes: u64) {
        self.inner
            .wanted
            .store(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX), Ordering::SeqCst);
        if let Some(interrupt) = &*self.interrupt()
            && let Err(error) = interrupt.config()
        {
            tracing::debug!("balloon: the guest was not notified of its new size: {error}");
        }
    }

    /// What the guest says that it has given up, in bytes.
    #[cfg(test)]
    fn actual(&self) -> u64 {
        u64::from(self.inner.actual.load(Ordering::SeqCst)) * PAGE
    }

    fn interrupt(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn DeviceInterrupt>>> {
        self.inner
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The balloon of a machine.
pub struct BalloonSpec {
    /// How large it is to be.
    pub target: Target,
}

impl BalloonSpec {
    /// Builds the device.
    pub fn build(self) -> Balloon {
        Balloon::new(self.target)
    }
}

/// A balloon.
pub struct Balloon {
    target: Target,
    engine: Engine<Pages>,
}

impl Balloon {
    /// A balloon that is as large as `target` says.
    pub fn new(target: Target) -> Self {
        Balloon {
            target,
            engine: Engine::Idle(Pages),
        }
    }
}

impl VirtioDevice for Balloon {
    fn traits(&self) -> DeviceTraits {
        let features = F_DEFLATE_ON_OOM | F_REPORTING;
        DeviceTraits {
            id: VIRTIO_ID_BALLOON,
            features,
            queue_sizes: &QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let inner = &self.target.inner;
        let ([a, b, c, d], [e, f, g, h]) = (
            inner.wanted.load(Ordering::SeqCst).to_le_bytes(),
            inner.actual.load(Ordering::SeqCst).to_le_bytes(),
        );
        read_config_bytes(&[a, b, c, d, e, f, g, h], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL, Ok(actual)) = (offset, data.try_into()) {
            self.target
                .inner
                .actual
                .store(u32::from_le_bytes(actual), Ordering::SeqCst);
        }
    }

    fn start(&mut self, active: Activation) -> Result<(), Error> {
        *self.target.interrupt() = Some(active.interrupt.clone());
        self.engine.start("balloon", Kind::Device, active)
    }

    fn stop(&mut self) -> Vec<Queue> {
        *self.target.interrupt() = None;
        self.engine.stop()
    }

    fn reset(&mut self) {
        self.target.inner.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> Result<DeviceState, Unsaved> {
        let Balloon { target, engine } = self;
        engine.service()?;
        let actual = target.inner.actual.load(Ordering::SeqCst);
        Ok(DeviceState::Balloon { actual })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        let DeviceState::Balloon { actual } = *state else {
            return Err(DeviceState::FOREIGN);
        };
        self.target.inner.actual.store(actual, Ordering::SeqCst);
        Ok(())
    }
}

/// Gives pages back to the host.
struct Pages;

impl Service for Pages {
    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let guest = memory.clone();
        rings[index].drain(memory, &**interrupt, |chain| {
            match index {
                INFLATE => inflate(&guest, chain),
                REPORTING => chain.writable.slices().iter().for_each(release),
                // Deflation needs nothing: a page comes back when the guest touches it.
                _ => {}
            }
            Ok(0)
        })
    }
}

/// Releases the pages whose numbers the guest has sent, neighbours together.
fn inflate(memory: &GuestMemoryMmap<()>, chain: &Chain<'_>) {
    let count = (chain.readable.len() / 4).min(MAX_PAGES);
    let number = |index: usize| {
        let mut raw = [0; 4];
        chain.readable.read(4 * index, &mut raw);
        u64::from(u32::from_le_bytes(raw))
    };
    let mut index = 0;
    while index < count {
        let first = number(index);
        let mut len = 1;
        while index + len < count && number(index + len) == first + len as u64 {
            len += 1;
        }
        index += len;
        // Pages that are not memory are the guest's mistake: they are ignored.
        let slices = GuestMemoryBackend::get_slices(memory, GuestAddress(first * PAGE), len * PAGE as usize);
        slices.flatten().for_each(|slice| release(&slice));
    }
}

/// Gives memory that the guest does not use to the host.
fn release(slice: &VolatileSlice<'_>) {
    if let Err(error) = give_back(slice) {
        // Locked or huge pages may stay: the guest only asks.
        tracing::debug!("balloon: memory could not be given back: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Bytes;
    use crate::virtio::core::isr;
    use crate::virtio::testing::Driver;
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;

    /// Well inside guest memory, away from what the driver uses.
    const FREE: u64 = 28 << 20;

    fn fill(driver: &Driver, pages: std::ops::Range<u64>) {
        for page in pages {
            driver
                .memory
                .write_slice(&[7; 4096], GuestAddress(FREE + page * PAGE))
                .unwrap();
        }
    }

    fn first_byte(driver: &Driver, page: u64) -> u8 {
        driver.memory.read_obj(GuestAddress(FREE + page * PAGE)).unwrap()
    }

    #[test]
    fn inflated_pages_go_back_to_the_host() {
        let mut driver = Driver::started(Balloon::new(Target::default()), u64::MAX);
        fill(&driver, 0..6);
        let numbers: Vec<u8> = [1u32, 2, 4, 0xffff_ffff]
            .iter()
            .flat_map(|page| page.wrapping_add((FREE / PAGE) as u32).to_le_bytes())
            .collect();
        driver.request(INFLATE, &[&numbers], &[]);
        let left: Vec<u8> = (0..6).map(|page| first_byte(&driver, page)).collect();
        assert_eq!(left, [7, 0, 0, 7, 0, 7]);
        driver.request(1, &[&numbers], &[]);
        driver.request(INFLATE, &[&u32::MAX.to_le_bytes()], &[]);
        driver.request(INFLATE, &[&[1, 2, 3]], &[]);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn reported_ranges_go_back_in_whole_pages() {
        let mut driver = Driver::started(Balloon::new(Target::default()), u64::MAX);
        fill(&driver, 0..6);
        let write = VRING_DESC_F_WRITE as u16;
        driver.submit_buffers(
            REPORTING,
            &[
                (FREE + 100, 2 * PAGE as u32, write),
                (FREE + 4 * PAGE, 4096, write),
            ],
        );
        driver.ring(REPORTING);
        // Nothing is promised to have been written into the reported pages.
        assert_eq!(driver.wait_used(REPORTING).len, 0);
        let left: Vec<u8> = (0..6).map(|page| first_byte(&driver, page)).collect();
        assert_eq!(left, [7, 0, 7, 7, 0, 7]);
    }

    #[test]
    fn the_target_is_read_and_the_actual_size_is_written() {
        let target = Target::default();
        let mut driver = Driver::started(Balloon::new(target.clone()), u64::MAX);
        target.set(10 << 20);
        assert_ne!(driver.acknowledge() & isr::CONFIG, 0);
        assert_eq!(driver.config(0, 4), 2560u32.to_le_bytes());
        driver.write(crate::virtio::mmio::register::CONFIG + ACTUAL, 1000);
        assert_eq!(target.actual(), 1000 * PAGE);
        driver.start(u64::MAX);
        assert_eq!(target.actual(), 0);
    }
}
