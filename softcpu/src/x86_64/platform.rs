//! What processors share with each other and with devices: interrupt messages and whom they reach.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::core::clock::Clock;
use crate::core::mailbox::Mailbox;
use crate::core::processors::Processors;
use crate::x86_64::features::Features;

/// Events of a mailbox that only these processors have.
pub(crate) mod event {
    use crate::core::mailbox::event::OWN;

    /// A non-maskable interrupt.
    pub const NMI: u32 = OWN;
    /// INIT.
    pub const INIT: u32 = OWN << 1;
    /// A startup IPI; its vector is the argument.
    pub const STARTUP: u32 = OWN << 2;
    /// All of them.
    pub const ALL: u32 = NMI | INIT | STARTUP;
}

/// An interrupt message as an IOAPIC entry, an MSI or an interrupt command holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Destination APIC id, or a set of them where `logical`.
    pub destination: u32,
    /// The destination is matched with logical destination registers.
    pub logical: bool,
    /// Delivery mode: 0 fixed, 1 lowest priority, 4 NMI, 5 INIT, 6 startup.
    pub mode: u8,
    /// The vector.
    pub vector: u8,
}

/// Called with the vector at each end of interrupt of a level-triggered one.
pub type EndOfInterrupt = Box<dyn Fn(u8) + Send + Sync>;

/// Where interrupt messages find a processor's APIC besides its id.
struct Address {
    /// Logical destination register.
    ldr: AtomicU32,
    /// Logical destinations are flat rather than clusters.
    flat: AtomicBool,
    /// The APIC is in x2APIC mode.
    x2apic: AtomicBool,
}

/// The machine's processors as a whole. Interrupt messages enter here from any thread.
pub struct Platform {
    pub(crate) processors: Processors,
    /// What all of them have.
    pub(crate) features: Features,
    /// One for each processor.
    addresses: Vec<Address>,
    /// Next processor to take a lowest-priority message.
    turn: AtomicU32,
    eoi: OnceLock<EndOfInterrupt>,
}

impl Platform {
    /// Makes the shared part of `cpus` processors of x86-64-v3.
    pub fn new(cpus: u32, clock: Clock) -> Arc<Platform> {
        Platform::with_features(cpus, clock, Features::default())
    }

    /// Makes the shared part of `cpus` processors that have `features` beyond x86-64-v2.
    pub fn with_features(cpus: u32, clock: Clock, features: Features) -> Arc<Platform> {
        let address = |_| Address {
            ldr: AtomicU32::new(0),
            flat: AtomicBool::new(true),
            x2apic: AtomicBool::new(false),
        };
        Arc::new(Platform {
            processors: Processors::new(cpus, clock),
            features,
            addresses: (0..cpus).map(address).collect(),
            turn: AtomicU32::new(0),
            eoi: OnceLock::new(),
        })
    }

    /// Number of processors.
    pub fn cpus(&self) -> u32 {
        self.processors.count()
    }

    /// Instructions that all processors have retired, HLT not waited for. Each is counted up to the start of
    /// the block in which it last reached a device, or to its last return from [`Cpu::run`](crate::Cpu::run).
    pub fn instructions(&self) -> u64 {
        self.processors.instructions()
    }

    /// What time follows.
    pub fn clock(&self) -> Clock {
        self.processors.clock
    }

    /// Time of the machine by the host's clock: what its clocks and timers count from.
    pub fn elapsed(&self) -> Duration {
        self.processors.elapsed()
    }

    /// Lets the machine's time go on from `elapsed`, before any processor runs: that of a snapshot.
    pub fn set_elapsed(&self, elapsed: Duration) {
        self.processors.set_elapsed(elapsed);
    }

    /// Registers a callback for ends of interrupts. The first call counts.
    pub fn on_end_of_interrupt(&self, callback: EndOfInterrupt) {
        let _ = self.eoi.set(callback);
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        if let Some(callback) = self.eoi.get() {
            callback(vector);
        }
    }

    /// Makes [`Cpu::run`](crate::Cpu::run) of processor `id` come back soon; at once when it is not running.
    pub fn kick(&self, id: u32) {
        self.processors.kick(id);
    }

    /// Shows senders how processor `id` is addressed.
    pub(crate) fn set_address(&self, id: u32, ldr: u32, flat: bool, x2apic: bool) {
        if let Some(address) = self.addresses.get(id as usize) {
            address.ldr.store(ldr, Ordering::Relaxed);
            address.flat.store(flat, Ordering::Relaxed);
            address.x2apic.store(x2apic, Ordering::Relaxed);
        }
    }

    /// Delivers an interrupt message.
    pub fn deliver(&self, message: Message) {
        let all = self.processors.mailboxes().zip(&self.addresses);
        let matching = all
            .filter(|(mailbox, address)| matches(mailbox.id, address, message))
            .map(|(mailbox, _)| mailbox);
        if message.mode == 1 {
            let all: Vec<_> = matching.collect();
            if !all.is_empty() {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
                all[turn % all.len()].interrupt(message.vector);
            }
            return;
        }
        for mailbox in matching {
            send(mailbox, message.mode, message.vector);
        }
    }

    /// Delivers an MSI write: `addr` and `data` as the device stores them (Intel SDM vol. 3, 11.11).
    pub fn deliver_msi(&self, addr: u64, data: u32) {
        self.deliver(Message {
            destination: (addr >> 12 & 0xff) as u32,
            logical: addr & 4 != 0,
            mode: (data >> 8 & 7) as u8,
            vector: data as u8,
        });
    }

    /// An IPI by shorthand: to all, but not to `except`.
    pub(crate) fn broadcast(&self, except: Option<u32>, mode: u8, vector: u8) {
        let all = self.processors.mailboxes();
        for mailbox in all.filter(|mailbox| Some(mailbox.id) != except) {
            send(mailbox, mode, vector);
        }
    }
}

fn send(mailbox: &Mailbox, mode: u8, vector: u8) {
    match mode {
        0 | 1 => mailbox.interrupt(vector),
        4 => mailbox.post(event::NMI),
        5 => mailbox.post(event::INIT),
        6 => mailbox.post_with(event::STARTUP, vector as u32),
        _ => {}
    }
}

/// Whether a message is for this processor (Intel SDM vol. 3, 11.6.2).
fn matches(id: u32, address: &Address, message: Message) -> bool {
    let x2apic = address.x2apic.load(Ordering::Relaxed);
    let to = message.destination;
    if to == u32::MAX || (to == 0xff && (!x2apic || !message.logical)) {
        return true;
    }
    if !message.logical {
        return id == to;
    }
    let ldr = address.ldr.load(Ordering::Relaxed);
    if x2apic {
        return ldr >> 16 == to >> 16 && ldr & to & 0xffff != 0;
    }
    let mine = ldr >> 24;
    if address.flat.load(Ordering::Relaxed) {
        mine & to != 0
    } else {
        mine >> 4 == to >> 4 && mine & to & 0xf != 0
    }
}
