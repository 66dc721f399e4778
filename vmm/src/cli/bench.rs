//! `bench`: launch many times, interleaved, and say what may be concluded.

mod print;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::failure::Advice;
use super::{Context, Status, options, value};
use ami::PartName;
use instance::images::image::{Image, runnable};
use kiln_benches::Plan;
use kiln_benches::configuration::{Configuration, Monitor, Scratch, peer_machine};
use kiln_benches::outcome::{Cache, End, Outcome};
use kiln_benches::peer::{self, Peer};
use kiln_benches::report::html;
use machine::accel::{Accel, choose};

/// A configuration has become slower than in the run that `--compare` names.
const REGRESSION: Status = Status::of_command(1);
/// The run was too noisy or too short to say anything.
const NO_CONCLUSION: Status = Status::of_command(2);

/// Measure launches: interleaved, with minimum, median, p99 and paired ratios
#[derive(Debug, Args)]
#[command(
    after_help = "The other configurations are compared with the first one, which runs twice a round to \
    measure the noise. Configurations are all combinations of images, --append, --accel and --vmm, then the \
    peers.\n\nExit status: 0 when the run is conclusive, 1 when --compare found a regression, 2 when the run draws \
    no conclusion (too noisy, or fewer than five rounds), 125 when it failed."
)]
pub struct Bench {
    /// AMI files, or ids or names of images in the store
    #[arg(required = true)]
    image: Vec<String>,

    /// Launches of each configuration for each state of the page cache
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Launches of each configuration before those, not counted
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(..=1000))]
    warmups: u32,
    /// Whether the image is in the page cache before a launch
    #[arg(long, value_enum, default_value_t = Caches::Both)]
    cache: Caches,
    /// The event that ends a launch
    #[arg(long, value_parser = options::end(), default_value = "init")]
    end: End,
    /// Words to add to the kernel command line; given twice, the command lines are compared
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    append: Vec<String>,
    /// What runs the guest; given twice, the accelerators are compared
    #[arg(long, value_parser = options::accelerator())]
    accel: Vec<Accel>,
    /// Another `vmm` to compare with this one
    #[arg(long, value_name = "FILE")]
    vmm: Vec<PathBuf>,
    /// Other monitors to compare with: `auto` takes those on PATH
    #[arg(long, value_name = "PEER|auto|none", value_parser = peers, default_value = "auto")]
    peer: Vec<Peers>,
    /// The same image with the driver virtio_pci in its initramfs, of which peers get it whose devices are on PCI
    /// (cloud-hypervisor, crosvm)
    #[arg(long, value_name = "IMAGE")]
    pci: Option<String>,
    /// Launch vmm with the devices that peers have, too (no network, no vsock, no virtio console), and compare
    /// all others with that
    #[arg(long)]
    same_devices: bool,
    /// Virtual processors (default: what the image says)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    cpus: Option<u32>,
    /// RAM, as in 512M or 2G (default: what the image says)
    #[arg(short, long, value_name = "SIZE", value_parser = value::memory)]
    memory: Option<u64>,

    /// Write all samples, their statistics and the conclusions, as JSON
    #[arg(long, value_name = "FILE", value_parser = value::output_file)]
    json: Option<PathBuf>,
    /// Write a report as an HTML page
    #[arg(long, value_name = "FILE", value_parser = value::output_file)]
    html: Option<PathBuf>,
    /// Compare with an earlier run, as written by --json
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Timeout of one launch
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = value::seconds)]
    limit: Duration,
    /// Seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// States of the page cache to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Caches {
    /// The image is in the page cache
    Warm,
    /// The image is not in the page cache
    Cold,
    /// Both, one after the other
    Both,
}

/// An argument of `--peer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peers {
    Auto,
    None,
    One(Peer),
}

fn peers(text: &str) -> Result<Peers, String> {
    match text {
        "auto" => Ok(Peers::Auto),
        "none" => Ok(Peers::None),
        name => Peer::named(name).map(Peers::One).ok_or_else(|| {
            "peers are qemu, firecracker, cloud-hypervisor and crosvm; auto takes those on PATH".into()
        }),
    }
}

