//! The bytes of a snapshot's state: payloads in a fixed order, each with its kind, version and digest.
//!
//! ```text
//! 0   8   "KILNSTAT"
//! 8   4   version of this layout
//! 12  -   payloads
//!
//! 0   2   kind                     4   4   length in bytes of what follows the digest
//! 2   2   version of the kind      8   32  BLAKE3 of the number of the payload in the state, these 8 bytes and
//!                                          the payload's
//! ```
//!
//! All numbers are little endian. What a payload holds is plain data in postcard's encoding. A [`Reader`] takes
//! payloads in the order in which a [`Writer`] has put them, so that none can be missing, doubled or exchanged.
//! The digest finds damage, not intent: whatever is decoded is checked, field by field, by whom it is for
//! before anything is changed by it; see [`Refused`].

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a state begins with.
const MAGIC: [u8; 8] = *b"KILNSTAT";
/// Version of the layout above.
const FORMAT: u32 = 1;
/// Bytes of a digest.
const DIGEST: usize = blake3::OUT_LEN;
/// Bytes before a payload.
const HEAD: usize = 8 + DIGEST;

/// What a payload holds. The number is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// What machine it is of.
    Machine = 1,
    /// Which pages of its RAM hold data, and which are needed first.
    Pages = 2,
    /// The accelerator's side of the machine: interrupt controllers and clock.
    Vm = 3,
    /// One processor.
    Vcpu = 4,
    /// The devices that every machine has.
    Fixed = 5,
    /// One virtio device and its transport.
    Transport = 6,
}

impl Kind {
    /// The version that is written, and the only one that is read. It changes with the encoding of what the
    /// payload holds, or with its meaning.
    const fn version(self) -> u16 {
        match self {
            Kind::Machine | Kind::Vm | Kind::Vcpu | Kind::Fixed => 1,
            Kind::Pages | Kind::Transport => 2,
        }
    }

    /// What messages call it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Machine => "machine",
            Kind::Pages => "page map",
            Kind::Vm => "interrupt controllers and clock",
            Kind::Vcpu => "processor",
            Kind::Fixed => "platform devices",
            Kind::Transport => "virtio device",
        }
    }
}

/// Why bytes are no state.
#[derive(Debug, Clone, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum Error {
    /// these bytes are no machine's state
    Foreign,
    /// the state is truncated in its part "{0}"
    Truncated(&'static str),
    /// the state's part "{0}" is damaged
    Damaged(&'static str),
    /// something follows the state's last part
    Trailing,
    /// {0}
    Version(Mismatch),
}

/// A state of another kind of machine: sound, but of no use for this one.
#[derive(Debug, Clone, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
#[displaydoc("its {what} is {saved}, and {this} is needed")]
pub struct Mismatch {
    /// What differs.
    pub what: String,
    /// How it was when the state was saved.
    pub saved: String,
    /// How it has to be.
    pub this: String,
}

impl Mismatch {
    /// `Ok` where both are the same.
    ///
    /// # Errors
    /// Where they differ.
    pub fn unless_equal<T: PartialEq + std::fmt::Display>(what: &str, saved: T, this: T) -> Result<(), Self> {
        if saved == this {
            return Ok(());
        }
        Err(Mismatch {
            what: what.to_owned(),
            saved: saved.to_string(),
            this: this.to_string(),
        })
    }
}

/// Why a part of the machine does not take a state that was decoded.
#[derive(Debug, Clone, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub enum Refused {
    /// {0} cannot be as the state says
    Invalid(&'static str),
    /// {0}
    Mismatch(#[from] Mismatch),
}

impl Refused {
    /// `Ok` where `valid`.
    ///
    /// # Errors
    /// Where it is not; `what` is then invalid.
    pub fn unless(valid: bool, what: &'static str) -> Result<(), Refused> {
        if valid {
            Ok(())
        } else {
            Err(Refused::Invalid(what))
        }
    }
}

/// Puts payloads together.
pub struct Writer {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for Writer {
    fn default() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_le_bytes());
        Writer { bytes, count: 0 }
    }
}

impl Writer {
    /// Appends a payload.
    ///
    /// # Errors
    /// When `value` is none that can be encoded, or has more than 4 GiB.
    pub fn put(&mut self, kind: Kind, value: &impl Serialize) -> Result<(), Unencodable> {
        let unencodable = || Unencodable(kind.name());
        let payload = postcard::to_stdvec(value).map_err(|_| unencodable())?;
        let len = u32::try_from(payload.len()).map_err(|_| unencodable())?;
        let mut head = Vec::with_capacity(HEAD);
        head.extend((kind as u16).to_le_bytes());
        head.extend(kind.version().to_le_bytes());
        head.extend(len.to_le_bytes());
        let digest = digest(self.count, &head, &payload);
        self.bytes.extend(head);
        self.bytes.extend(digest);
        self.bytes.extend(payload);
        self.count += 1;
        Ok(())
    }

    /// The whole state.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// The state's part "{0}" cannot be encoded
#[derive(Debug, Clone, Copy, PartialEq, Eq, displaydoc::Display, thiserror::Error)]
pub struct Unencodable(&'static str);

/// Takes a state apart.
pub struct Reader<'a> {
    rest: &'a [u8],
    count: u32,
}

impl<'a> Reader<'a> {
    /// A reader at the first payload.
    ///
    /// # Errors
    /// When it is not a state, or of another version.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let (magic, rest) = bytes.split_at_checked(MAGIC.len()).ok_or(Error::Foreign)?;
        if magic != MAGIC {
            return Err(Error::Foreign);
        }
        let (version, rest) = rest.split_first_chunk().ok_or(Error::Truncated("head"))?;
        Mismatch::unless_equal("state format's version", u32::from_le_bytes(*version), FORMAT)
            .map_err(Error::Version)?;
        Ok(Reader { rest, count: 0 })
    }

    /// Takes the next payload, which is to be of this kind.
    ///
    /// # Errors
    /// When it is not there whole and undamaged, or of another version.
    pub fn take<T: DeserializeOwned>(&mut self, kind: Kind) -> Result<T, Error> {
        let (truncated, damaged) = (Error::Truncated(kind.name()), Error::Damaged(kind.name()));
        let Some((head, rest)) = self.rest.split_at_checked(HEAD) else {
            return Err(truncated);
        };
        let (head, expected) = head.split_at(8);
        let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        let Some((payload, rest)) = rest.split_at_checked(len as usize) else {
            return Err(truncated);
        };
        if short(0) != kind as u16 || expected != digest(self.count, head, payload) {
            return Err(damaged);
        }
        let what = format!("version of the {}'s state", kind.name());
        Mismatch::unless_equal(&what, short(2), kind.version()).map_err(Error::Version)?;
        let (value, unused) = postcard::take_from_bytes(payload).map_err(|_| damaged.clone())?;
        if !unused.is_empty() {
            return Err(damaged);
        }
        self.rest = rest;
        self.count += 1;
        Ok(value)
    }

    /// The end.
    ///
    /// # Errors
    /// When it is not the end.
    pub fn finish(self) -> Result<(), Error> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Error::Trailing)
        }
    }
}

