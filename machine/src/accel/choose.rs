//! The choice of a machine's accelerator.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::kvm::{self, Kvm, probe};
use super::{CpuModel, Created, Error, Profiling};
use crate::arch::Architecture;
use crate::memory::{self, Memory, Placement};

/// Which accelerator is asked for. As a word it is the variant's name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
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
    /// Instructions are time.
    repeatable: bool,
    /// Where the processor's profile goes.
    profile: Option<Arc<Profiling>>,
    /// Where programs run directly.
    direct: OnceLock<Arc<super::soft::Direct>>,
    /// The architecture of its guest.
    guest: Architecture,
    /// Which processor the guest sees; `None` means the accelerator's own choice: KVM offers the host's, the
    /// software processor x86-64-v3.
    model: Option<CpuModel>,
    /// Why this one, in a few words that continue "accelerator kvm: ".
    pub why: String,
}

impl Chosen {
    /// Its name: `kvm` or `soft`.
    pub fn name(&self) -> &'static str {
        match self.kvm {
            Some(_) => "kvm",
            None => "soft",
        }
    }

    /// The same accelerator with processors of a model.
    ///
    /// # Errors
    /// Where the guest's architecture has no such model.
    pub fn with_model(self, model: Option<CpuModel>) -> Result<Chosen, Error> {
        match (self.guest, model) {
            (Architecture::Arm64, Some(model @ (CpuModel::V2 | CpuModel::V3))) => Err(Error::Model { model }),
            _ => Ok(Chosen { model, ..self }),
        }
    }

    fn soft_options(&self) -> super::soft::Options {
        super::soft::Options {
            clock: if self.repeatable {
                softcpu::Clock::Instructions
            } else {
                softcpu::Clock::Host
            },
            profile: self.profile.clone(),
            direct: self.direct.get().cloned(),
            features: CpuModel::features(self.model),
        }
    }

    /// The instruction set of the software processor; `None` on KVM.
    pub(crate) fn features(&self) -> Option<softcpu::Features> {
        self.kvm.is_none().then(|| CpuModel::features(self.model))
    }

    /// Whether instructions are time, and every run is the same.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.repeatable
    }

    /// How kernel and initramfs are best put into the RAM of its machines.
    pub fn placement(&self) -> Placement {
        match self.kvm {
            Some(_) => Placement::Copy,
            // All of RAM has to be in its file.
            None if self.ram_file().is_some() => Placement::Copy,
            None => Placement::Map,
        }
    }

    /// The same for the RAM of a guest that goes on, of which it touches few pages until it is ready: mapped,
    /// but where all of RAM has to be in its file.
    pub fn placement_of_saved(&self) -> Placement {
        match self.ram_file() {
            Some(_) => Placement::Copy,
            None => Placement::Map,
        }
    }

    /// Lets the guest's programs run on the host's processor, where its kernel is interpreted: starts the
    /// processes in which they do, for `cpus` processors of one machine. This process must have one thread
    /// only. `false` where there is KVM, or each instruction is counted.
    ///
    /// # Errors
    /// When the host gives no such processes, or its processor has less than the guest's.
    pub fn run_directly(&self, cpus: u8) -> io::Result<bool> {
        if self.kvm.is_some() || self.repeatable || self.profile.is_some() {
            return Ok(false);
        }
        let features = CpuModel::features(self.model);
        let direct = Arc::new(super::soft::Direct::start(cpus, features)?);
        // Nobody else can have set it: a process is confined once.
        Ok(self.direct.set(direct).is_ok())
    }

    /// The file that the RAM of the next machine is to be in.
    fn ram_file(&self) -> Option<&File> {
        self.direct.get().and_then(|direct| direct.file())
    }

    /// RAM for its next machine, as [`memory::allocate`] makes it.
    pub fn allocate(&self, ranges: &[(u64, u64)]) -> Result<Memory, memory::Error> {
        match self.ram_file() {
            Some(file) => memory::allocate_in(file, ranges),
            None => memory::allocate(ranges),
        }
    }

    /// Makes the accelerator's side of a machine; with `statistics`, one that gives
    /// [`Vm::statistics`](super::Vm::statistics).
    pub fn create(&self, memory: &Memory, cpus: u8, statistics: bool) -> Result<Created, Error> {
        match &self.kvm {
            Some(kvm) => kvm::create(kvm, memory, cpus, statistics, self.model),
            None => super::soft::create(self.soft_options(), memory, cpus),
        }
    }
}

/// The accelerator for a machine whose every run is to be the same: the one that counts instructions.
pub fn choose_repeatable(
    choice: Accel,
    guest: Architecture,
    profile: Option<Arc<Profiling>>,
) -> Result<Chosen, Error> {
    match choice {
        Accel::Kvm => Err(Error::Uncounted { accelerator: "KVM" }),
        Accel::Auto | Accel::Soft => Ok(Chosen {
            repeatable: true,
            profile,
            ..soft(guest, "it counts instructions".into())?
        }),
    }
}

