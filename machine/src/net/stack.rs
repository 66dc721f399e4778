//! A TCP/IP stack (smoltcp) over two queues of IP packets: the far end of the guest's wire.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::TcpConnection;
use super::clock::Clock;

/// Packets waiting for the guest. More than this and the stack has to wait, so a guest that takes nothing
/// costs at most this many packets of one MTU each.
const OUTGOING_CAP: usize = 128;

/// Packets from the guest that wait for the stack. The worker polls after each batch, so more means a flood:
/// dropped.
const INCOMING_CAP: usize = 1024;

/// Buffers kept for reuse.
const SPARE_CAP: usize = 64;

/// The wire between guest and stack, without its Ethernet framing.
pub struct Wire {
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    mtu: usize,
}

impl Wire {
    /// A buffer of `len` zeroed or stale bytes, which the caller overwrites.
    fn buffer(&mut self, len: usize) -> Vec<u8> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < SPARE_CAP {
            self.spare.push(buffer);
        }
    }
}

/// One packet for the stack.
pub struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

/// Room for one packet to the guest.
pub struct Outgoing<'a>(&'a mut Wire);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut buffer = self.0.buffer(len);
        let result = write(&mut buffer);
        self.0.outgoing.push_back(buffer);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming, Outgoing<'_>)> {
        if self.outgoing.len() >= OUTGOING_CAP {
            return None;
        }
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(self)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < OUTGOING_CAP).then_some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // The wire is memory: nothing is damaged on it, so what the guest sends is not checked. What the
        // guest gets has checksums, because it may check them.
        let mut checksum = ChecksumCapabilities::default();
        checksum.ipv4 = Checksum::Tx;
        checksum.tcp = Checksum::Tx;
        checksum.icmpv4 = Checksum::Tx;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// The stack with its sockets.
pub struct Stack {
    /// Address, routes and timers.
    pub interface: Interface,
    /// All sockets.
    pub sockets: SocketSet<'static>,
    wire: Wire,
    clock: Clock,
}

impl Stack {
    /// A stack that owns `address` and, when `any` is set, answers for every other address as well.
    pub fn new(address: Ipv4Addr, prefix: u8, mtu: u16, any: bool, clock: Clock) -> Stack {
        let mut wire = Wire {
            incoming: VecDeque::new(),
            outgoing: VecDeque::new(),
            spare: Vec::new(),
            mtu: usize::from(mtu),
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = u64::from_le_bytes(crate::entropy::bytes());
        let mut interface = Interface::new(config, &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // One address fits: the list has room for two.
            let _ = addresses.push(IpCidr::new(address.into(), prefix));
        });
        if any {
            interface.set_any_ip(true);
            // The route table has room for two routes; this is the first.
            let _ = interface.routes_mut().add_default_ipv4_route(address);
        }
        Stack {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            clock,
        }
    }

    /// Queues an IP packet from the guest.
    pub fn push(&mut self, packet: &[u8]) {
        if self.wire.incoming.len() < INCOMING_CAP {
            let mut buffer = self.wire.buffer(0);
            buffer.extend_from_slice(packet);
            self.wire.incoming.push_back(buffer);
        }
    }

    /// Takes the next IP packet for the guest, calling `write` with it.
    pub fn pop<R>(&mut self, write: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let packet = self.wire.outgoing.pop_front()?;
        let result = write(&packet);
        self.wire.recycle(packet);
        Some(result)
    }

    /// The connection of the socket `handle`, seen from the guest, if it has one.
    pub fn connection(&self, handle: SocketHandle) -> Option<TcpConnection> {
        let socket = self.sockets.get::<tcp::Socket>(handle);
        let end = |endpoint: IpEndpoint| match endpoint.addr {
            IpAddress::Ipv4(address) => SocketAddrV4::new(address, endpoint.port),
        };
        Some(TcpConnection {
            guest: end(socket.remote_endpoint()?),
            peer: end(socket.local_endpoint()?),
        })
    }

    /// Lets the stack work on what is queued. Returns whether any socket may have changed.
    pub fn poll(&mut self) -> bool {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets)
            == smoltcp::iface::PollResult::SocketStateChanged
    }

    /// Milliseconds until the next timer of a socket.
    pub fn next_timer(&mut self) -> Option<u64> {
        let now = self.now();
        self.interface
            .poll_delay(now, &self.sockets)
            .map(|delay| delay.total_millis())
    }

    fn now(&self) -> StackInstant {
        StackInstant::from_micros(i64::try_from(self.clock.now().as_micros()).unwrap_or(i64::MAX))
    }
}
