//! The boot timer: the guest marks what it has reached with a one-byte write, and the host notes when.

use std::time::Instant;

use crate::bus::{Action, BusDevice};

/// Takes a mark and the moment that it was made.
pub type Note = Box<dyn FnMut(u8, Instant) + Send>;

/// A single write-only byte.
pub struct BootTimer {
    note: Note,
}

impl BootTimer {
    /// Bytes of address space.
    pub const SIZE: u64 = 1;

    /// A timer that calls `note` for each mark, on the vCPU's thread: it must not take long. What the codes mean is
    /// between guest and caller; any byte may come, any number of times.
    pub fn new(note: Note) -> Self {
        BootTimer { note }
    }
}

impl BusDevice for BootTimer {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Action {
        let now = Instant::now();
        if let &[code] = data {
            (self.note)(code, now);
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn marks_arrive_in_order_with_their_time() {
        let (sender, marks) = mpsc::channel();
        let mut timer = BootTimer::new(Box::new(move |code, at| sender.send((code, at)).unwrap()));
        let before = Instant::now();
        for code in [1, 2, 255] {
            assert_eq!(timer.write(0, &[code]), Action::None);
        }
        timer.write(0, &[1, 2]);
        drop(timer);
        let marks: Vec<_> = marks.iter().collect();
        assert_eq!(marks.iter().map(|mark| mark.0).collect::<Vec<_>>(), [1, 2, 255]);
        assert!(marks.iter().all(|mark| mark.1 >= before) && marks.is_sorted_by_key(|mark| mark.1));
    }
}
