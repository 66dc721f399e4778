//! Interrupts as devices see them: lines that can be triggered.

use std::io;

/// An interrupt line of the machine, edge triggered: each call of [`trigger`](Interrupt::trigger) is one
/// edge.
///
/// Under KVM this is an irqfd; under the software CPU it is a pin of the emulated IOAPIC.
pub trait Interrupt: Send + Sync {
    /// Raises one edge. Never blocks; edges that arrive before the guest has taken the first one may merge.
    fn trigger(&self) -> io::Result<()>;
}
