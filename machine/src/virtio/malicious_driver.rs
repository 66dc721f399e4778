//! A malicious driver: turns bytes into broken rings, wild register writes and notify storms.
//!
//! Random tests and fuzzers run the same program through [`drive`]. Whatever the bytes are, the device must
//! not panic or hang, and must serve a correct driver after a reset.

use super::mmio::register;
use super::testing::{Driver, RAM};
use crate::memory::{Bytes, GuestAddress};

/// Steps taken from one input at most.
const MAX_STEPS: usize = 256;

/// Numbers out of the input; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// Mostly an address in memory, sometimes one at its edge or far outside.
    fn address(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => u64::from(self.word()) << 32 | u64::from(self.word()),
            1 => RAM - u64::from(self.byte()),
            _ => u64::from(self.word()) % RAM,
        }
    }

    /// Mostly a small length.
    fn len(&mut self) -> u32 {
        match self.byte() % 8 {
            0 => self.word(),
            1 => 0,
            2 => self.word() % (1 << 20),
            _ => self.byte().into(),
        }
    }

    /// Mostly an index of a small table.
    fn index(&mut self) -> u16 {
        if self.byte().is_multiple_of(16) {
            self.word() as u16
        } else {
            u16::from(self.byte() % 8)
        }
    }
}

/// Runs one input against a device that `driver` has started.
pub fn drive(driver: &mut Driver, input: &[u8]) {
    let mut input = Input(input);
    let mut queues = driver.queue_count();
    for _ in 0..MAX_STEPS {
        if input.0.is_empty() {
            break;
        }
        let queue = usize::from(input.byte()) % queues.max(1);
        match input.byte() % 16 {
            // Descriptors: address, length, any flags (next, write, indirect and bits that do not exist),
            // next.
            0..6 => {
                let (index, address, len) = (
                    input.index() % driver.layout(queue).size,
                    input.address(),
                    input.len(),
                );
                let flags = u16::from(input.byte() % 8);
                let next = input.index();
                driver.write_descriptor(queue, index, address, len, flags, next);
            }
            6..9 => {
                let head = input.index();
                driver.make_available(queue, head);
            }
            9 => {
                let index = input.word() as u16;
                driver.set_available_index(queue, index);
            }
            10..12 => (0..=input.byte() % 32).for_each(|_| driver.ring(queue)),
            // Content that a device may take for a header.
            12 => {
                let (at, bytes) = (
                    input.address(),
                    [input.word(), input.word(), input.word(), input.word()],
                );
                for (number, word) in (0..).zip(bytes) {
                    let place = GuestAddress(at.wrapping_add(4 * number));
                    let _ = driver.memory.write_obj(word % 64, place);
                }
            }
            13 => {
                let (offset, value) = (u64::from(input.byte()) % 0x40 * 4, input.word() % 64);
                if offset != register::STATUS || value != 0 {
                    driver.write(offset, value);
                }
            }
            14 => {
                let (offset, value) = (u64::from(input.byte()), input.word());
                driver.write(register::CONFIG + offset, value);
            }
            _ => {
                driver.start(u64::from(input.word()) << 32 | u64::from(input.word()));
                queues = driver.queue_count();
            }
        }
    }
    (0..queues).for_each(|queue| driver.ring(queue));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::raw::RawFile;
    use crate::limit::RateLimiter;
    use crate::virtio::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// What no device may do, whatever the driver does.
    fn survives(device: impl VirtioDevice + 'static, input: &[u8]) {
        let mut driver = Driver::started(device, u64::MAX);
        drive(&mut driver, input);
        // Coming back from here shows that the worker stopped; a started device that it can be used again.
        driver.start(u64::MAX);
        assert!(!driver.needs_reset());
    }

    fn inputs() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..1500)
    }

    struct Silent;

    impl crate::net::Backend for Silent {
        fn transmit(&mut self, _frame: &[u8]) {}
        fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
            buffer[..60].fill(1);
            Some(60)
        }
        fn descriptors(&self) -> Vec<(std::os::fd::RawFd, u32)> {
            Vec::new()
        }
        fn poll(&mut self) -> Option<u64> {
            None
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn block(input in inputs()) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let backend = Arc::new(RawFile::new(file).unwrap());
            let spec = block::Spec { read_only: false, id: String::new(), queues: 2 };
            survives(block::Block::new(backend, spec), &input);
        }

        #[test]
        fn block_in_flight(input in inputs()) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            let backend = Arc::new(RawFile::new(file).unwrap());
            let spec = block::Spec { read_only: false, id: String::new(), queues: 2 };
            // Where the kernel gives no ring, this is the case above again.
            let rings = (0..2).filter_map(|_| block::AsyncIo::new().ok()).collect();
            survives(block::Block::with_limits(backend, spec, rings, RateLimiter::default()), &input);
        }

        #[test]
        fn rng(input in inputs()) {
            survives(rng::Rng::default(), &input);
        }

        #[test]
        fn console(input in inputs()) {
            let typed = std::fs::File::open("/dev/zero").unwrap();
            let output = Box::new(std::io::sink());
            survives(console::Console::new(Some(typed.into()), output, console::Size::default()), &input);
        }

        #[test]
        fn vsock(input in inputs()) {
            let dir = tempfile::tempdir().unwrap();
            let device = vsock::Vsock::bind(3, &dir.path().join("v")).unwrap();
            survives(device, &input);
        }

        #[test]
        fn net(input in inputs()) {
            survives(net::Net::new(Box::new(Silent), [2; 6]), &input);
        }

        #[test]
        fn balloon(input in inputs()) {
            survives(balloon::Balloon::new(balloon::Target::default()), &input);
        }
    }
}
