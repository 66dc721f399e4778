//! The boot timer: one-byte writes that report the steps of the boot to the host, and the host's time.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

const PAGE: usize = 4096;
/// Offset of the register that takes the kernel's age in nanoseconds.
const KERNEL_AGE: usize = 8;
/// Offset of the register with the host's time in nanoseconds since 1970.
const HOST_TIME: usize = 16;
/// What a host that knows this register gives: times from 2020 to 2200. One that does not answers with all
/// zeros or ones.
const TIMES: std::ops::Range<u64> = 1_577_836_800_000_000_000..7_258_118_400_000_000_000;

/// The doorbell's page, mapped. Without one (another hypervisor), marks go nowhere.
#[derive(Clone)]
pub struct BootTimer(Option<Arc<Doorbell>>);

struct Doorbell(*mut u8);

// SAFETY: the pointer is to a device page that stays mapped as long as the value lives; one-byte stores to it
// need no ordering among threads.
unsafe impl Send for Doorbell {}
// SAFETY: as above.
unsafe impl Sync for Doorbell {}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `open` with this size, and nothing else points into it.
        unsafe {
            libc::munmap(self.0.cast(), PAGE);
        }
    }
}

impl BootTimer {
    /// Maps the doorbell at guest-physical `address`, page aligned.
    pub fn open(address: Option<u64>) -> BootTimer {
        BootTimer(address.and_then(map).map(|page| Arc::new(Doorbell(page))))
    }

    /// Tells the host when this kernel started, by how long its clock has run: a stock kernel makes no mark
    /// itself.
    pub fn kernel_started(&self) {
        let Ok(age) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
            return;
        };
        if let Some(doorbell) = &self.0 {
            let nanos = age.tv_sec() as u64 * 1_000_000_000 + age.tv_nsec() as u64;
            // SAFETY: as in `mark`; the register is 8 bytes wide, 8 bytes from the start of the page, which
            // is aligned.
            unsafe { doorbell.0.add(KERNEL_AGE).cast::<u64>().write_volatile(nanos) }
        }
    }

    /// The host's time since 1970, if it gives any.
    pub fn host_time(&self) -> Option<Duration> {
        let doorbell = self.0.as_ref()?;
        // SAFETY: as in `mark`; the page is mapped for reading as well, and the register is 8 bytes wide and
        // aligned.
        let nanos = unsafe { doorbell.0.add(HOST_TIME).cast::<u64>().read_volatile() };
        TIMES.contains(&nanos).then(|| Duration::from_nanos(nanos))
    }

    /// Tells the host that the guest has reached `event`.
    pub fn mark(&self, event: u8) {
        if let Some(doorbell) = &self.0 {
            // SAFETY: the page is mapped for writing while `doorbell` lives. The store is volatile: the
            // device wants each one.
            unsafe { doorbell.0.write_volatile(event) }
        }
    }
}

fn map(address: u64) -> Option<*mut u8> {
    // 64 bits also where programs are of 32: the page lies above 2 GiB.
    let offset = libc::off64_t::try_from(address)
        .ok()
        .filter(|offset| offset % PAGE as libc::off64_t == 0)?;
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_SYNC)
        .open("/dev/mem")
        .ok()?;
    // SAFETY: a new shared mapping of one page; the kernel refuses addresses that are RAM.
    let page = unsafe {
        libc::mmap64(
            std::ptr::null_mut(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            memory.as_raw_fd(),
            offset,
        )
    };
    (page != libc::MAP_FAILED).then_some(page.cast())
}
