//! The driver's side of a virtio-mmio device, for tests, fuzzing and benchmarks: it needs neither a guest nor
//! KVM.
//!
//! A [`Driver`] owns guest memory and the device behind its registers. It negotiates, builds split
//! virtqueues, rings doorbells through the `QueueNotify` register and awaits interrupts. As a test tool it
//! panics where a test should fail.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::VirtioDevice;
use super::core::{isr, status};
use super::mmio::{Mmio, register};
use crate::bus::BusDevice;
use crate::irq::Interrupt;
use crate::memory::{Bytes, GuestAddress, GuestMemoryMmap, Memory};

/// Guest RAM of a [`Driver`]: two regions that touch, so that buffers can cross from one to the other.
pub const RAM: u64 = 32 << 20;
/// Where the second region begins.
pub const SECOND_REGION: u64 = 16 << 20;
/// Rings lie here, 64 KiB for each queue.
const RINGS: u64 = 1 << 20;
/// Buffers lie from here to the end of RAM, one after the other, over and over.
const BUFFERS: u64 = 4 << 20;
/// How long a device may take. Long, because a loaded machine must not make a test fail.
const TIMEOUT: Duration = Duration::from_secs(20);

/// An interrupt line that counts its edges.
#[derive(Debug, Default)]
pub struct CountingLine {
    edges: Mutex<u64>,
    changed: Condvar,
}

impl CountingLine {
    /// Edges so far.
    pub fn edges(&self) -> u64 {
        *self.edges.lock().expect("no test panics while it counts")
    }

    /// Waits until there are more than `seen` edges; `false` after `timeout`.
    pub fn wait_beyond(&self, seen: u64, timeout: Duration) -> bool {
        let edges = self.edges.lock().expect("no test panics while it counts");
        let (edges, _) = self
            .changed
            .wait_timeout_while(edges, timeout, |edges| *edges <= seen)
            .expect("as above");
        *edges > seen
    }
}

impl Interrupt for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        *self.edges.lock().expect("no test panics while it counts") += 1;
        self.changed.notify_all();
        Ok(())
    }
}

/// Where the parts of one queue lie.
#[derive(Debug, Clone, Copy)]
pub struct RingLayout {
    /// Number of descriptors.
    pub size: u16,
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// A request that the device has.
#[derive(Debug, Clone)]
pub struct Request {
    /// First descriptor.
    pub head: u16,
    /// Address and length of each device-writable buffer.
    pub writable: Vec<(u64, u32)>,
}

/// A request that the device has given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// First descriptor.
    pub head: u16,
    /// Bytes written, as the device says.
    pub len: u32,
    /// That many bytes of the device-writable buffers.
    pub data: Vec<u8>,
}

struct DriverQueue {
    layout: RingLayout,
    available_index: u16,
    used_index: u16,
    free: Vec<u16>,
    /// Requests in flight, with all descriptors of each.
    pending: HashMap<u16, (Vec<u16>, Request)>,
}

/// A driver for one device.
pub struct Driver {
    /// Guest memory.
    pub memory: Memory,
    /// The device's interrupt line.
    pub line: Arc<CountingLine>,
    /// The doorbells that the device has had connected, with their queues.
    pub doorbells: Arc<Mutex<Vec<(u32, EventFd)>>>,
    mmio: Mmio,
    queues: Vec<DriverQueue>,
    next_buffer: u64,
}

