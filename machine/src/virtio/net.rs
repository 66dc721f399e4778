//! The network device (VIRTIO 1.3 §5.1), with one pair of queues.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net as net;
use virtio_queue::QueueT;

use super::ring::{Chain, QueueError};
use super::worker::{Context, Engine, Service, Wake};
use super::{Activation, DeviceState, DeviceTraits, Error, Queue, Unsaved, VirtioDevice, read_config_bytes};
use crate::event::EventSet;
use crate::limit::RateLimiter;
use crate::net::{Backend, LostConnections};
use crate::sandbox::Kind;
use crate::state::Refused;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Descriptors of each queue. A driver fills the receive queue when its interface comes up, each descriptor with
/// a buffer for the largest frame: 17 pages with the user network's MTU or with offloads. 64 of them are 4 MiB of
/// the guest's RAM and more frames than one wakeup of the worker usually finds; with 256 a boot waited for the
/// guest to allocate 17 MiB. A frame for which there is no room waits in the backend.
const QUEUE_SIZES: [u16; 2] = [64, 256];
/// `struct virtio_net_hdr_v1` (VIRTIO 1.3 §5.1.6).
const HEADER: usize = 12;
/// Where its `num_buffers` lies: always 1 here, since buffers are not merged.
const NUM_BUFFERS: usize = 10;
/// Largest frame: the largest IP packet that segmentation offload makes, its Ethernet header and a VLAN tag.
/// A frame beyond it is dropped, as on any wire.
const MAX_FRAME: usize = 65535 + 14 + 4;
/// Frames given to the guest before the worker looks at its other events again.
const MAX_FRAMES_PER_WAKEUP: usize = 256;

/// What the guest may leave to the host, and take from it, with a backend that has offloads.
const OFFLOADS: u64 = 1 << net::VIRTIO_NET_F_CSUM
    | 1 << net::VIRTIO_NET_F_GUEST_CSUM
    | 1 << net::VIRTIO_NET_F_HOST_TSO4
    | 1 << net::VIRTIO_NET_F_HOST_TSO6
    | 1 << net::VIRTIO_NET_F_GUEST_TSO4
    | 1 << net::VIRTIO_NET_F_GUEST_TSO6;

/// A network card of a machine.
pub struct NetSpec {
    /// What carries its frames.
    pub backend: Box<dyn Backend>,
    /// Its address.
    pub mac: [u8; 6],
    /// What the guest may send.
    pub send: RateLimiter,
    /// What the guest may receive.
    pub receive: RateLimiter,
}

impl NetSpec {
    /// Builds the device.
    pub fn build(self) -> Net {
        Net::with_limits(self.backend, self.mac, self.send, self.receive)
    }
}

/// A network card.
pub struct Net {
    features: u64,
    config: Vec<u8>,
    engine: Engine<Card>,
}

impl Net {
    /// A card with the address `mac` on `backend`.
    pub fn new(backend: Box<dyn Backend>, mac: [u8; 6]) -> Self {
        Net::with_limits(backend, mac, RateLimiter::default(), RateLimiter::default())
    }

