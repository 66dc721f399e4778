//! The entropy device (VIRTIO 1.3 §5.4).

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::ring::{Chain, QueueError};
use super::worker::{Context, Engine, Service};
use super::{Activation, DeviceState, DeviceTraits, Error, Queue, Unsaved, VirtioDevice};
use crate::entropy;
use crate::sandbox::Kind;
use crate::state::Refused;

/// Descriptors of the queue. Linux has one request under way.
const QUEUE_SIZES: [u16; 1] = [16];
/// Random bytes for one request; the rest of a larger buffer stays unused. It bounds what one request costs
/// the host.
const MAX_ENTROPY: usize = 64 << 10;

/// The source of entropy of a machine.
#[derive(Default)]
pub struct RngSpec {
    /// What all of its bytes follow from, for a machine whose every run is to be the same; `None` for the
    /// host's entropy.
    pub seed: Option<Vec<u8>>,
}

impl RngSpec {
    /// Builds the device.
    pub fn build(self) -> Rng {
        match self.seed {
            Some(seed) => Rng::seeded(&seed),
            None => Rng::default(),
        }
    }
}

/// A source of entropy for the guest: the host's own.
pub struct Rng {
    engine: Engine<Source>,
}

enum Source {
    /// The host's kernel.
    Host,
    /// A sequence that follows from a seed, for machines whose every run is to be the same.
    Seeded(Box<blake3::OutputReader>),
}

impl Default for Rng {
    fn default() -> Self {
        Rng {
            engine: Engine::Idle(Source::Host),
        }
    }
}

impl Rng {
    /// A source that gives the same bytes in every run with this `seed`. Nothing that it gives is a secret.
    pub(crate) fn seeded(seed: &[u8]) -> Self {
        let stream = blake3::Hasher::new_derive_key("kiln 2026-11-25 entropy of a repeatable machine")
            .update(seed)
            .finalize_xof();
        Rng {
            engine: Engine::Idle(Source::Seeded(Box::new(stream))),
        }
    }
}

impl VirtioDevice for Rng {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            id: VIRTIO_ID_RNG,
            features: 0,
            queue_sizes: &QUEUE_SIZES,
        }
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn start(&mut self, active: Activation) -> Result<(), Error> {
        self.engine.start("rng", Kind::Device, active)
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.engine.stop()
    }

    fn save(&self) -> Result<DeviceState, Unsaved> {
        let Rng { engine } = self;
        let position = match engine.service()? {
            Source::Host => None,
            Source::Seeded(stream) => Some(stream.position()),
        };
        Ok(DeviceState::Rng { position })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        let DeviceState::Rng { position } = *state else {
            return Err(DeviceState::FOREIGN);
        };
        match (self.engine.service_mut(), position) {
            (Ok(Source::Host), None) => Ok(()),
            (Ok(Source::Seeded(stream)), Some(position)) => {
                stream.set_position(position);
                Ok(())
            }
            _ => Err(Refused::Invalid("the source of entropy")),
        }
    }
}

impl Service for Source {
    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        rings[index].drain(memory, &**interrupt, |chain| self.fill(chain))
    }
}

impl Source {
    fn fill(&mut self, chain: &mut Chain<'_>) -> Result<u32, QueueError> {
        if chain.writable.is_empty() {
            return Err(QueueError::Request("a request for entropy without room for any"));
        }
        chain.writable.truncate(MAX_ENTROPY);
        for slice in chain.writable.slices() {
            match self {
                Source::Host => {
                    let mut bytes = vec![0; slice.len()];
                    entropy::fill(&mut bytes)?;
                    slice.copy_from(&bytes);
                }
                Source::Seeded(stream) => {
                    let mut bytes = vec![0; slice.len()];
                    stream.fill(&mut bytes);
                    slice.copy_from(&bytes);
                }
            }
        }
        Ok(chain.writable.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Driver;

    #[test]
    fn entropy_fills_the_buffers_and_differs() {
        let mut driver = Driver::started(Rng::default(), u64::MAX);
        let first = driver.request(0, &[], &[7, 64]);
        let second = driver.request(0, &[], &[7, 64]);
        assert_eq!((first.len, second.len), (71, 71));
        assert_ne!(first.data, second.data);
    }

    #[test]
    fn bytes_that_follow_from_a_seed_go_on_after_a_snapshot() {
        let ask = |driver: &mut Driver| driver.request(0, &[], &[37]).data;
        let mut whole = Driver::started(Rng::seeded(b"seed"), u64::MAX);
        let mut cut = Driver::started(Rng::seeded(b"seed"), u64::MAX);
        for _ in 0..3 {
            assert_eq!(ask(&mut cut), ask(&mut whole));
            cut.go_on_with(Rng::seeded(b"seed"));
        }
        // A request that nobody has rung for yet is served all the same.
        cut.submit(0, &[], &[37]);
        cut.go_on_with(Rng::seeded(b"seed"));
        assert_eq!(cut.wait_used(0).data, ask(&mut whole));
    }

    #[test]
    fn a_seed_gives_the_same_bytes_in_every_run() {
        let run = |seed: &[u8]| {
            let mut driver = Driver::started(Rng::seeded(seed), u64::MAX);
            [
                driver.request(0, &[], &[7, 64]).data,
                driver.request(0, &[], &[64]).data,
            ]
        };
        let first = run(b"a");
        assert_eq!(first, run(b"a"));
        assert_ne!(first, run(b"b"));
        assert_ne!(first[0][..64], first[1][..]);
    }

    #[test]
    fn a_huge_request_is_cut() {
        let mut driver = Driver::started(Rng::default(), u64::MAX);
        assert_eq!(driver.request(0, &[], &[1 << 20]).len, MAX_ENTROPY as u32);
    }

    #[test]
    fn a_request_without_a_writable_buffer_needs_a_reset() {
        let mut driver = Driver::started(Rng::default(), u64::MAX);
        driver.submit(0, &[b"x"], &[]);
        driver.ring(0);
        driver.wait_needs_reset();
    }
}
