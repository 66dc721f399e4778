//! Negotiation, right and wrong, through the registers of the memory-mapped transport.

use std::sync::{Arc, Mutex};

use super::core::{TRANSPORT_FEATURES, isr, status};
use super::mmio::register::*;
use super::testing::{Driver, RAM};
use super::*;
use crate::bus::BusDevice;
use crate::net::SavedConnections;

/// The calls that a device got.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Call {
    Start { features: u64, ready: Vec<bool> },
    Stop,
    Reset,
    Write(u64, Vec<u8>),
}

type Log = Arc<Mutex<Vec<Call>>>;

/// A device that does nothing but remember.
struct Recorder {
    log: Log,
    active: Option<Activation>,
    fails: bool,
}

const OWN_FEATURE: u64 = 1 << 5;

impl VirtioDevice for Recorder {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            id: 42,
            features: OWN_FEATURE,
            queue_sizes: &[16, 4],
        }
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(b"config!", offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().push(Call::Write(offset, data.to_vec()));
    }
    fn start(&mut self, active: Activation) -> Result<(), Error> {
        if self.fails {
            return Err(Error::Lost);
        }
        use virtio_queue::QueueT;
        let ready = active.queues.iter().map(|(queue, _)| queue.ready()).collect();
        self.log.lock().unwrap().push(Call::Start {
            features: active.features,
            ready,
        });
        self.active = Some(active);
        Ok(())
    }
    fn stop(&mut self) -> Vec<Queue> {
        let Some(active) = self.active.take() else {
            return Vec::new();
        };
        self.log.lock().unwrap().push(Call::Stop);
        active.queues.into_iter().map(|(queue, _)| queue).collect()
    }
    fn reset(&mut self) {
        self.log.lock().unwrap().push(Call::Reset);
    }
    fn save(&self) -> Result<DeviceState, Unsaved> {
        Ok(DeviceState::Net(SavedConnections::default()))
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        match state {
            DeviceState::Net(_) => Ok(()),
            _ => Err(DeviceState::FOREIGN),
        }
    }
}

fn recorder(fails: bool) -> (Driver, Log) {
    let log = Log::default();
    (
        Driver::new(Recorder {
            log: log.clone(),
            active: None,
            fails,
        }),
        log,
    )
}

fn take(log: &Log) -> Vec<Call> {
    std::mem::take(&mut log.lock().unwrap())
}

#[test]
fn identification_is_fixed() {
    let (mut driver, _) = recorder(false);
    assert_eq!(driver.read(MAGIC_VALUE).to_le_bytes(), *b"virt");
    assert_eq!((driver.read(VERSION), driver.read(DEVICE_ID)), (2, 42));
    assert_eq!(driver.read(SHM_LEN_LOW), u32::MAX);
    driver.write(QUEUE_SEL, 1);
    assert_eq!(driver.read(QUEUE_SIZE_MAX), 4);
    driver.write(QUEUE_SEL, 2);
    assert_eq!(driver.read(QUEUE_SIZE_MAX), 0);
    driver.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(DEVICE_FEATURES), 0);
}

#[test]
fn a_correct_driver_starts_and_resets_the_device() {
    let (mut driver, log) = recorder(false);
    let agreed = driver.start(u64::MAX);
    assert_eq!(agreed, TRANSPORT_FEATURES | OWN_FEATURE);
    let expected = [
        Call::Reset,
        Call::Start {
            features: agreed,
            ready: vec![true, true],
        },
    ];
    assert_eq!(take(&log), expected);
    assert_eq!(driver.read(QUEUE_READY), 0, "queue 2 does not exist");
    driver.write(QUEUE_SEL, 0);
    assert_eq!(driver.read(QUEUE_READY), 1);
    driver.write(STATUS, 0);
    assert_eq!(take(&log), [Call::Stop, Call::Reset]);
    assert_eq!((driver.read(STATUS), driver.read(QUEUE_READY)), (0, 0));
    driver.write(STATUS, 0);
    assert_eq!(take(&log), [Call::Reset], "it was stopped already");
}

