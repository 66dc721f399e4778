//! What the API remembers that instances and images do not say of themselves: key pairs, launches by their
//! client tokens, instances that were terminated, images by the requests that made them.
//!
//! All of it is in the store of the instance layer. Nothing is kept in memory: the program may be killed and
//! started at any time.

use std::collections::BTreeMap;
use std::time::Duration;

use instance::Record;
use instance::service::Service;
use instance::store::documents::{Documents, LockedDocument};
use instance::store::id::ReservationId;
use serde::{Deserialize, Serialize};

use crate::actions::Group;
use crate::error::Result;
use crate::time;

/// How long a terminated instance is described: EC2 says about an hour.
const TOMBSTONE: u64 = 3600;
/// How long a client token is remembered.
const TOKEN: u64 = 24 * 3600;
/// How long a change of a document waits for another one. A launch or the making of an image with the same
/// token is waited for.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The documents.
#[derive(Debug)]
pub struct Ledger {
    key_pairs: Documents,
    launches: Documents,
    terminations: Documents,
    images: Documents,
    groups: Documents,
    protections: Documents,
}

/// A key pair; only the public half is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// `key-` and 17 hexadecimal digits.
    pub id: String,
    /// `ed25519` or `rsa`.
    pub kind: String,
    /// OpenSSH's SHA-256 fingerprint.
    pub fingerprint: String,
    /// Type and key in OpenSSH's form.
    pub public_key: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A launch that was asked for with a client token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchOf {
    /// What was asked for, in one text.
    pub request: String,
    /// The launch. It is written down before there is an instance.
    pub reservation: ReservationId,
    /// Seconds since 1970.
    pub at: u64,
}

/// An instance that is to be terminated, or was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Termination {
    /// Its record when that was asked for.
    pub record: Record,
    /// Its type.
    pub instance_type: String,
    /// `x86_64` or `arm64`.
    pub architecture: String,
    /// Seconds since 1970 when it was asked for.
    pub at: u64,
}

/// What the API refuses of an instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// It is not terminated.
    pub termination: bool,
    /// It is not stopped.
    pub stop: bool,
}

/// An image that was made of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOf {
    /// What was asked for, in one text.
    pub request: String,
    /// The image.
    pub image: String,
    /// Seconds since 1970.
    pub at: u64,
}

impl Ledger {
    /// That of the store of `service`.
    pub fn new(service: &Service) -> Ledger {
        Ledger {
            key_pairs: service.documents("key-pairs"),
            launches: service.documents("launches"),
            terminations: service.documents("terminations"),
            images: service.documents("images"),
            groups: service.documents("security-groups"),
            protections: service.documents("protections"),
        }
    }

    /// The key pairs by name.
    pub fn key_pairs(&self) -> Result<Vec<(String, KeyPair)>> {
        Ok(self.key_pairs.list()?)
    }

    /// The key pair of that name.
    pub fn key_pair(&self, name: &str) -> Result<Option<KeyPair>> {
        Ok(self.key_pairs.get(name)?)
    }

    /// Takes hold of the key pair of that name.
    pub fn lock_key_pair(&self, name: &str) -> Result<LockedDocument> {
        Ok(self.key_pairs.lock(name, TIMEOUT)?)
    }

    /// Takes hold of the launch with that client token, and what is known of it.
    pub fn lock_launch(&self, token: &str) -> Result<(LockedDocument, Option<LaunchOf>)> {
        self.forget_launches()?;
        let held = self.launches.lock(token, TIMEOUT)?;
        let known = self.launches.get(token)?;
        Ok((held, known))
    }

    /// Takes hold of the image of that name that is to be made, and what is known of one that was.
    pub fn lock_image(&self, name: &str) -> Result<(LockedDocument, Option<ImageOf>)> {
        let held = self.images.lock(name, TIMEOUT)?;
        let known = self.images.get(name)?;
        Ok((held, known))
    }

    /// The terminations by instance; those of more than an hour ago are forgotten once the instance is gone.
    pub fn terminations(&self) -> Result<BTreeMap<String, Termination>> {
        Ok(self.terminations.list()?.into_iter().collect())
    }

    /// Writes down that an instance is to be terminated.
    pub fn terminate(&self, termination: &Termination) -> Result<()> {
        let id = termination.record.id.as_str();
        Ok(self.terminations.lock(id, TIMEOUT)?.put(termination)?)
    }

    /// Forgets a termination.
    pub fn forget_termination(&self, id: &str) -> Result<()> {
        Ok(self.terminations.lock(id, TIMEOUT)?.remove()?)
    }

    /// What the API refuses of that instance.
    pub fn protection(&self, id: &str) -> Result<Protection> {
        Ok(self.protections.get(id)?.unwrap_or_default())
    }

    /// Changes what the API refuses of that instance.
    pub fn protect(&self, id: &str, change: impl FnOnce(&mut Protection)) -> Result<()> {
        let held = self.protections.lock(id, TIMEOUT)?;
        let mut protection = self.protection(id)?;
        change(&mut protection);
        match protection == Protection::default() {
            true => Ok(held.remove()?),
            false => Ok(held.put(&protection)?),
        }
    }

    /// The instances of which the API refuses something.
    pub fn protected(&self) -> Result<Vec<String>> {
        let all = self.protections.list::<Protection>()?;
        Ok(all.into_iter().map(|(id, _)| id).collect())
    }

    /// The security groups by id; the default group is none of them.
    pub fn groups(&self) -> Result<Vec<(String, Group)>> {
        Ok(self.groups.list()?)
    }

    /// Takes hold of the security group of that id.
    pub fn lock_group(&self, id: &str) -> Result<LockedDocument> {
        Ok(self.groups.lock(id, TIMEOUT)?)
    }

    /// Keeps others from giving names to security groups.
    pub fn lock_group_names(&self) -> Result<LockedDocument> {
        Ok(self.groups.lock("names", TIMEOUT)?)
    }

    fn forget_launches(&self) -> Result<()> {
        for (token, launch) in self.launches.list::<LaunchOf>()? {
            if launch.at + TOKEN < time::now()
                && let Ok(held) = self.launches.lock(&token, Duration::ZERO)
            {
                held.remove()?;
            }
        }
        Ok(())
    }
}

impl Termination {
    /// Whether it is not described any more, once the instance is gone.
    pub fn is_old(&self) -> bool {
        self.at + TOMBSTONE < time::now()
    }
}