impl Driver {
    /// A device that no driver has touched.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        let half = SECOND_REGION as usize;
        let ranges = [
            (GuestAddress(0), half),
            (GuestAddress(SECOND_REGION), RAM as usize - half),
        ];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory for the guest"));
        let line = Arc::new(CountingLine::default());
        let connected = Arc::new(Mutex::new(Vec::new()));
        let connect = {
            let connected = Arc::clone(&connected);
            move |index, doorbell: &EventFd| {
                connected.lock().unwrap().push((index, doorbell.try_clone()?));
                Ok(())
            }
        };
        let mmio = Mmio::new(Box::new(device), memory.clone(), line.clone(), Box::new(connect));
        Driver {
            memory,
            line,
            doorbells: connected,
            mmio,
            queues: Vec::new(),
            next_buffer: BUFFERS,
        }
    }

    /// A device that has accepted `features` as far as it offers them, with all queues enabled and
    /// `DRIVER_OK` set.
    pub fn started(device: impl VirtioDevice + 'static, features: u64) -> Self {
        let mut driver = Driver::new(device);
        driver.start(features);
        driver
    }

    /// Pauses the device and has `device`, a new one of the same kind, go on from its state, as after a
    /// snapshot. The driver notices nothing.
    pub fn go_on_with(&mut self, device: impl VirtioDevice + 'static) {
        self.mmio.pause();
        let state = self.mmio.save().expect("a paused device can be saved");
        let connect = |_: u32, _: &EventFd| Ok(());
        let (memory, line) = (self.memory.clone(), self.line.clone());
        self.mmio = Mmio::new(Box::new(device), memory, line, Box::new(connect));
        self.mmio.restore(&state).expect("its own state");
        assert_eq!(self.mmio.save().as_ref(), Ok(&state), "nothing is lost");
        self.mmio.resume();
    }

    /// Resets and initialises the device as VIRTIO 1.3 §3.1.1 says; returns the features agreed on.
    pub fn start(&mut self, features: u64) -> u64 {
        let agreed = self.negotiate(features);
        self.enable_queues();
        let before = self.read(register::STATUS);
        self.write(register::STATUS, before | status::DRIVER_OK);
        agreed
    }

    /// The steps up to `FEATURES_OK`.
    pub fn negotiate(&mut self, features: u64) -> u64 {
        self.write(register::STATUS, 0);
        assert_eq!(self.read(register::STATUS), 0, "reset");
        self.write(register::STATUS, status::ACKNOWLEDGE);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        let mut agreed = 0;
        for half in 0..2 {
            self.write(register::DEVICE_FEATURES_SEL, half);
            self.write(register::DRIVER_FEATURES_SEL, half);
            let bits = self.read(register::DEVICE_FEATURES) & ((features | 1 << 32) >> (32 * half)) as u32;
            self.write(register::DRIVER_FEATURES, bits);
            agreed |= u64::from(bits) << (32 * half);
        }
        let negotiated = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(register::STATUS, negotiated);
        assert_eq!(
            self.read(register::STATUS),
            negotiated,
            "features {agreed:#x} were declined"
        );
        agreed
    }

    /// Places and enables every queue that the device has.
    pub fn enable_queues(&mut self) {
        self.queues.clear();
        for index in 0.. {
            self.write(register::QUEUE_SEL, index);
            let size = self.read(register::QUEUE_SIZE_MAX) as u16;
            if size == 0 {
                break;
            }
            let base = RINGS + u64::from(index) * 0x1_0000;
            let layout = RingLayout {
                size,
                descriptors: base,
                available: base + 0x8000,
                used: base + 0xa000,
            };
            self.memory
                .write_slice(&[0; 0x1_0000], GuestAddress(base))
                .expect("rings are in memory");
            self.write(register::QUEUE_SIZE, size.into());
            self.place(register::QUEUE_DESC_LOW, layout.descriptors);
            self.place(register::QUEUE_DRIVER_LOW, layout.available);
            self.place(register::QUEUE_DEVICE_LOW, layout.used);
            self.write(register::QUEUE_READY, 1);
            let free = (0..size).rev().collect();
            self.queues.push(DriverQueue {
                layout,
                available_index: 0,
                used_index: 0,
                free,
                pending: HashMap::new(),
            });
        }
    }

    fn place(&mut self, low: u64, address: u64) {
        self.write(low, address as u32);
        self.write(low + 4, (address >> 32) as u32);
    }

    /// Reads a register.
    pub fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.mmio.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&mut self, offset: u64, value: u32) {
        self.mmio.write(offset, &value.to_le_bytes());
    }

    /// The transport itself.
    pub fn transport(&mut self) -> &mut Mmio {
        &mut self.mmio
    }

    /// Reads `len` bytes of configuration space.
    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xff; len];
        self.mmio.read(register::CONFIG + offset, &mut data);
        data
    }

    /// Number of queues that are placed.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Where queue `queue` lies.
    pub fn layout(&self, queue: usize) -> RingLayout {
        self.queues[queue].layout
    }

    /// Room for a buffer of `len` bytes, its content undefined.
    pub fn buffer(&mut self, len: u32) -> u64 {
        if self.next_buffer + u64::from(len) > RAM {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        // Odd distances, so that nothing relies on alignment.
        self.next_buffer += u64::from(len) + 3;
        address
    }

    /// Makes a request available, but does not ring: `readable` from the driver, `writable` lengths to the
    /// driver.
    pub fn submit(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Request {
        let mut buffers = Vec::new();
        for data in readable {
            let address = self.buffer(data.len() as u32);
            self.memory
                .write_slice(data, GuestAddress(address))
                .expect("buffers are in memory");
            buffers.push((address, data.len() as u32, 0));
        }
        for &len in writable {
            buffers.push((self.buffer(len), len, VRING_DESC_F_WRITE as u16));
        }
        self.submit_buffers(queue, &buffers)
    }

    /// Makes a request of the given (address, length, flags) available, but does not ring.
    pub fn submit_buffers(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) -> Request {
        let state = &mut self.queues[queue];
        assert!(state.free.len() >= buffers.len(), "queue {queue} is full");
        let chain: Vec<u16> = buffers.iter().filter_map(|_| state.free.pop()).collect();
        let writable = |flags: u16| flags & VRING_DESC_F_WRITE as u16 != 0;
        let request = Request {
            head: chain[0],
            writable: buffers
                .iter()
                .filter(|b| writable(b.2))
                .map(|b| (b.0, b.1))
                .collect(),
        };
        state.pending.insert(chain[0], (chain.clone(), request.clone()));
        for (position, &(address, len, flags)) in buffers.iter().enumerate() {
            let (flags, next) = match chain.get(position + 1) {
                Some(&next) => (flags | VRING_DESC_F_NEXT as u16, next),
                None => (flags, 0),
            };
            self.write_descriptor(queue, chain[position], address, len, flags, next);
        }
        self.make_available(queue, chain[0]);
        request
    }

    /// Makes a request available whose descriptors are in an indirect table (VIRTIO 1.3 §2.7.5.3).
    pub fn submit_indirect(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) -> Request {
        let table = (self.buffer(16 * buffers.len() as u32 + 16) + 15) & !15;
        let last = buffers.len() - 1;
        for (index, &(address, len, flags)) in buffers.iter().enumerate() {
            let next = if index < last { VRING_DESC_F_NEXT as u16 } else { 0 };
            write_raw(
                &self.memory,
                table,
                index as u16,
                address,
                len,
                flags | next,
                index as u16 + 1,
            );
        }
        let mut request = self.submit_buffers(
            queue,
            &[(table, 16 * buffers.len() as u32, VRING_DESC_F_INDIRECT as u16)],
        );
        let to_driver = buffers
            .iter()
            .filter(|buffer| buffer.2 & VRING_DESC_F_WRITE as u16 != 0);
        request.writable = to_driver.map(|buffer| (buffer.0, buffer.1)).collect();
        if let Some(pending) = self.queues[queue].pending.get_mut(&request.head) {
            pending.1 = request.clone();
        }
        request
    }

    /// Writes one descriptor, right or wrong.
    pub fn write_descriptor(&self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        write_raw(
            &self.memory,
            self.queues[queue].layout.descriptors,
            index,
            address,
            len,
            flags,
            next,
        );
    }

    /// Puts `head` into the available ring.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let state = &mut self.queues[queue];
        let slot = u64::from(state.available_index % state.layout.size);
        self.memory
            .write_obj(head.to_le(), GuestAddress(state.layout.available + 4 + 2 * slot))
            .expect("ring");
        state.available_index = state.available_index.wrapping_add(1);
        let index = state.available_index;
        self.set_available_index(queue, index);
    }

    /// Sets the index of the available ring, right or wrong.
    pub fn set_available_index(&self, queue: usize, index: u16) {
        let address = GuestAddress(self.queues[queue].layout.available + 2);
        self.memory
            .store(index.to_le(), address, std::sync::atomic::Ordering::SeqCst)
            .expect("ring");
    }

    /// Rings the doorbell of `queue`.
    pub fn ring(&mut self, queue: usize) {
        self.write(register::QUEUE_NOTIFY, queue as u32);
    }

    /// The next request that the device has given back, if there is one.
    pub fn take_used(&mut self, queue: usize) -> Option<Used> {
        let state = &mut self.queues[queue];
        let used = state.layout.used;
        let order = std::sync::atomic::Ordering::SeqCst;
        let index: u16 = self
            .memory
            .load(GuestAddress(used + 2), order)
            .expect("used ring");
        if u16::from_le(index) == state.used_index {
            return None;
        }
        let slot = u64::from(state.used_index % state.layout.size);
        let head: u32 = self
            .memory
            .read_obj(GuestAddress(used + 4 + 8 * slot))
            .expect("used ring");
        let len: u32 = self
            .memory
            .read_obj(GuestAddress(used + 8 + 8 * slot))
            .expect("used ring");
        state.used_index = state.used_index.wrapping_add(1);
        // The driver asks for an interrupt at the next used buffer (used_event, VIRTIO 1.3 §2.7.7.1).
        let event = state.layout.available + 4 + 2 * u64::from(state.layout.size);
        self.memory
            .write_obj(state.used_index.to_le(), GuestAddress(event))
            .expect("available ring");
        let (head, len) = (u32::from_le(head) as u16, u32::from_le(len));
        let (descriptors, request) = state
            .pending
            .remove(&head)
            .expect("the device returns what it was given");
        state.free.extend(descriptors);
        let mut data = Vec::new();
        for (address, room) in request.writable {
            let mut part = vec![0; (len as usize - data.len()).min(room as usize)];
            self.memory
                .read_slice(&mut part, GuestAddress(address))
                .expect("buffers are in memory");
            data.append(&mut part);
        }
        Some(Used { head, len, data })
    }

    /// Waits for the next used request, for a limited time.
    pub fn wait_used(&mut self, queue: usize) -> Used {
        let end = Instant::now() + TIMEOUT;
        loop {
            let seen = self.line.edges();
            if let Some(used) = self.take_used(queue) {
                self.acknowledge();
                return used;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                self.line.wait_beyond(seen, left),
                "queue {queue}: no used buffer in time"
            );
        }
    }

    /// Submits, rings and waits.
    pub fn request(&mut self, queue: usize, readable: &[&[u8]], writable: &[u32]) -> Used {
        self.submit(queue, readable, writable);
        self.ring(queue);
        self.wait_used(queue)
    }

    /// Acknowledges every pending interrupt reason and returns them.
    pub fn acknowledge(&mut self) -> u32 {
        let reasons = self.read(register::INTERRUPT_STATUS);
        self.write(register::INTERRUPT_ACK, reasons);
        reasons
    }

    /// Waits until the device has asked for a reset.
    pub fn wait_needs_reset(&mut self) {
        let end = Instant::now() + TIMEOUT;
        while self.read(register::STATUS) & status::NEEDS_RESET == 0
            || self.read(register::INTERRUPT_STATUS) & isr::CONFIG == 0
        {
            assert!(Instant::now() < end, "the device did not ask for a reset");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the device has asked for a reset.
    pub fn needs_reset(&mut self) -> bool {
        self.read(register::STATUS) & status::NEEDS_RESET != 0
    }
}

fn write_raw(memory: &Memory, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&address.to_le_bytes());
    raw[8..12].copy_from_slice(&len.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    let at = GuestAddress(table + 16 * u64::from(index));
    memory.write_slice(&raw, at).expect("descriptors are in memory");
}