impl Bench {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        // What cannot be read would be a pity to find out in the end.
        let older = self.compare.as_deref().map(Outcome::read).transpose()?;
        let scratch = Scratch::new(context.home().state())?;
        let plan = self.plan(context, &scratch)?;
        let outcome = plan.run(&scratch, &mut print::progress)?;
        print::end_of_progress();
        print::outcome(&outcome)?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&outcome)? + "\n";
            write(path, &text)?;
        }
        if let Some(path) = &self.html {
            write(path, &html(&outcome))?;
        }
        let compared = older.map(|older| print::changes(&outcome, &older)).transpose()?;
        Ok(match (outcome.conclusive, compared) {
            (false, _) => NO_CONCLUSION,
            (true, Some(status)) => status,
            (true, None) => Status::OK,
        })
    }

    fn plan(&self, context: &Context, scratch: &Scratch) -> anyhow::Result<Plan> {
        let mut images = Vec::new();
        for name in &self.image {
            let image = context.service.open_image(name)?;
            runnable(&image)?;
            images.push(image);
        }
        let mut configurations = self.own_configurations(context, &images)?;
        let end = self.end_of(&configurations)?;
        let mut skipped = Vec::new();
        let pci = self
            .pci
            .as_deref()
            .map(|name| with_pci(context, name, &images[0]));
        let initramfs = Initramfs {
            mmio: &images[0],
            pci: &pci.transpose()?,
        };
        self.add_peers(&initramfs, scratch, &mut configurations, &mut skipped)?;
        name_apart(&mut configurations);
        Ok(Plan {
            configurations,
            rounds: self.rounds,
            warmups: self.warmups,
            caches: match self.cache {
                Caches::Warm => vec![Cache::Warm],
                Caches::Cold => vec![Cache::Cold],
                Caches::Both => vec![Cache::Warm, Cache::Cold],
            },
            end,
            seed: self.seed,
            limit: self.limit,
            skipped,
        })
    }

    fn own_configurations(&self, context: &Context, images: &[Image]) -> anyhow::Result<Vec<Configuration>> {
        let mut programs = vec![std::env::current_exe().context("finding this program")?];
        for other in &self.vmm {
            let other = other.canonicalize();
            programs.push(other.context("finding the program that --vmm names")?);
        }
        let accels = self.accelerators(
            images[0].manifest().architecture,
            context.home().kvm_verdict().as_deref(),
        )?;
        if self.end == End::Ready && self.same_devices {
            let reason = "without vsock the guest's agent is out of reach, so that it is never ready";
            return Err(Advice::new(reason, "leave --same-devices out, or --end init").into());
        }
        let appends = if self.append.is_empty() {
            vec![String::new()]
        } else {
            self.append.clone()
        };
        let mut configurations = Vec::new();
        for image in images {
            for append in &appends {
                for accel in &accels {
                    for (program, same_devices) in ways(&programs, self.same_devices) {
                        let devices = if same_devices { ", same devices" } else { "" };
                        configurations.push(Configuration {
                            name: format!("vmm {accel}{devices}"),
                            program: program.to_owned(),
                            version: Peer::version(program),
                            image: image.path().to_owned(),
                            id: image.id().to_owned(),
                            append: append.clone(),
                            cpus: self.cpus.unwrap_or(image.manifest().default_cpus),
                            memory: self.memory.unwrap_or(image.manifest().default_memory),
                            monitor: Monitor::Vmm {
                                accel: (*accel).to_owned(),
                                same_devices,
                            },
                        });
                    }
                }
            }
        }
        Ok(configurations)
    }

    /// The end of each launch: the first entry into the guest is seen in another way on the software processor.
    fn end_of(&self, configurations: &[Configuration]) -> anyhow::Result<End> {
        if self.end != End::Entry {
            return Ok(self.end);
        }
        let on_kvm = |configuration: &Configuration| matches!(&configuration.monitor, Monitor::Vmm { accel, .. } if accel == "kvm");
        let count = configurations
            .iter()
            .filter(|configuration| on_kvm(configuration))
            .count();
        match count {
            0 if self.same_devices => {
                let reason = "without vsock the guest has no command that ends it";
                Err(Advice::new(reason, "leave --same-devices out, or --end init").into())
            }
            0 => Ok(End::FirstRun),
            all if all == configurations.len() => Ok(End::Entry),
            _ => {
                let reason = "the first entry into the guest is seen by KVM's trace on KVM and by vmm itself elsewhere: \
                              these are different moments";
                Err(Advice::new(reason, "one --accel, or --end init").into())
            }
        }
    }

    /// `auto` is decided once: all launches of a configuration are to be of one kind.
    fn accelerators(
        &self,
        guest: ami::Architecture,
        remembered: Option<&Path>,
    ) -> anyhow::Result<Vec<&'static str>> {
        let asked = if self.accel.is_empty() {
            &[Accel::Auto]
        } else {
            self.accel.as_slice()
        };
        let mut names = Vec::new();
        for accel in asked {
            names.push(match accel {
                Accel::Auto => choose(Accel::Auto, guest, remembered)?.name(),
                Accel::Kvm => "kvm",
                Accel::Soft => "soft",
            });
        }
        Ok(names)
    }

    fn add_peers(
        &self,
        initramfs: &Initramfs<'_>,
        scratch: &Scratch,
        configurations: &mut Vec<Configuration>,
        skipped: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        let first = configurations[0].clone();
        let image = initramfs.mmio;
        let accel = match &first.monitor {
            Monitor::Vmm { accel, .. } if accel == "kvm" => peer::Accel::Kvm,
            _ => peer::Accel::Tcg,
        };
        for peer in Peer::ALL {
            let named = self.peer.contains(&Peers::One(peer));
            let wanted = named || self.peer.contains(&Peers::Auto);
            if !wanted {
                continue;
            }
            let program = match self.able(peer, accel, image) {
                Ok(program) => program,
                Err(reason) if named => {
                    return Err(Advice::new(reason, "leave it out of --peer").into());
                }
                Err(reason) => {
                    skipped.push(reason);
                    continue;
                }
            };
            let machine = (first.cpus, first.memory, first.append.as_str());
            let machine = peer_machine(image, initramfs.of(peer), machine, accel, scratch)?;
            configurations.push(Configuration {
                name: format!("{} {}", peer.name(), accel.name()),
                version: Peer::version(&program),
                program,
                monitor: Monitor::Peer {
                    peer,
                    machine: Box::new(machine),
                },
                ..first.clone()
            });
        }
        Ok(())
    }

    /// The peer's program, or why it does not take part.
    fn able(&self, peer: Peer, accel: peer::Accel, image: &Image) -> Result<PathBuf, String> {
        let name = peer.name();
        if self.end == End::Ready {
            return Err(format!(
                "{name} does not take part: only vmm's guests report when their agent is ready"
            ));
        }
        if self.end == End::Entry && accel == peer::Accel::Tcg {
            return Err(format!(
                "{name} does not take part: without KVM only vmm reports when its guest is entered"
            ));
        }
        if image.manifest().architecture.of_kernel() != ami::Architecture::X86_64 {
            return Err(format!("{name} does not take part: its machine here is x86_64's"));
        }
        if !peer.supports(accel) {
            return Err(format!("{name} does not take part: it needs KVM"));
        }
        peer.find()
            .ok_or_else(|| format!("{name} does not take part: {} is not on PATH", peer.program()))
    }
}

