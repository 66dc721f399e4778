//! Options of the command line that become values of the library crates, which know no command line.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{ArgMatches, Args, Error, FromArgMatches};

use instance::process::launch::RootCopy;
use instance::process::per_run::{Devices, Direct, DiskEngine, HostUse, PerRun, Timing};
use instance::store::record::{Accel, CpuModel};
use kiln_benches::outcome::End;
use machine::sandbox::Mode;

/// The words of an option: each with its value and its line in the help.
type Words<T> = &'static [(&'static str, T, &'static str)];

const ACCELERATORS: Words<Accel> = &[
    (
        "auto",
        Accel::Auto,
        "KVM where it is usable, otherwise the software processor",
    ),
    ("kvm", Accel::Kvm, "KVM"),
    ("soft", Accel::Soft, "The software processor"),
];
const CPU_MODELS: Words<CpuModel> = &[
    (
        "v2",
        CpuModel::V2,
        "x86-64-v2 and no more: the same on every host, and what most distributions ask for",
    ),
    (
        "v3",
        CpuModel::V3,
        "x86-64-v3 and no more: AVX2, BMI, FMA …, which RHEL 10 asks for",
    ),
    (
        "host",
        CpuModel::Host,
        "What this host has, as far as the accelerator can offer it (in software, of x86-64-v3)",
    ),
];
const ROOT_COPIES: Words<RootCopy> = &[
    ("lazy", RootCopy::Lazy, "On first access, and in the background"),
    ("full", RootCopy::Full, "Before the launch"),
];
const SANDBOXES: Words<Mode> = &[
    ("off", Mode::Off, "No confinement"),
    (
        "auto",
        Mode::Auto,
        "All mechanisms that the host offers; one line reports what is missing",
    ),
    (
        "required",
        Mode::Required,
        "All mechanisms, or the guest does not run",
    ),
];
const DISK_ENGINES: Words<DiskEngine> = &[
    ("sync", DiskEngine::Sync, "One request of a queue at a time"),
    (
        "io_uring",
        DiskEngine::IoUring,
        "Many requests of a queue at once",
    ),
];
const DEVICES: Words<Devices> = &[
    ("all", Devices::All, "All that an instance has"),
    (
        "basic",
        Devices::Basic,
        "No vsock, so that the agent is out of reach, and the serial port as the only console",
    ),
];
const DIRECT: Words<Direct> = &[
    ("off", Direct::Off, "They are interpreted"),
    (
        "on",
        Direct::On,
        "They run directly; where this host forbids it, a warning says so",
    ),
    (
        "auto",
        Direct::Auto,
        "They run directly where this host allows it and the guest boots: one that goes on from a warm image is interpreted",
    ),
];
const ENDS: Words<End> = &[
    (
        "init",
        End::Init,
        "guest-init would start the image's PID 1 (the same for every monitor)",
    ),
    ("ready", End::Ready, "the agent answers (vmm only)"),
    (
        "entry",
        End::Entry,
        "the processor first enters the guest: as the host's kernel sees it on KVM (needs root), as vmm says on \
         the software processor",
    ),
];

/// Takes one of `words`, and lists them in the help.
fn one_of<T: Copy + Send + Sync + 'static>(words: Words<T>) -> impl TypedValueParser<Value = T> {
    let possible = words
        .iter()
        .map(|(word, _, help)| PossibleValue::new(*word).help(*help));
    PossibleValuesParser::new(possible).try_map(move |given| {
        let found = words.iter().find(|(word, ..)| *word == given);
        found.map(|(_, value, _)| *value).ok_or("it is not in the list")
    })
}

/// `--accel`.
pub fn accelerator() -> impl TypedValueParser<Value = Accel> {
    one_of(ACCELERATORS)
}

/// `--cpu`.
pub fn cpu_model() -> impl TypedValueParser<Value = CpuModel> {
    one_of(CPU_MODELS)
}

/// `--root-copy`.
pub fn root_copy() -> impl TypedValueParser<Value = RootCopy> {
    one_of(ROOT_COPIES)
}

/// `--end` of `bench`.
pub fn end() -> impl TypedValueParser<Value = End> {
    one_of(ENDS)
}

/// How the instance process uses its host: options of both `run` and `start`.
#[derive(Debug, Clone, Copy, Args)]
pub struct HostOptions {
    /// Confinement of the instance process (see `vmm doctor`)
    #[arg(
        long,
        value_parser = one_of(SANDBOXES),
        value_name = "MODE",
        default_value = "auto",
        help_heading = "Security"
    )]
    sandbox: Mode,
    /// How disk requests are carried out: synchronously, or through io_uring
    #[arg(
        long,
        value_parser = one_of(DISK_ENGINES),
        value_name = "ENGINE",
        default_value = "sync",
        help_heading = "Storage"
    )]
    disk_engine: DiskEngine,
    /// Whether the guest's programs run directly on the host's processor, where the software processor runs
    /// its kernel: 64-bit programs, in processes that can do nothing but map guest RAM
    #[arg(
        long,
        value_parser = one_of(DIRECT),
        value_name = "WHETHER",
        env = "KILN_DIRECT",
        default_value = "off",
        help_heading = "Machine"
    )]
    direct: Direct,
}

impl From<HostOptions> for HostUse {
    fn from(options: HostOptions) -> HostUse {
        let HostOptions {
            sandbox,
            disk_engine,
            direct,
        } = options;
        HostUse {
            sandbox,
            disk_engine,
            direct,
        }
    }
}

/// What is asked of one run and not kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "Measuring")]
struct MeasuringOptions {
    /// Write when each step of the boot was reached, and the exits up to it, as JSON; `-` shows the steps as
    /// a table
    #[arg(long, value_name = "FILE")]
    timing: Option<PathBuf>,
    /// Show the number of exits up to each step of the boot, by device register
    #[arg(long)]
    exits: bool,
    /// Count instructions and use them as the guest's time, so that every run is the same
    #[arg(long)]
    icount: bool,
    /// Which devices the machine has, to compare it with those of other monitors
    #[arg(long, value_parser = one_of(DEVICES), value_name = "DEVICES", default_value = "all")]
    devices: Devices,
    #[command(flatten)]
    host: HostOptions,
}

/// The value of `--timing`: a file, or `-` for a table.
pub fn timing(path: PathBuf) -> Timing {
    match path == Path::new("-") {
        true => Timing::Table,
        false => Timing::File(path),
    }
}

impl From<MeasuringOptions> for PerRun {
    fn from(options: MeasuringOptions) -> PerRun {
        let MeasuringOptions {
            timing,
            exits,
            icount,
            devices,
            host,
        } = options;
        PerRun {
            timing: timing.map(self::timing),
            exits,
            icount,
            devices,
            host: host.into(),
            ..PerRun::default()
        }
    }
}

/// [`PerRun`] as options.
#[derive(Debug)]
pub struct PerRunOptions(pub PerRun);

impl Args for PerRunOptions {
    fn augment_args(command: clap::Command) -> clap::Command {
        MeasuringOptions::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        MeasuringOptions::augment_args_for_update(command)
    }
}

impl FromArgMatches for PerRunOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<PerRunOptions, Error> {
        MeasuringOptions::from_arg_matches(matches).map(|options| PerRunOptions(options.into()))
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<PerRunOptions, Error> {
        MeasuringOptions::from_arg_matches_mut(matches).map(|options| PerRunOptions(options.into()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = PerRunOptions::from_arg_matches(matches)?;
        Ok(())
    }
}
