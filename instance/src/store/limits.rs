//! Rate limits of an instance, as in `disk=50MiB/s,iops=1000,net=100Mbit/s`.

use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use machine::limit::RateLimiter;

/// A guest with less than this could not even boot: bytes a second of a disk, bytes a second of the network.
const LEAST_DISK: u64 = 64 << 10;
const LEAST_NET: u64 = 1 << 10;
/// More than any host does; larger numbers are slips of the finger. Bytes a second.
const MOST: u64 = 1 << 40;
/// What a value looks like.
const FORM: &str = "write it like disk=50MiB/s,iops=1000,net=100Mbit/s";

/// Limits of an instance's devices; `None` is any number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes a second that each volume reads and writes.
    pub disk: Option<NonZeroU64>,
    /// Requests a second to each volume.
    pub iops: Option<NonZeroU64>,
    /// Bytes a second that the network carries, in each direction.
    pub net: Option<NonZeroU64>,
}

impl Limits {
    /// The pace of one volume.
    pub fn volume(&self) -> RateLimiter {
        RateLimiter::new(self.iops, self.disk)
    }

    /// The pace of one direction of the network.
    pub fn network(&self) -> RateLimiter {
        RateLimiter::new(None, self.net)
    }

    /// Whether nothing is limited.
    pub fn none(&self) -> bool {
        *self == Limits::default()
    }

    /// Both limits at once.
    ///
    /// # Errors
    /// The name of what both limit.
    pub fn and(self, other: Limits) -> Result<Limits, &'static str> {
        let one = |name, a: Option<NonZeroU64>, b: Option<NonZeroU64>| match (a, b) {
            (Some(_), Some(_)) => Err(name),
            (a, b) => Ok(a.or(b)),
        };
        Ok(Limits {
            disk: one("disk", self.disk, other.disk)?,
            iops: one("iops", self.iops, other.iops)?,
            net: one("net", self.net, other.net)?,
        })
    }
}

impl FromStr for Limits {
    type Err = String;

    /// `KEY=VALUE[,KEY=VALUE]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Limits::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or_else(|| FORM.to_owned())?;
            let value = value.strip_suffix("/s").unwrap_or(value);
            let one = match key {
                "disk" => Limits {
                    disk: Some(bytes(value, LEAST_DISK, "64KiB/s")?),
                    ..Limits::default()
                },
                "iops" => Limits {
                    iops: Some(operations(value)?),
                    ..Limits::default()
                },
                "net" => Limits {
                    net: Some(network(value)?),
                    ..Limits::default()
                },
                _ => return Err(format!("{key:?} cannot be limited; {FORM}")),
            };
            limits = limits
                .and(one)
                .map_err(|name| format!("{name} is limited twice; give it once"))?;
        }
        Ok(limits)
    }
}

fn bytes(text: &str, least: u64, shown: &str) -> Result<NonZeroU64, String> {
    let number = crate::store::size::parse(text).map_err(|error| format!("{error}; {FORM}"))?;
    within(number, least, shown)
}

fn operations(text: &str) -> Result<NonZeroU64, String> {
    let number = text
        .parse()
        .map_err(|_| format!("{text:?} is no number of requests; {FORM}"))?;
    within(number, 1, "1")
}

/// Bits in powers of ten, as networks are sold, or bytes as everywhere else.
fn network(text: &str) -> Result<NonZeroU64, String> {
    let least = "8kbit/s";
    let Some(number) = text.strip_suffix("bit") else {
        return bytes(text, LEAST_NET, least);
    };
    let (number, factor) = match number.char_indices().last() {
        Some((at, 'k' | 'K')) => (&number[..at], 1_000),
        Some((at, 'M')) => (&number[..at], 1_000_000),
        Some((at, 'G')) => (&number[..at], 1_000_000_000),
        _ => (number, 1),
    };
    let bits = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    let bits = bits.ok_or_else(|| format!("{text:?} is no number of bits; {FORM}"))?;
    within(bits / 8, 1_000, least)
}

fn within(number: u64, least: u64, shown: &str) -> Result<NonZeroU64, String> {
    match NonZeroU64::new(number) {
        Some(rate) if (least..=MOST).contains(&number) => Ok(rate),
        Some(_) if number > MOST => {
            Err("that is more than any host does; leave it out for no limit".to_owned())
        }
        _ => Err(format!(
            "with so little no guest gets anywhere; the least is {shown}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Limits, String> {
        text.parse()
    }

    #[test]
    fn rates_are_read_in_the_units_that_people_use() {
        let all = parse("disk=50MiB/s,iops=1000,net=100Mbit/s").unwrap();
        let rates = [all.disk, all.iops, all.net].map(|rate| rate.unwrap().get());
        assert_eq!(rates, [50 << 20, 1000, 12_500_000]);
        for (text, bytes) in [
            ("net=1Gbit", 125_000_000),
            ("net=64kbit/s", 8_000),
            ("net=2M/s", 2 << 20),
            ("net=8000bit/s", 1_000),
        ] {
            assert_eq!(parse(text).unwrap().net.unwrap().get(), bytes, "{text}");
        }
        assert!(Limits::default().none() && !all.none());
    }

    #[test]
    fn invalid_limits_are_refused_with_advice() {
        for (text, advice) in [
            ("", "write it like"),
            ("disk", "write it like"),
            ("cpu=5", "\"cpu\" cannot be limited"),
            ("disk=0", "the least is 64KiB/s"),
            ("disk=1k/s", "the least is 64KiB/s"),
            ("disk=fast", "write it like"),
            ("iops=0", "the least is 1"),
            ("iops=10k", "no number of requests"),
            ("net=1bit", "the least is 8kbit/s"),
            ("net=99999999999999999999Gbit", "no number of bits"),
            ("net=1é", "write it like"),
            ("net=ébit", "no number of bits"),
            ("disk=9999T", "leave it out"),
            ("iops=1,iops=2", "iops is limited twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }

    #[test]
    fn several_flags_are_one_set() {
        let disk = parse("disk=1M").unwrap();
        let both = disk.and(parse("net=1M").unwrap()).unwrap();
        assert_eq!((both.disk, both.net), (disk.disk, disk.disk));
        assert_eq!(both.and(disk), Err("disk"));
    }
}