/// Images whose initramfs peers get.
struct Initramfs<'a> {
    /// The one that is measured.
    mmio: &'a Image,
    /// The one whose initramfs has the driver virtio_pci, if there is one.
    pci: &'a Option<Image>,
}

impl Initramfs<'_> {
    fn of(&self, peer: Peer) -> &Image {
        match self.pci {
            Some(image) if peer.has_pci() => image,
            _ => self.mmio,
        }
    }
}

/// The image that `--pci` names. Its kernel has to be that of `image`, or another boot would be measured.
fn with_pci(context: &Context, name: &str, image: &Image) -> anyhow::Result<Image> {
    let pci = context.service.open_image(name)?;
    let kernel = |image: &Image| image.manifest().part(PartName::Kernel).map(|part| part.blake3);
    if kernel(&pci) == kernel(image) {
        return Ok(pci);
    }
    let reason = format!("{name} and {} have different kernels", image.path().display());
    Err(Advice::new(
        reason,
        "build it by the same recipe with modules = [\"virtio_pci\"]",
    )
    .into())
}

/// Each program as a user has it, and before that, if asked, with the devices of peers.
fn ways(programs: &[PathBuf], same_devices: bool) -> impl Iterator<Item = (&Path, bool)> {
    programs.iter().flat_map(move |program| {
        let reduced = same_devices.then_some((program.as_path(), true));
        reduced.into_iter().chain([(program.as_path(), false)])
    })
}

