//! The boot timer: the guest marks what it has reached, and the host notes when.
//!
//! | offset | width | write |
//! |---|---|---|
//! | 0 | 1 | the code of what has been reached now |
//! | 8 | 8 | nanoseconds since the guest's kernel started, for a kernel that makes no marks itself |

use std::time::{Duration, Instant};

use crate::bus::{Action, BusDevice};

/// What the guest says. Any of it may come, any number of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// This code's event happens now. What the codes mean is between guest and caller.
    Reached(u8),
    /// The kernel started at this moment.
    KernelStarted(Instant),
}

/// Takes a mark, on the vCPU's thread: it must not take long.
pub type Note = Box<dyn FnMut(Mark) + Send>;

/// A kernel that has run for longer has nothing to say of its boot.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Two write-only registers.
pub struct BootTimer {
    note: Note,
}

impl BootTimer {
    /// Bytes of address space.
    pub const SIZE: u64 = 16;
    /// Offset of the register for codes.
    pub const MARK: u64 = 0;
    /// Offset of the register for the kernel's age.
    pub const KERNEL_AGE: u64 = 8;

    /// A timer that calls `note` for each mark.
    pub fn new(note: Note) -> Self {
        BootTimer { note }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
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
        let mut timer = BootTimer::new(Box::new(move |mark| sender.send(mark).unwrap()));
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
}
