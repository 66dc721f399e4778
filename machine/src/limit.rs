//! Rate limits: a token bucket, which computes how long to wait and never sleeps itself.
//!
//! A bucket fills up to a tenth of a second's worth. A request may begin while the bucket is not empty, and
//! takes all the tokens that it needs, into debt if necessary. So a request of any size passes, and
//! the next one waits until the debt is paid. Over time no more passes than the rate and one bucket.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One unit, in the parts that a nanosecond at one unit a second brings.
const UNIT: i128 = 1_000_000_000;
/// A full bucket is a second's worth divided by this: short enough that a second is not noticeably exceeded,
/// long enough for timers of a millisecond.
const BURSTS: u64 = 10;

/// A bucket of units of any kind: bytes, operations.
#[derive(Debug)]
pub struct Bucket {
    rate: NonZeroU64,
    /// What is in it, in parts of a unit; below zero what is owed.
    level: i128,
    /// When it was last filled.
    filled: Instant,
}

impl Bucket {
    /// A full bucket that fills with `rate` units a second.
    pub fn new(rate: NonZeroU64, now: Instant) -> Bucket {
        Bucket {
            rate,
            level: capacity(rate),
            filled: now,
        }
    }

    /// Takes `units`, on credit if there are not as many.
    pub fn take(&mut self, units: u64) {
        self.level = self.level.saturating_sub(i128::from(units) * UNIT);
    }

    /// How long to wait, from `now` on, until something may begin; `None` when it may at once.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        let elapsed = now.saturating_duration_since(self.filled).as_nanos();
        let rate = i128::from(self.rate.get());
        // A bucket that nobody asked for longer than numbers reach is full.
        let earned = i128::try_from(elapsed).unwrap_or(i128::MAX).saturating_mul(rate);
        self.level = self.level.saturating_add(earned).min(capacity(self.rate));
        self.filled = self.filled.max(now);
        if self.level > 0 {
            return None;
        }
        let nanos = (rate - self.level) / rate;
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

fn capacity(rate: NonZeroU64) -> i128 {
    i128::from((rate.get() / BURSTS).max(1)) * UNIT
}

/// What one device may do: operations, and bytes that they carry. Clones share it, so that the threads of a
/// device keep one limit together. Without limits it takes no lock and never asks for the time.
#[derive(Debug, Clone, Default)]
pub struct RateLimiter {
    /// Each a leaf: nothing else is locked while it is held.
    operations: Option<Arc<Mutex<Bucket>>>,
    bytes: Option<Arc<Mutex<Bucket>>>,
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RateLimiter {
    /// So many operations and bytes a second; `None` is any number.
    pub fn new(operations: Option<NonZeroU64>, bytes: Option<NonZeroU64>) -> RateLimiter {
        let bucket = |rate| Arc::new(Mutex::new(Bucket::new(rate, Instant::now())));
        RateLimiter {
            operations: operations.map(bucket),
            bytes: bytes.map(bucket),
        }
    }

    /// Counts an operation with so many bytes.
    pub fn take(&self, bytes: u64) {
        if let Some(bucket) = &self.operations {
            lock(bucket).take(1);
        }
        if let Some(bucket) = &self.bytes {
            lock(bucket).take(bytes);
        }
    }

    /// How long the next operation has to wait; `None` when it may begin at once.
    pub fn wait(&self) -> Option<Duration> {
        let buckets = self.operations.iter().chain(&self.bytes);
        let waits = buckets.filter_map(|bucket| lock(bucket).wait(Instant::now()));
        waits.max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn bucket(rate: u64, now: Instant) -> Bucket {
        Bucket::new(NonZeroU64::new(rate).unwrap(), now)
    }

    /// Units that pass in `time` when a worker with timers of a millisecond does operations of `size` as soon
    /// as it may.
    fn passed(rate: u64, size: u64, time: Duration) -> u64 {
        let mut now = Instant::now();
        let (mut bucket, end, mut units) = (bucket(rate, now), now + time, 0);
        while now < end {
            match bucket.wait(now) {
                None => {
                    bucket.take(size);
                    units += size;
                }
                Some(wait) => {
                    now += MILLISECOND * u32::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap()
                }
            }
        }
        units
    }

    #[test]
    fn over_time_the_rate_passes_whatever_the_size() {
        for (rate, size) in [
            (1000, 1),
            (50 << 20, 4096),
            (50 << 20, 1 << 20),
            (1 << 20, 64 << 20),
            (1, 1),
        ] {
            let seconds = 600;
            let units = passed(rate, size, Duration::from_secs(seconds));
            let (least, most) = (rate * seconds, rate * seconds + (rate / BURSTS).max(1) + size);
            assert!(
                (least..=most).contains(&units),
                "{units} passed at {rate} a second in pieces of {size}, not {least} to {most}"
            );
        }
    }

    #[test]
    fn a_rest_fills_the_bucket_and_no_more() {
        let start = Instant::now();
        let mut bucket = bucket(1000, start);
        for rest in [
            Duration::ZERO,
            Duration::from_secs(3600),
            Duration::from_secs(u64::from(u32::MAX)),
        ] {
            let now = start + rest;
            let mut taken = 0;
            while bucket.wait(now).is_none() {
                bucket.take(1);
                taken += 1;
            }
            assert_eq!(taken, 100, "after {rest:?}");
        }
    }

    #[test]
    fn a_debt_is_paid_before_anything_begins() {
        let start = Instant::now();
        let mut bucket = bucket(1000, start);
        bucket.take(600);
        // 500 are owed.
        let wait = bucket.wait(start).unwrap();
        assert!(wait > 500 * MILLISECOND && wait < 501 * MILLISECOND, "{wait:?}");
        assert!(bucket.wait(start + 499 * MILLISECOND).is_some());
        assert_eq!(bucket.wait(start + wait), None);
        // A clock that does not advance or goes back gives nothing.
        bucket.take(1);
        assert!(bucket.wait(start).is_some());
    }

    #[test]
    fn the_stricter_limit_counts_and_none_never_waits() {
        let free = RateLimiter::default();
        free.take(u64::MAX);
        assert_eq!(free.wait(), None);
        let rate = NonZeroU64::new(1000);
        let limiter = RateLimiter::new(rate, NonZeroU64::new(1_000_000));
        limiter.take(5_000_000);
        assert!(limiter.wait().unwrap() > Duration::from_secs(4), "bytes");
        let limiter = RateLimiter::new(rate, NonZeroU64::new(1_000_000));
        (0..5000).for_each(|_| limiter.take(1));
        assert!(limiter.wait().unwrap() > Duration::from_secs(4), "operations");
    }
}