/// Gives configurations of the same name what tells them apart.
fn name_apart(configurations: &mut [Configuration]) {
    let distinct = |of: &dyn Fn(&Configuration) -> String| {
        let first = of(&configurations[0]);
        configurations
            .iter()
            .any(|configuration| of(configuration) != first)
    };
    let images = distinct(&|configuration| configuration.id.clone());
    let appends = distinct(&|configuration| configuration.append.clone());
    for configuration in configurations.iter_mut() {
        if images {
            let stem = configuration.image.file_stem().unwrap_or_default();
            configuration.name += &format!(" {}", stem.to_string_lossy());
        }
        if appends {
            configuration.name += &format!(" [{}]", configuration.append);
        }
    }
    // What is still the same gets a number: another program, or an image of the same file name.
    for index in 1..configurations.len() {
        let same = configurations[..index]
            .iter()
            .filter(|configuration| configuration.name == configurations[index].name)
            .count();
        if same > 0 {
            configurations[index].name += &format!(" #{}", same + 1);
        }
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(image: &str, append: &str, program: &str) -> Configuration {
        Configuration {
            name: "vmm kvm".into(),
            program: program.into(),
            version: None,
            image: format!("/{image}.ami").into(),
            id: image.into(),
            append: append.into(),
            cpus: 1,
            memory: 1 << 28,
            monitor: Monitor::Vmm {
                accel: "kvm".into(),
                same_devices: false,
            },
        }
    }

    fn names(mut configurations: Vec<Configuration>) -> Vec<String> {
        name_apart(&mut configurations);
        configurations
            .into_iter()
            .map(|configuration| configuration.name)
            .collect()
    }

    #[test]
    fn configurations_are_named_by_what_differs() {
        assert_eq!(names(vec![configuration("a", "", "v")]), ["vmm kvm"]);
        assert_eq!(
            names(vec![configuration("a", "", "v"), configuration("b", "", "v")]),
            ["vmm kvm a", "vmm kvm b"]
        );
        assert_eq!(
            names(vec![configuration("a", "x", "v"), configuration("a", "y", "v")]),
            ["vmm kvm [x]", "vmm kvm [y]"]
        );
        assert_eq!(
            names(vec![configuration("a", "", "v"), configuration("a", "", "w")]),
            ["vmm kvm", "vmm kvm #2"]
        );
    }

    #[test]
    fn what_peers_are_compared_with_comes_first() {
        let programs = [PathBuf::from("/v"), PathBuf::from("/w")];
        let names = |same| ways(&programs, same).collect::<Vec<_>>();
        let (v, w) = (Path::new("/v"), Path::new("/w"));
        assert_eq!(names(false), [(v, false), (w, false)]);
        assert_eq!(names(true), [(v, true), (v, false), (w, true), (w, false)]);
    }

    #[test]
    fn peers_are_words() {
        assert_eq!(peers("auto"), Ok(Peers::Auto));
        assert_eq!(peers("cloud-hypervisor"), Ok(Peers::One(Peer::CloudHypervisor)));
        assert!(peers("bochs").unwrap_err().contains("firecracker"));
    }
}
