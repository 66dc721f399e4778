//! The boot timer: the guest reports the steps of its boot, and the host records the time of each. It also
//! gives the guest the host's time.
//!
//! | offset | width | access | |
//! |---|---|---|---|
//! | 0 | 1 | write | the code of what has been reached now |
//! | 8 | 8 | write | nanoseconds since the guest's kernel started, for a kernel that makes no marks itself |
//! | 16 | 8 | read | the host's time, nanoseconds since 1970 (UTC); 0 where the guest has a time of its own |
//!
//! A kernel reads its hypervisor's clock once, early, and then counts ticks until it has chosen a clock
//! source. It loses some of them, and its date is behind. A real-time clock gives whole seconds only.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::bus::{Action, BusDevice, RegisterNames};

/// What the guest says. Any of it may come, any number of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// This code's event happens now. What the codes mean is between guest and caller.
    Reached(u8),
    /// The kernel started at this moment.
    KernelStarted(Instant),
}

/// Takes a mark, on the vCPU's thread: it must not take long.
pub(crate) type Note = Box<dyn FnMut(Mark) + Send>;

/// A kernel that has run for longer has nothing to say of its boot.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Three registers.
pub struct BootTimer {
    note: Note,
    has_host_time: bool,
}

impl BootTimer {
    /// Bytes of address space.
    pub const SIZE: u64 = 24;
    /// Offset of the register for codes.
    pub const MARK: u64 = 0;
    /// Offset of the register for the kernel's age.
    pub const KERNEL_AGE: u64 = 8;
    /// Offset of the register with the host's time.
    pub const HOST_TIME: u64 = 16;
    /// Its registers' names.
    pub(crate) const REGISTERS: RegisterNames = &[
        (Self::MARK, "MARK"),
        (Self::KERNEL_AGE, "KERNEL_AGE"),
        (Self::HOST_TIME, "HOST_TIME"),
    ];

    /// A timer that calls `note` for each mark, and gives the host's time unless the guest has a time of its
    /// own.
    pub fn new(note: Note, has_host_time: bool) -> Self {
        BootTimer { note, has_host_time }
    }

    fn host_time(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.has_host_time {
            u64::try_from(since.as_nanos()).unwrap_or(0)
        } else {
            0
        }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, <&mut [u8; 8]>::try_from(&mut *data)) {
            (Self::HOST_TIME, Ok(time)) => *time = self.host_time().to_le_bytes(),
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let now = Instant::now();
        match (offset, data) {
            (Self::MARK, &[code]) => (self.note)(Mark::Reached(code)),
            (Self::KERNEL_AGE, data) => {
                let age = data.try_into().map(u64::from_le_bytes).map(Duration::from_nanos);
                let age = age.ok().filter(|age| *age <= MAX_AGE);
                if let Some(start) = age.and_then(|age| now.checked_sub(age)) {
                    (self.note)(Mark::KernelStarted(start));
                }
            }
            _ => {}
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn marks_arrive_in_order_and_ages_become_moments() {
        let (sender, marks) = mpsc::channel();
        let mut timer = BootTimer::new(Box::new(move |mark| sender.send(mark).unwrap()), true);
        let before = Instant::now();
        for code in [1, 2, 255] {
            assert_eq!(timer.write(BootTimer::MARK, &[code]), Action::None);
        }
        timer.write(BootTimer::MARK, &[1, 2]);
        timer.write(BootTimer::KERNEL_AGE, &1_000_000u64.to_le_bytes());
        timer.write(BootTimer::KERNEL_AGE, &[1]);
        timer.write(BootTimer::KERNEL_AGE, &u64::MAX.to_le_bytes());
        drop(timer);
        let marks: Vec<_> = marks.iter().collect();
        assert_eq!(marks[..3], [1, 2, 255].map(Mark::Reached));
        let Mark::KernelStarted(start) = marks[3] else {
            panic!("{marks:?}");
        };
        let age = before.duration_since(start);
        assert!(age <= Duration::from_millis(1) && marks.len() == 4, "{marks:?}");
    }

    #[test]
    fn the_hosts_time_is_given_where_it_is_the_guests() {
        let read = |has_host_time, offset, width: usize| {
            let mut data = vec![0xff; width];
            BootTimer::new(Box::new(|_| {}), has_host_time).read(offset, &mut data);
            data
        };
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let before = now();
        let given = u64::from_le_bytes(read(true, BootTimer::HOST_TIME, 8).try_into().unwrap());
        assert!((before..=now()).contains(&given), "{before} {given}");
        assert_eq!(read(false, BootTimer::HOST_TIME, 8), [0; 8]);
        for (offset, width) in [
            (BootTimer::HOST_TIME, 4),
            (20, 4),
            (17, 8),
            (0, 8),
            (8, 8),
            (0, 1),
        ] {
            assert_eq!(read(true, offset, width), vec![0; width], "{offset}");
        }
    }
}
