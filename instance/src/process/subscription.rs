//! What is published to those who subscribed: a bounded channel for each of them, whose receiver can wait for
//! its connection as well.
//!
//! A subscriber is served by a thread that waits for two things at once: the next item, and the end of the
//! peer that the items go to. A channel alone cannot be polled, so each has an eventfd next to it. The
//! descriptor belongs to the receiver: it is closed when the subscriber's thread ends, not when the publisher
//! has something new to say.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// The publisher's side.
#[derive(Debug)]
pub struct Subscribers<T>(Vec<Subscriber<T>>);

#[derive(Debug)]
struct Subscriber<T> {
    /// `None` only while it is dropped.
    sender: Option<SyncSender<T>>,
    wake: Weak<EventFd>,
}

/// The receiver's side: everything that is published from its making on. As an iterator it waits for the
/// items alone.
#[derive(Debug)]
pub struct Subscription<T> {
    receiver: Receiver<T>,
    wake: Arc<EventFd>,
}

/// What [`Subscription::wait`] has waited for.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// The next item.
    Item(T),
    /// The peer has sent something, or has ended its direction.
    Input,
    /// Nothing more will be published, or this subscriber was too slow.
    End,
    /// The peer has closed the connection.
    Gone,
}

impl<T> Default for Subscribers<T> {
    fn default() -> Subscribers<T> {
        Subscribers(Vec::new())
    }
}

impl<T: Clone> Subscribers<T> {
    /// A new subscriber, which is dropped when it lags more than `backlog` items behind.
    ///
    /// # Errors
    /// When no descriptor is available.
    pub fn add(&mut self, backlog: usize) -> io::Result<Subscription<T>> {
        // Where nothing is published for hours, nobody else would notice that they have left.
        self.0.retain(|subscriber| subscriber.wake.strong_count() > 0);
        let wake = Arc::new(EventFd::from_flags(
            EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
        )?);
        let (sender, receiver) = sync_channel(backlog);
        self.0.push(Subscriber {
            sender: Some(sender),
            wake: Arc::downgrade(&wake),
        });
        Ok(Subscription { receiver, wake })
    }

    /// Gives `item` to each subscriber, and drops those that have left or are too slow.
    pub fn publish(&mut self, item: &T) {
        self.0.retain(|subscriber| {
            let sent = subscriber.sender.as_ref().map(|to| to.try_send(item.clone()));
            let taken = matches!(sent, Some(Ok(())));
            if taken {
                subscriber.wake();
            }
            taken
        });
    }

    /// Whether there are no subscribers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ends all subscriptions.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

impl<T> Subscriber<T> {
    fn wake(&self) {
        if let Some(wake) = self.wake.upgrade() {
            // Fails when the count is at its highest, and then it is readable.
            let _ = wake.write(1);
        }
    }
}

impl<T> Drop for Subscriber<T> {
    /// The channel first: whoever wakes finds it closed.
    fn drop(&mut self) {
        self.sender = None;
        self.wake();
    }
}

impl<T> Subscription<T> {
    /// Waits for the next item, for the end of `peer`, and with `input` for what `peer` sends.
    ///
    /// A peer that has ended its own direction only (`shutdown(2)` with `SHUT_WR`) still reads, and is not
    /// gone.
    ///
    /// # Errors
    /// When the kernel cannot wait.
    pub fn wait(&self, peer: &impl AsFd, input: bool) -> io::Result<Next<T>> {
        let wanted = if input {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        loop {
            match self.receiver.try_recv() {
                Ok(item) => return Ok(Next::Item(item)),
                Err(TryRecvError::Disconnected) => return Ok(Next::End),
                Err(TryRecvError::Empty) => {}
            }
            let mut ready = [
                PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
                PollFd::new(peer.as_fd(), wanted),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [woken, peer] = ready.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if peer.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Ok(Next::Gone);
            }
            if peer.contains(PollFlags::POLLIN) {
                return Ok(Next::Input);
            }
            if woken.contains(PollFlags::POLLIN) {
                // The count is of no interest; the channel knows what there is.
                let _ = self.wake.read();
            }
        }
    }
}

impl<T> Iterator for Subscription<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.receiver.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn items_come_in_order_and_then_the_end() {
        let (ours, _peer) = UnixStream::pair().unwrap();
        let mut subscribers = Subscribers::default();
        let subscription = subscribers.add(8).unwrap();
        let publisher = std::thread::spawn(move || (0..3).for_each(|n| subscribers.publish(&n)));
        for n in 0..3 {
            assert_eq!(subscription.wait(&ours, false).unwrap(), Next::Item(n));
        }
        publisher.join().unwrap();
        assert_eq!(subscription.wait(&ours, false).unwrap(), Next::End);
    }

    #[test]
    fn a_peer_that_closes_is_noticed_while_nothing_is_published() {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut subscribers = Subscribers::<u8>::default();
        let subscription = subscribers.add(8).unwrap();
        let waiting = std::thread::spawn(move || subscription.wait(&ours, false).unwrap());
        drop(peer);
        assert_eq!(waiting.join().unwrap(), Next::Gone);
    }

    #[test]
    fn a_peer_that_only_reads_is_not_gone() {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut subscribers = Subscribers::default();
        let subscription = subscribers.add(8).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(subscription.wait(&ours, true).unwrap(), Next::Input);
        subscribers.publish(&1);
        assert_eq!(subscription.wait(&ours, false).unwrap(), Next::Item(1));
    }

    #[test]
    fn closed_subscribers_are_removed_without_a_publication() {
        let mut subscribers = Subscribers::<u8>::default();
        for _ in 0..1000 {
            drop(subscribers.add(8).unwrap());
        }
        assert_eq!(subscribers.0.len(), 1);
    }
}