#[test]
fn a_queue_may_stay_disabled() {
    let (mut driver, log) = recorder(false);
    driver.negotiate(0);
    driver.enable_queues();
    driver.write(QUEUE_SEL, 1);
    driver.write(QUEUE_READY, 0);
    driver.write(STATUS, 15);
    assert!(!driver.needs_reset());
    assert!(matches!(&take(&log)[..], [Call::Reset, Call::Start { ready, .. }] if ready == &[true, false]));
}

#[test]
fn features_that_were_not_offered_are_declined() {
    for (select, bits) in [(0, 1), (1, 0), (1, 3)] {
        let (mut driver, _) = recorder(false);
        driver.write(STATUS, 3);
        driver.write(DRIVER_FEATURES_SEL, 1);
        driver.write(DRIVER_FEATURES, 1);
        driver.write(DRIVER_FEATURES_SEL, select);
        driver.write(DRIVER_FEATURES, bits);
        driver.write(STATUS, 11);
        assert_eq!(driver.read(STATUS), 3, "{bits:#x} in half {select}");
    }
}

#[test]
fn breaking_the_order_needs_a_reset_and_starts_nothing() {
    type Step = fn(&mut Driver);
    let wrong: [(&str, Step); 9] = [
        ("DRIVER_OK without features", |driver| driver.write(STATUS, 7)),
        ("features after FEATURES_OK", |driver| {
            driver.negotiate(0);
            driver.write(DRIVER_FEATURES, 0);
        }),
        ("features that do not exist", |driver| {
            driver.write(DRIVER_FEATURES_SEL, 7);
            driver.write(DRIVER_FEATURES, 1);
        }),
        ("a queue before FEATURES_OK", |driver| {
            driver.write(QUEUE_DESC_LOW, 0x1000)
        }),
        ("a queue that is enabled", |driver| {
            driver.negotiate(0);
            driver.enable_queues();
            driver.write(QUEUE_SEL, 0);
            driver.write(QUEUE_DESC_LOW, 0x1000);
        }),
        ("a queue that does not exist", |driver| {
            driver.negotiate(0);
            driver.write(QUEUE_SEL, 9);
            driver.write(QUEUE_READY, 1);
        }),
        ("a size that is no power of two", |driver| {
            driver.negotiate(0);
            driver.write(QUEUE_SIZE, 12);
        }),
        ("a size that is too large", |driver| {
            driver.negotiate(0);
            driver.write(QUEUE_SIZE, 32);
        }),
        ("configuration before DRIVER", |driver| driver.write(CONFIG, 1)),
    ];
    for (what, step) in wrong {
        let (mut driver, log) = recorder(false);
        step(&mut driver);
        assert!(driver.needs_reset(), "{what}");
        driver.write(STATUS, 15);
        let log = take(&log);
        assert!(
            !log.iter().any(|call| matches!(call, Call::Start { .. })),
            "{what}: {log:?}"
        );
        driver.start(0);
        assert!(!driver.needs_reset(), "{what}: a reset heals");
    }
}

#[test]
fn rings_outside_memory_or_out_of_line_are_refused() {
    let base = 0x10_0000;
    let places = [
        (QUEUE_DESC_LOW, base + 8),
        (QUEUE_DESC_LOW, RAM - 16),
        (QUEUE_DRIVER_LOW, base + 1),
        (QUEUE_DRIVER_LOW, RAM),
        (QUEUE_DEVICE_LOW, base + 2),
        (QUEUE_DEVICE_LOW, u64::MAX - 7),
    ];
    for (register, address) in places {
        let (mut driver, log) = recorder(false);
        driver.negotiate(0);
        driver.write(QUEUE_SEL, 0);
        for (other, fine) in [
            (QUEUE_DESC_LOW, base),
            (QUEUE_DRIVER_LOW, base),
            (QUEUE_DEVICE_LOW, base),
        ] {
            let at = if other == register { address } else { fine };
            driver.write(other, at as u32);
            driver.write(other + 4, (at >> 32) as u32);
        }
        driver.write(QUEUE_READY, 1);
        driver.write(STATUS, 15);
        assert!(driver.needs_reset(), "{register:#x} at {address:#x}");
        assert_eq!(take(&log), [Call::Reset]);
    }
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    let (mut driver, _) = recorder(true);
    driver.start(0);
    assert!(driver.needs_reset());
    assert_eq!(driver.acknowledge(), isr::CONFIG, "the driver is notified");
    assert_eq!(driver.acknowledge(), 0);
}