    /// A card that sends and receives no more than these allow.
    pub(crate) fn with_limits(
        backend: Box<dyn Backend>,
        mac: [u8; 6],
        send: RateLimiter,
        receive: RateLimiter,
    ) -> Self {
        let mut features =
            1 << net::VIRTIO_NET_F_MAC | 1 << net::VIRTIO_NET_F_STATUS | 1 << net::VIRTIO_NET_F_MTU;
        let offloads = backend.offloads();
        if offloads {
            features |= OFFLOADS;
        }
        // struct virtio_net_config (VIRTIO 1.3 §5.1.4).
        let mut config = mac.to_vec();
        config.extend((net::VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.extend(1u16.to_le_bytes()); // max_virtqueue_pairs
        config.extend(backend.mtu().to_le_bytes());
        let card = Card {
            backend,
            offloads,
            watched: Vec::new(),
            frame: vec![0; HEADER + MAX_FRAME],
            wake_at: None,
            more: false,
            send,
            receive,
            unsent: false,
            unreceived: false,
            room: false,
            lost: LostConnections::none(),
            replies: VecDeque::new(),
        };
        Net {
            features,
            config,
            engine: Engine::Idle(card),
        }
    }
}

impl VirtioDevice for Net {
    fn traits(&self) -> DeviceTraits {
        DeviceTraits {
            id: VIRTIO_ID_NET,
            features: self.features,
            queue_sizes: &QUEUE_SIZES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn start(&mut self, active: Activation) -> Result<(), Error> {
        self.engine.start("net", Kind::Network, active)
    }

    fn stop(&mut self) -> Vec<Queue> {
        self.engine.stop()
    }

    fn save(&self) -> Result<DeviceState, Unsaved> {
        let Net {
            features: _,
            config: _,
            engine,
        } = self;
        // What else the card remembers is of its backend and of limits. Frames of the guest that it has not
        // sent are still in their queue.
        let Card { backend, lost, .. } = engine.service()?;
        Ok(DeviceState::Net(lost.save(backend.connections())))
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), Refused> {
        let DeviceState::Net(saved) = state else {
            return Err(DeviceState::FOREIGN);
        };
        let lost = LostConnections::restored(saved)?;
        if let Ok(card) = self.engine.service_mut() {
            card.lost = lost;
        }
        Ok(())
    }
}

/// Moves frames between the queues and the backend.
struct Card {
    backend: Box<dyn Backend>,
    offloads: bool,
    /// The backend's descriptors while they are watched: only while the guest has room, so that frames that
    /// cannot be taken do not keep the worker awake.
    watched: Vec<RawFd>,
    /// One frame, with its header in front.
    frame: Vec<u8>,
    wake_at: Option<Instant>,
    /// Whether there may be more frames for the guest than one wakeup may give.
    more: bool,
    send: RateLimiter,
    receive: RateLimiter,
    /// Frames of the guest wait for the rate limit.
    unsent: bool,
    /// Frames for the guest may wait for the rate limit.
    unreceived: bool,
    /// Whether the guest had room for more frames when it was last looked.
    room: bool,
    /// Connections of the time before a snapshot.
    lost: LostConnections,
    /// The answers to the guest's frames on them, in order.
    replies: VecDeque<Vec<u8>>,
}

impl Service for Card {
    const BATCH_SCHEDULED: bool = true;

    fn begin(&mut self, context: &mut Context) -> Result<(), QueueError> {
        self.backend.accept_features(context.features);
        self.watched.clear();
        self.watch(context, true)
    }

    fn queue(&mut self, context: &mut Context, index: usize) -> Result<(), QueueError> {
        if index != TRANSMIT {
            return Ok(()); // the room is used in `tick`
        }
        let send = self.send.clone();
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = context;
        let may = || send.wait().is_none();
        let all = rings[TRANSMIT].drain_while(memory, &**interrupt, may, |chain| {
            self.transmit(chain);
            send.take(chain.readable.len().saturating_sub(HEADER) as u64);
            Ok(Some(0))
        })?;
        self.unsent = !all;
        Ok(())
    }

    fn timeout(&mut self) -> Option<Duration> {
        if self.more {
            return Some(Duration::ZERO);
        }
        let timer = self
            .wake_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        let unsent = self.unsent.then(|| self.send.wait().unwrap_or_default());
        let unreceived = self.unreceived.then(|| self.receive.wait().unwrap_or_default());
        let lost = self.room.then(|| self.lost.timeout()).flatten();
        let all = timer.into_iter().chain(unsent).chain(unreceived);
        all.chain(lost).min()
    }

    fn tick(&mut self, context: &mut Context) -> Result<(), QueueError> {
        if self.unsent {
            self.queue(context, TRANSMIT)?;
        }
        let wait = self.backend.poll().map(Duration::from_millis);
        self.wake_at = wait.and_then(|wait| Instant::now().checked_add(wait));
        self.receive(context)
    }
}

impl Card {
    /// Sends one frame of the guest. A frame of invalid length is dropped.
    fn transmit(&mut self, chain: &Chain<'_>) {
        let len = chain.readable.len();
        if len > HEADER && len <= self.frame.len() {
            chain.readable.read(0, &mut self.frame[..len]);
            if let Some(reply) = self.lost.answer(&self.frame[HEADER..len]) {
                self.replies.push_back(reply);
                return;
            }
            let start = if self.offloads { 0 } else { HEADER };
            self.backend.transmit(&self.frame[start..len]);
        }
    }

    /// Gives the guest the frames that there are, as far as it has room.
    fn receive(&mut self, context: &mut Context) -> Result<(), QueueError> {
        let mut room = context.rings[RECEIVE].queue.ready();
        let Context {
            memory,
            rings,
            interrupt,
            ..
        } = &mut *context;
        let ring = &mut rings[RECEIVE];
        let mut chain = Chain::default();
        let (mut given, mut seen) = (0, 0);
        self.unreceived = false;
        while room && seen < MAX_FRAMES_PER_WAKEUP {
            if self.receive.wait().is_some() {
                self.unreceived = true;
                break;
            }
            if !ring.pop(memory, &mut chain)? {
                room = ring.queue.enable_notification(&**memory)?;
                continue;
            }
            let Some(len) = next_frame(
                &mut self.frame,
                &mut self.replies,
                &mut self.lost,
                &mut *self.backend,
            ) else {
                ring.undo_pop();
                break;
            };
            seen += 1;
            if len < HEADER || len > chain.writable.len() {
                // No frame, or the guest's buffer is smaller than its MTU asks for: dropped.
                ring.undo_pop();
                continue;
            }
            self.frame[NUM_BUFFERS..HEADER].copy_from_slice(&1u16.to_le_bytes());
            chain.writable.write(0, &self.frame[..len]);
            ring.push(memory, chain.head, len as u32)?;
            self.receive.take((len - HEADER) as u64);
            given += 1;
        }
        if given > 0 {
            ring.notify(memory, &**interrupt)?;
        }
        self.more = room && seen == MAX_FRAMES_PER_WAKEUP;
        self.room = room && !self.unreceived;
        self.watch(context, self.room)
    }

    /// Watches the backend's descriptors, or stops to.
    fn watch(&mut self, context: &Context, on: bool) -> Result<(), QueueError> {
        if on != self.watched.is_empty() {
            return Ok(());
        }
        for fd in self.watched.drain(..) {
            context.poller.remove(&Borrowed(fd))?;
        }
        if on {
            for (id, (fd, events)) in (0..).zip(self.backend.descriptors()) {
                context.poller.add(
                    &Borrowed(fd),
                    EventSet::from_bits_truncate(events),
                    Wake::Source(id),
                )?;
                self.watched.push(fd);
            }
        }
        Ok(())
    }
}

/// Puts the next frame for the guest into `frame`, with its header, and returns its length.
fn next_frame(
    frame: &mut [u8],
    replies: &mut VecDeque<Vec<u8>>,
    lost: &mut LostConnections,
    backend: &mut dyn Backend,
) -> Option<usize> {
    let start = if backend.offloads() { 0 } else { HEADER };
    let (header, rest) = frame.split_at_mut(HEADER);
    if let Some(ours) = replies.pop_front().or_else(|| lost.ask()) {
        header.fill(0);
        rest[..ours.len()].copy_from_slice(&ours);
        return Some(HEADER + ours.len());
    }
    if start == HEADER {
        header.fill(0);
    }
    let len = backend.receive(&mut frame[start..])?;
    Some(start + len.min(frame.len() - start))
}

/// A descriptor of the backend.
struct Borrowed(RawFd);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::TcpConnection;
    use crate::net::testing_lost::{connection, from_guest};
    use crate::virtio::testing::Driver;
    use smoltcp::wire::TcpControl;
    use std::sync::{Arc, Mutex};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    #[derive(Default)]
    struct Wire {
        sent: Vec<Vec<u8>>,
        to_guest: VecDeque<Vec<u8>>,
        polls: u32,
        features: u64,
        connections: Vec<TcpConnection>,
    }

    /// A backend whose far end is the test.
    struct Loop {
        wire: Arc<Mutex<Wire>>,
        event: EventFd,
        offloads: bool,
    }

    impl Backend for Loop {
        fn transmit(&mut self, frame: &[u8]) {
            self.wire.lock().unwrap().sent.push(frame.to_vec());
        }
        fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
            let frame = self.wire.lock().unwrap().to_guest.pop_front()?;
            buffer[..frame.len()].copy_from_slice(&frame);
            Some(frame.len())
        }
        fn descriptors(&self) -> Vec<(RawFd, u32)> {
            vec![(self.event.as_raw_fd(), libc::EPOLLIN as u32)]
        }
        fn poll(&mut self) -> Option<u64> {
            self.wire.lock().unwrap().polls += 1;
            if self.wire.lock().unwrap().to_guest.is_empty() {
                let _ = self.event.read();
            }
            None
        }
        fn offloads(&self) -> bool {
            self.offloads
        }
        fn accept_features(&mut self, features: u64) {
            self.wire.lock().unwrap().features = features;
        }
        fn connections(&self) -> Vec<TcpConnection> {
            self.wire.lock().unwrap().connections.clone()
        }
    }

    fn card(offloads: bool) -> (Driver, Arc<Mutex<Wire>>, EventFd) {
        limited(offloads, None)
    }

    /// A card that carries so many bytes a second in each direction.
    fn limited(offloads: bool, rate: Option<u64>) -> (Driver, Arc<Mutex<Wire>>, EventFd) {
        let (device, wire, event) = device(offloads, rate);
        (Driver::started(device, u64::MAX), wire, event)
    }

    fn device(offloads: bool, rate: Option<u64>) -> (Net, Arc<Mutex<Wire>>, EventFd) {
        let wire = Arc::new(Mutex::new(Wire::default()));
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let backend = Loop {
            wire: wire.clone(),
            event: event.try_clone().unwrap(),
            offloads,
        };
        let limiter = || RateLimiter::new(None, rate.and_then(std::num::NonZeroU64::new));
        let device = Net::with_limits(Box::new(backend), [2, 0, 0, 0, 0, 7], limiter(), limiter());
        (device, wire, event)
    }

    #[test]
    fn the_virtio_header_is_removed_and_added() {
        let (mut driver, wire, event) = card(false);
        driver.request(TRANSMIT, &[&[9; HEADER], b"frame to host"], &[]);
        assert_eq!(wire.lock().unwrap().sent, [b"frame to host"]);
        driver.submit(RECEIVE, &[], &[HEADER as u32, 1600]);
        driver.ring(RECEIVE);
        wire.lock()
            .unwrap()
            .to_guest
            .push_back(b"frame to guest".to_vec());
        event.write(1).unwrap();
        let used = driver.wait_used(RECEIVE);
        assert_eq!(used.data[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(&used.data[HEADER..], b"frame to guest");
    }

    #[test]
    fn a_backend_with_offloads_sees_the_header_and_the_agreed_features() {
        let (mut driver, wire, _event) = card(true);
        let frame = [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0][..], &[0x55; 60000]].concat();
        driver.request(TRANSMIT, &[&frame], &[]);
        assert_eq!(wire.lock().unwrap().sent, [frame]);
        assert_eq!(wire.lock().unwrap().features & OFFLOADS, OFFLOADS);
    }

    #[test]
    fn frames_wait_for_room_without_keeping_the_worker_awake() {
        let (mut driver, wire, event) = card(false);
        for number in 0..5u8 {
            wire.lock().unwrap().to_guest.push_back(vec![number; 100]);
        }
        event.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let polls = wire.lock().unwrap().polls;
        assert!(polls < 10, "polled {polls} times for a guest without room");
        for number in 0..5u8 {
            driver.submit(RECEIVE, &[], &[1600]);
            driver.ring(RECEIVE);
            assert_eq!(driver.wait_used(RECEIVE).data[HEADER..], vec![number; 100]);
        }
    }

    #[test]
    fn a_limited_card_is_slow_both_ways_and_sleeps_meanwhile() {
        // 10,000 bytes pass at once, each further 1,000 in 10 milliseconds.
        let (mut driver, wire, event) = limited(false, Some(100_000));
        let start = Instant::now();
        for _ in 0..20 {
            driver.submit(TRANSMIT, &[&[9; HEADER], &[5; 1000]], &[]);
        }
        driver.ring(TRANSMIT);
        for _ in 0..20 {
            driver.wait_used(TRANSMIT);
        }
        let sent = start.elapsed();
        assert_eq!(wire.lock().unwrap().sent.len(), 20);
        for _ in 0..20 {
            wire.lock().unwrap().to_guest.push_back(vec![7; 1000]);
            driver.submit(RECEIVE, &[], &[1600]);
        }
        driver.ring(RECEIVE);
        event.write(1).unwrap();
        let start = Instant::now();
        for _ in 0..20 {
            assert_eq!(driver.wait_used(RECEIVE).data[HEADER..], [7; 1000]);
        }
        let received = start.elapsed();
        for (way, took) in [("sending", sent), ("receiving", received)] {
            assert!(took >= Duration::from_millis(80), "{way} took {took:?}");
        }
        let polls = wire.lock().unwrap().polls;
        assert!(polls < 200, "polled {polls} times for 40 frames");
    }

    #[test]
    fn frames_of_invalid_length_are_dropped() {
        let (mut driver, wire, event) = card(false);
        driver.request(TRANSMIT, &[&[0; HEADER]], &[]);
        driver.request(TRANSMIT, &[b"x"], &[]);
        driver.request(TRANSMIT, &[&vec![0; 70000]], &[]);
        assert!(wire.lock().unwrap().sent.is_empty());
        // A frame that does not fit is lost; the buffer serves the next one.
        driver.submit(RECEIVE, &[], &[HEADER as u32 + 50]);
        driver.ring(RECEIVE);
        wire.lock().unwrap().to_guest.extend([vec![1; 51], vec![2; 50]]);
        event.write(1).unwrap();
        assert_eq!(driver.wait_used(RECEIVE).data[HEADER..], [2; 50]);
        assert!(!driver.needs_reset());
    }

    #[test]
    fn the_card_reports_its_address_link_and_mtu() {
        let (mut driver, _wire, _event) = card(false);
        assert_eq!(driver.config(0, 12), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5]);
    }

    #[test]
    fn connections_of_the_time_before_a_snapshot_are_reset_at_once() {
        for offloads in [false, true] {
            let (mut driver, wire, _event) = card(offloads);
            let segment = from_guest(40_000, [2, 0, 0, 0, 0, 7], TcpControl::None, Some(77));
            driver.request(TRANSMIT, &[&[0; HEADER], &segment], &[]);
            assert_eq!(wire.lock().unwrap().sent.len(), 1, "the network knows it");
            wire.lock().unwrap().connections.push(connection(40_000));
            let (other, wire, _event) = device(offloads, None);
            driver.go_on_with(other);
            driver.submit(RECEIVE, &[], &[1600]);
            driver.ring(RECEIVE);
            // It is asked, and answers; the reset is its acknowledgement's number.
            let asked = driver.wait_used(RECEIVE).data;
            assert_eq!(asked[HEADER..HEADER + 6], [2, 0, 0, 0, 0, 7]);
            driver.submit(RECEIVE, &[], &[1600]);
            driver.request(TRANSMIT, &[&[0; HEADER], &segment], &[]);
            let reset = driver.wait_used(RECEIVE).data;
            let flags = HEADER + 14 + 20 + 13;
            assert_eq!((asked[flags], reset[flags]), (0x10, 4));
            assert_eq!(reset[flags - 9..flags - 5], 77u32.to_be_bytes());
            assert!(wire.lock().unwrap().sent.is_empty());
            driver.request(TRANSMIT, &[&[0; HEADER], &segment], &[]);
            assert_eq!(
                wire.lock().unwrap().sent.len(),
                1,
                "what follows is the network's"
            );
        }
    }

    #[test]
    fn a_paused_card_receives_after_resuming() {
        let (mut driver, wire, event) = card(false);
        driver.transport().pause();
        driver.submit(RECEIVE, &[], &[1600]);
        wire.lock().unwrap().to_guest.push_back(vec![3; 60]);
        event.write(1).unwrap();
        driver.transport().resume();
        assert_eq!(driver.wait_used(RECEIVE).data[HEADER..], [3; 60]);
    }
}
