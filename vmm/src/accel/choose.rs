//! Which accelerator a machine gets.

use std::fs;
use std::path::PathBuf;

use super::kvm::{self, Kvm, probe};
use super::{Created, Error};
use crate::memory::Memory;

/// Which accelerator a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Choice {
    /// KVM where it works and is fast, else the software processor.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// The software processor.
    Soft,
}

/// The accelerator that a machine will have, ready to make it.
#[derive(Debug)]
pub struct Chosen {
    /// `None` means the software processor.
    kvm: Option<Kvm>,
    /// Why this one, in a few words that continue "accelerator kvm: ".
    pub why: String,
}

impl Chosen {
    /// Its name on the command line: `kvm` or `soft`.
    pub fn name(&self) -> &'static str {
        match self.kvm {
            Some(_) => "kvm",
            None => "soft",
        }
    }

    /// Makes the accelerator's side of a machine.
    pub fn create(&self, memory: &Memory, cpus: u8) -> Result<Created, Error> {
        match &self.kvm {
            Some(kvm) => kvm::create(kvm, memory, cpus),
            #[cfg(target_arch = "x86_64")]
            None => super::soft::create(super::soft::Options::default(), memory, cpus),
            #[cfg(not(target_arch = "x86_64"))]
            None => Err(Error::Unavailable {
                accelerator: "the software processor",
                source: std::io::ErrorKind::Unsupported.into(),
                hint: "it runs x86-64 guests only; use --accel kvm on a host with KVM",
            }),
        }
    }
}

/// Decides. `Auto` tries KVM out in a scratch machine once per boot of the host and remembers the verdict; whether
/// KVM can be opened at all is found out each time.
pub fn choose(choice: Choice) -> Result<Chosen, Error> {
    let soft = |why: String| Chosen { kvm: None, why };
    match choice {
        Choice::Soft => Ok(soft("asked for".into())),
        Choice::Kvm => Ok(Chosen {
            kvm: Some(kvm::open()?),
            why: "asked for".into(),
        }),
        Choice::Auto => match kvm::open() {
            Err(error) => Ok(soft(error.to_string())),
            Ok(kvm) => Ok(match verdict(&kvm) {
                Ok(why) => Chosen { kvm: Some(kvm), why },
                Err(why) => soft(why),
            }),
        },
    }
}

/// Why to use KVM, or why not to.
type Verdict = Result<String, String>;

fn verdict(kvm: &Kvm) -> Verdict {
    let cache = Cache::locate();
    if let Some(verdict) = cache.as_ref().and_then(Cache::load) {
        return verdict;
    }
    let verdict = probe::try_out(kvm)
        .map(|speed| speed.to_string())
        .map_err(|error| error.to_string());
    if let Some(cache) = cache {
        cache.store(&verdict);
    }
    verdict
}

/// The file that remembers a verdict for this boot of the host and this version of the program. Without it, nothing is
/// worse than slower.
struct Cache {
    path: PathBuf,
    key: String,
}

impl Cache {
    fn locate() -> Option<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Cache {
            path: cache.join("kiln/kvm-probe"),
            key: format!("{} {}", env!("CARGO_PKG_VERSION"), boot_id.trim()),
        })
    }

    /// `KEY usable WHY` or `KEY unusable WHY` in one line.
    fn load(&self) -> Option<Verdict> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (verdict, why) = text.strip_prefix(&self.key)?.trim().split_once(' ')?;
        match verdict {
            "usable" => Some(Ok(why.to_owned())),
            "unusable" => Some(Err(why.to_owned())),
            _ => None,
        }
    }

    fn store(&self, verdict: &Verdict) {
        let (word, why) = match verdict {
            Ok(why) => ("usable", why),
            Err(why) => ("unusable", why),
        };
        let why = why.replace('\n', " ");
        let stored = self
            .path
            .parent()
            .map_or(Ok(()), fs::create_dir_all)
            .and_then(|()| fs::write(&self.path, format!("{} {word} {why}\n", self.key)));
        if let Err(error) = stored {
            tracing::debug!(path = %self.path.display(), "the verdict on KVM is not kept: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dir: &tempfile::TempDir, key: &str) -> Cache {
        Cache {
            path: dir.path().join("kiln/kvm-probe"),
            key: key.to_owned(),
        }
    }

    #[test]
    fn a_verdict_is_remembered_for_its_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = cache(&dir, "0.1.0 boot-1");
        assert_eq!(first.load(), None);
        for verdict in [Ok("900 MIPS".to_owned()), Err("no cmpxchg16b".to_owned())] {
            first.store(&verdict);
            assert_eq!(first.load(), Some(verdict));
        }
        assert_eq!(cache(&dir, "0.1.0 boot-2").load(), None);
    }

    #[test]
    fn a_damaged_cache_is_no_verdict() {
        let dir = tempfile::tempdir().unwrap();
        let cache = cache(&dir, "k");
        fs::create_dir_all(cache.path.parent().unwrap()).unwrap();
        for text in ["", "k", "k perhaps so", "k usable"] {
            fs::write(&cache.path, text).unwrap();
            assert_eq!(cache.load(), None, "{text:?}");
        }
    }
}