#[test]
fn doorbells_ring_over_the_bus() {
    let (mut driver, _) = recorder(false);
    driver.start(0);
    let rung = |driver: &Driver| -> Vec<bool> {
        let doorbells = driver.doorbells.lock().unwrap();
        doorbells.iter().map(|(_, bell)| bell.read().is_ok()).collect()
    };
    // A driver that rings too early must not block forever.
    assert_eq!(rung(&driver), [true, true]);
    driver.write(QUEUE_NOTIFY, 1);
    driver.write(QUEUE_NOTIFY, 77);
    assert_eq!(rung(&driver), [false, true]);
}

#[test]
fn doorbells_are_connected_once_and_only_for_a_driver() {
    let (mut driver, _) = recorder(false);
    let connected = |driver: &Driver| -> Vec<u32> {
        let doorbells = driver.doorbells.lock().unwrap();
        doorbells.iter().map(|(index, _)| *index).collect()
    };
    driver.negotiate(0);
    assert!(connected(&driver).is_empty());
    driver.start(0);
    driver.start(0);
    assert_eq!(connected(&driver), [0, 1]);
}

#[test]
fn configuration_takes_any_width_and_registers_only_words() {
    let (mut driver, log) = recorder(false);
    driver.start(0);
    take(&log);
    assert_eq!(driver.config(4, 8), b"ig!\0\0\0\0\0");
    assert_eq!(driver.config(0xe00, 2), [0, 0]);
    let mmio = driver.transport();
    mmio.write(CONFIG + 1, &[9]);
    assert_eq!(take(&log), [Call::Write(1, vec![9])]);
    for (offset, width) in [(STATUS, 1), (STATUS, 2), (STATUS, 8), (STATUS + 2, 4)] {
        let before = vec![0xee; width];
        let mut data = before.clone();
        mmio.read(offset, &mut data);
        assert_eq!(data, before, "{width} bytes at {offset:#x}");
        mmio.write(offset, &vec![0; width]);
    }
    assert_ne!(driver.read(STATUS) & status::DRIVER_OK, 0);
}

mod chance {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// No order of register accesses breaks the transport, and a reset always heals it.
        #[test]
        fn random_accesses_cause_no_panic(
            accesses in proptest::collection::vec((0u64..0x120, any::<u32>(), 0u32..4, any::<bool>()), 0..200)
        ) {
            let (mut driver, log) = recorder(false);
            for (offset, value, small, write) in accesses {
                // Registers are words, and most of their values are small.
                let value = if small == 0 { value } else { value % 32 };
                if write { driver.write(offset & !3, value) } else { driver.read(offset & !3); }
            }
            driver.start(u64::MAX);
            prop_assert!(!driver.needs_reset());
            let log = take(&log);
            let started = matches!(log.last(), Some(Call::Start { .. }));
            prop_assert!(started);
            let mut running = false;
            for call in log {
                match call {
                    Call::Start { .. } => { prop_assert!(!running); running = true; }
                    Call::Stop => { prop_assert!(running); running = false; }
                    Call::Reset => prop_assert!(!running),
                    Call::Write(..) => {}
                }
            }
        }
    }
}

/// A device with its queues in use, and its state.
fn saved() -> (Driver, state::TransportState) {
    let (mut driver, _) = recorder(false);
    driver.start(u64::MAX);
    driver.write(QUEUE_SEL, 1);
    driver.transport().pause();
    let state = driver.transport().save().unwrap();
    (driver, state)
}