/// Decides for a guest of architecture `guest`. `Auto` tries KVM out in a scratch machine once per boot of
/// the host and remembers the verdict in the file `remembered`, if there is one; whether KVM can be opened at
/// all is found out each time.
pub fn choose(choice: Accel, guest: Architecture, remembered: Option<&Path>) -> Result<Chosen, Error> {
    choose_on(std::env::consts::ARCH, choice, guest, remembered)
}

/// The same on a host of architecture `host` (the kernel's name).
fn choose_on(
    host: &str,
    choice: Accel,
    guest: Architecture,
    remembered: Option<&Path>,
) -> Result<Chosen, Error> {
    match choice {
        Accel::Soft => soft(guest, "the software processor was asked for".into()),
        Accel::Kvm => match foreign(host, guest) {
            Some(why) => Err(Error::Foreign { guest, why }),
            None => Ok(on_kvm(kvm::open()?, guest, "asked for".into())),
        },
        Accel::Auto => match usable_kvm(host, guest, remembered) {
            Ok((kvm, why)) => Ok(on_kvm(kvm, guest, why)),
            Err(why) => soft(guest, why),
        },
    }
}

/// Why KVM on a host of architecture `host` runs no such guests, if it does not.
fn foreign(host: &str, guest: Architecture) -> Option<String> {
    let own = match host {
        "x86_64" => "x86_64 and i386",
        other => other,
    };
    (guest.machine() != host).then(|| format!("KVM on this {host} host runs {own} guests only"))
}

/// KVM, and why to use it for a guest; or why not to.
fn usable_kvm(host: &str, guest: Architecture, remembered: Option<&Path>) -> Result<(Kvm, String), String> {
    if let Some(why) = foreign(host, guest) {
        return Err(why);
    }
    let kvm = kvm::open().map_err(|error| error.to_string())?;
    let why = verdict(&kvm, remembered)?;
    Ok((kvm, why))
}

fn on_kvm(kvm: Kvm, guest: Architecture, why: String) -> Chosen {
    Chosen {
        kvm: Some(kvm),
        repeatable: false,
        profile: None,
        direct: OnceLock::new(),
        guest,
        model: None,
        why,
    }
}

/// Whether the software processor runs such guests, and why.
fn software(guest: Architecture) -> Result<&'static str, &'static str> {
    match guest {
        Architecture::X86_64 => Ok("it executes x86-64"),
        Architecture::I386 => Ok("it executes x86-64 and its 32-bit programs"),
        Architecture::Arm64 => Err("the software processor runs x86_64 and i386 guests only"),
    }
}

/// The software processor, if it can run such guests; `why` says why not KVM.
fn soft(guest: Architecture, why: String) -> Result<Chosen, Error> {
    match software(guest) {
        Ok(_) => Ok(Chosen {
            kvm: None,
            repeatable: false,
            profile: None,
            direct: OnceLock::new(),
            guest,
            model: None,
            why,
        }),
        Err(not) => Err(Error::Foreign {
            guest,
            why: format!("{why}, and {not}"),
        }),
    }
}

/// Whether an accelerator runs images of an architecture on this host.
#[derive(Debug)]
pub struct Support {
    /// The images' architecture.
    pub architecture: Architecture,
    /// `kvm` or `soft`.
    pub accelerator: &'static str,
    /// Why it does, or why not.
    pub result: Result<String, String>,
}

/// Every architecture on every accelerator; KVM as [`Accel::Auto`] finds it.
pub fn support(remembered: Option<&Path>) -> Vec<Support> {
    support_on(std::env::consts::ARCH, remembered)
}

fn support_on(host: &str, remembered: Option<&Path>) -> Vec<Support> {
    let of = |architecture: Architecture| {
        let row = |accelerator, result| Support {
            architecture,
            accelerator,
            result,
        };
        let kvm = usable_kvm(host, architecture, remembered).map(|(_, why)| why);
        let soft = software(architecture).map(str::to_owned).map_err(str::to_owned);
        [row("kvm", kvm), row("soft", soft)]
    };
    Architecture::ALL.into_iter().flat_map(of).collect()
}

/// What an accelerator does on this host.
#[derive(Debug)]
pub struct Measured {
    /// `kvm` or `soft`.
    pub name: &'static str,
    /// Million instructions per second, or why it cannot be used.
    pub mips: Result<f64, String>,
}