fn digest(number: u32, head: &[u8], payload: &[u8]) -> [u8; DIGEST] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes()).update(head).update(payload);
    *hasher.finalize().as_bytes()
}

/// The same bytes with digests that are right, for those who change them on purpose: tests and fuzzers. What
/// is no head of a payload ends it.
pub fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    let mut at = MAGIC.len() + 4;
    for number in 0.. {
        let Some(head) = bytes.get(at..at + 8) else { break };
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let start = at + HEAD;
        let Some(payload) = bytes.get(start..start.saturating_add(len)) else {
            break;
        };
        sealed[at + 8..start].copy_from_slice(&digest(number, head, payload));
        at = start + len;
    }
    sealed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Vec<u8> {
        let mut writer = Writer::default();
        writer.put(Kind::Machine, &(7u8, "seven")).unwrap();
        writer.put(Kind::Vcpu, &vec![1u64 << 40, 2]).unwrap();
        writer.put(Kind::Vcpu, &vec![3u64]).unwrap();
        writer.finish()
    }

    fn read(bytes: &[u8]) -> Result<(), Error> {
        let mut reader = Reader::new(bytes)?;
        assert_eq!(reader.take::<(u8, String)>(Kind::Machine)?, (7, "seven".into()));
        assert_eq!(reader.take::<Vec<u64>>(Kind::Vcpu)?, [1 << 40, 2]);
        assert_eq!(reader.take::<Vec<u64>>(Kind::Vcpu)?, [3]);
        reader.finish()
    }

    #[test]
    fn what_was_put_is_taken() {
        assert_eq!(read(&state()), Ok(()));
        assert_eq!(sealed(&state()), state());
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused_by_name() {
        let state = state();
        for len in 0..state.len() {
            let error = read(&state[..len]).unwrap_err();
            match len {
                0..8 => assert_eq!(error, Error::Foreign),
                8..12 => assert_eq!(error, Error::Truncated("head")),
                _ => assert!(
                    matches!(error, Error::Truncated("machine" | "processor")),
                    "{error}"
                ),
            }
        }
        for bit in 0..8 * state.len() {
            let mut flipped = state.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = read(&flipped).unwrap_err();
            match bit / 8 {
                0..8 => assert_eq!(error, Error::Foreign),
                8..12 => assert!(matches!(error, Error::Version(_)), "{error}"),
                _ => assert!(
                    matches!(error, Error::Damaged(_) | Error::Truncated(_)),
                    "{error} at bit {bit}"
                ),
            }
        }
        let mut longer = state.clone();
        longer.push(0);
        assert_eq!(read(&longer), Err(Error::Trailing));
    }

    #[test]
    fn parts_that_changed_places_are_refused() {
        let mut writer = Writer::default();
        writer.put(Kind::Vcpu, &1u64).unwrap();
        let one = writer.bytes.len();
        writer.put(Kind::Vcpu, &2u64).unwrap();
        let state = writer.finish();
        let mut exchanged = state[..12].to_vec();
        exchanged.extend(&state[one..]);
        exchanged.extend(&state[12..one]);
        let mut reader = Reader::new(&exchanged).unwrap();
        assert_eq!(reader.take::<u64>(Kind::Vcpu), Err(Error::Damaged("processor")));
    }

    #[test]
    fn another_version_is_no_damage() {
        let mut bytes = state();
        bytes[14] = 2;
        let error = read(&sealed(&bytes)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "its version of the machine's state is 2, and 1 is needed"
        );
    }
}