#[test]
fn a_device_is_saved_only_while_it_is_stopped() {
    let (mut driver, log) = recorder(false);
    let fresh = driver.transport().save().unwrap();
    assert_eq!(fresh.core.running, None);
    driver.start(u64::MAX);
    assert_eq!(driver.transport().save(), Err(Unsaved::Running));
    driver.transport().pause();
    let state = driver.transport().save().unwrap();
    assert_eq!(state.core.running.as_ref().map(Vec::len), Some(2));
    driver.transport().resume();
    assert_eq!(driver.transport().save(), Err(Unsaved::Running));
    // A driver that has not begun begins with the device that goes on.
    let (mut driver, _) = recorder(false);
    driver.transport().restore(&fresh).unwrap();
    driver.transport().resume();
    driver.start(u64::MAX);
    assert_eq!(driver.transport().save(), Err(Unsaved::Running));
    let starts = log
        .lock()
        .unwrap()
        .iter()
        .filter(|call| matches!(call, Call::Start { .. }))
        .count();
    assert_eq!(starts, 2);
}

#[test]
fn a_device_that_its_driver_broke_goes_on_broken() {
    let (mut driver, _) = recorder(false);
    driver.start(u64::MAX);
    // A queue is not changed while it is used.
    driver.write(QUEUE_SEL, 0);
    driver.write(QUEUE_SIZE, 4);
    assert!(driver.needs_reset());
    driver.transport().pause();
    let state = driver.transport().save().unwrap();
    assert_eq!(state.core.running, None);
    let (mut driver, log) = recorder(false);
    driver.transport().restore(&state).unwrap();
    driver.transport().resume();
    assert!(driver.needs_reset());
    assert!(log.lock().unwrap().is_empty());
    driver.start(u64::MAX);
    assert!(!driver.needs_reset());
}

#[test]
fn an_interrupt_that_may_have_been_under_way_is_raised_again() {
    let (_, mut state) = saved();
    state.core.interrupt_status = isr::QUEUE;
    let (mut driver, _) = recorder(false);
    driver.transport().restore(&state).unwrap();
    assert_eq!(driver.line.edges(), 0);
    driver.transport().resume();
    assert_eq!(driver.line.edges(), 1);
    assert_eq!(driver.acknowledge(), isr::QUEUE);
}

#[test]
fn a_state_that_no_device_can_be_in_is_refused() {
    type Change = fn(&mut state::TransportState);
    let changes: [(&str, Change); 14] = [
        ("another device", |state| state.core.id += 1),
        ("a feature that is not offered", |state| {
            state.core.driver_features |= 1 << 60
        }),
        ("a queue less", |state| state.core.queues.truncate(1)),
        ("indices of a queue less", |state| {
            state.core.running.as_mut().unwrap().pop();
        }),
        ("a reason that there is not", |state| {
            state.core.interrupt_status = 4
        }),
        ("running without DRIVER_OK", |state| {
            state.core.status &= !status::DRIVER_OK
        }),
        ("running without FEATURES_OK", |state| {
            state.core.status &= !status::FEATURES_OK
        }),
        ("running after FAILED", |state| {
            state.core.status |= status::FAILED
        }),
        ("running without VERSION_1", |state| {
            state.core.driver_features &= !(1 << 32)
        }),
        ("a size that is no power of two", |state| {
            state.core.queues[0].size = 3
        }),
        ("a size beyond the largest", |state| state.core.queues[1].size = 8),
        ("a ring outside of RAM", |state| {
            state.core.queues[0].device = RAM - 4
        }),
        ("a ring that is not aligned", |state| {
            state.core.queues[0].descriptors += 1
        }),
        ("more in flight than the queue has", |state| {
            state.core.running.as_mut().unwrap()[0].next_avail = 17;
        }),
    ];
    for (what, change) in changes {
        let (_, mut state) = saved();
        let (mut driver, log) = recorder(false);
        change(&mut state);
        let before = driver.transport().save().unwrap();
        assert!(driver.transport().restore(&state).is_err(), "{what}");
        assert_eq!(driver.transport().save().unwrap(), before, "{what}");
        assert!(log.lock().unwrap().is_empty(), "{what}");
    }
}