/// Measures each accelerator now, whatever was remembered.
pub fn measure() -> Vec<Measured> {
    let kvm = kvm::open()
        .map_err(|error| error.to_string())
        .and_then(|kvm| probe::try_out(&kvm).map_err(|error| error.to_string()))
        .map(|speed| speed.mips);
    #[cfg(target_arch = "x86_64")]
    let soft = super::soft::measure().map_err(|error| error.to_string());
    #[cfg(not(target_arch = "x86_64"))]
    let soft = Err("it runs x86-64 guests only".to_owned());
    vec![
        Measured {
            name: "kvm",
            mips: kvm,
        },
        Measured {
            name: "soft",
            mips: soft,
        },
    ]
}

/// Why to use KVM, or why not to.
type Verdict = Result<String, String>;

fn verdict(kvm: &Kvm, remembered: Option<&Path>) -> Verdict {
    let cache = remembered.and_then(Cache::at);
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

/// The file that remembers a verdict for this boot of the host and this version of the program. Without it,
/// nothing is worse than slower.
struct Cache {
    path: PathBuf,
    key: String,
}

impl Cache {
    fn at(path: &Path) -> Option<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Cache {
            path: path.to_owned(),
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

    #[test]
    fn a_guest_that_no_accelerator_can_run_is_refused_with_advice() {
        for (choice, why) in [
            (Accel::Auto, "KVM on this x86_64 host"),
            (Accel::Kvm, "KVM on this x86_64 host"),
            (Accel::Soft, "the software processor"),
        ] {
            let error = choose_on("x86_64", choice, Architecture::Arm64, None)
                .unwrap_err()
                .to_string();
            assert!(error.contains(why) && error.contains("arm64 host"), "{error}");
        }
        let error = choose_on("aarch64", Accel::Kvm, Architecture::X86_64, None).unwrap_err();
        assert!(error.to_string().contains("KVM on this aarch64 host"), "{error}");
        for guest in [Architecture::X86_64, Architecture::I386] {
            let chosen = choose_on("aarch64", Accel::Auto, guest, None).unwrap();
            assert_eq!(chosen.name(), "soft");
            let chosen = choose_on("x86_64", Accel::Soft, guest, None).unwrap();
            assert_eq!(chosen.name(), "soft");
        }
    }

    #[test]
    fn each_architecture_has_a_reason_on_each_accelerator() {
        let usable = |host: &str| {
            let rows = support_on(host, None).into_iter().map(|row| {
                let (works, why) = match row.result {
                    Ok(why) => (true, why),
                    Err(why) => (false, why),
                };
                assert!(!why.is_empty());
                // Whether this host has KVM is not the test's to know.
                let decided = row.accelerator == "soft" || why.contains("guests only");
                decided.then(|| format!("{} {} {works}", row.architecture, row.accelerator))
            });
            rows.flatten().collect::<Vec<_>>()
        };
        let soft = ["x86_64 soft true", "arm64 soft false", "i386 soft true"];
        assert_eq!(usable("x86_64"), [soft[0], "arm64 kvm false", soft[1], soft[2]]);
        assert_eq!(
            usable("aarch64"),
            ["x86_64 kvm false", soft[0], soft[1], "i386 kvm false", soft[2]]
        );
    }

    #[test]
    fn a_model_is_the_software_processors_or_one_of_x86_64() {
        let soft = || choose_on("x86_64", Accel::Soft, Architecture::X86_64, None).unwrap();
        let features = |model| soft().with_model(model).unwrap().soft_options().features;
        assert_eq!(features(None), softcpu::Features::V3);
        assert_eq!(features(Some(CpuModel::V2)), softcpu::Features::V2);
        assert_eq!(features(Some(CpuModel::V3)), softcpu::Features::V3);
        assert_eq!(features(Some(CpuModel::Host)), softcpu::Features::host());
        let arm = || Chosen {
            guest: Architecture::Arm64,
            ..soft()
        };
        assert!(arm().with_model(Some(CpuModel::Host)).is_ok());
        let error = arm().with_model(Some(CpuModel::V2)).unwrap_err().to_string();
        assert!(error.contains("v2") && error.contains("x86_64"), "{error}");
    }

    fn cache(dir: &tempfile::TempDir, key: &str) -> Cache {
        Cache {
            path: dir.path().join("kiln/kvm-probe"),
            key: key.to_owned(),
        }
    }

    #[test]
    fn a_verdict_is_cached_for_one_boot_of_the_host() {
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
    fn each_accelerator_is_measured_or_says_why_not() {
        let measured = measure();
        assert_eq!(
            measured.iter().map(|m| m.name).collect::<Vec<_>>(),
            ["kvm", "soft"]
        );
        for Measured { name, mips } in measured {
            match mips {
                Ok(mips) => assert!(mips > 0.1, "{name}: {mips}"),
                Err(why) => assert!(name == "kvm" && !why.is_empty(), "{name}: {why}"),
            }
        }
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
