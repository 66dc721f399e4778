//! Kiln through its command line: every test of a table, on every test host that this machine can offer.
//!
//! Where a test host cannot be had (no QEMU, no programs for it), its tests are ignored, by name and with the
//! reason on standard error; under CI that is a failure. Tests that take many minutes are ignored, and named,
//! unless `KILN_LONG_TESTS` is set.

mod archives;
mod bench;
mod clock;
mod cloud;
mod count;
mod counters;
mod directory;
mod durable;
mod ec2;
mod examples;
mod exchange;
mod hostile;
mod hostile_kernel;
mod image;
mod instance;
mod kernels;
mod kvm;
mod limits;
mod memory;
mod network;
mod oracle;
mod pause;
mod rootless;
mod run;
mod sandbox;
mod snapshot;
mod suites;
mod terminal;
mod trouble;
mod volumes;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, Profile};
use kiln_tests::lab::Lab;
use kiln_tests::repository;
use kiln_tests::test_host::TestHost;
use libtest_mimic::{Arguments, Failed, Trial};

/// A test, run on a test host.
type Test = fn(&TestHost) -> anyhow::Result<()>;
/// Tests and their names.
type Table = &'static [(&'static str, Test)];

/// What runs on the software processor, on this machine. All of it runs on KVM as well, but for what launches
/// nothing or depends on no accelerator (`ONCE`, images and what other tools make of them, the rules of `vmm
/// bench`), and what only the software processor can do: counting instructions.
const SOFT: &[Table] = &[
    bench::TESTS,
    image::TESTS,
    exchange::TESTS,
    run::TESTS,
    run::ONCE,
    work::TESTS,
    kernels::TESTS,
    count::TESTS,
    instance::LIFECYCLE,
    instance::TESTS,
    network::TESTS,
    limits::TESTS,
    memory::TESTS,
    hostile::TESTS,
    durable::TESTS,
    pause::TESTS,
    clock::TESTS,
    snapshot::TESTS,
    snapshot::ONCE,
    directory::TESTS,
    terminal::TESTS,
    sandbox::TESTS,
    sandbox::ONCE,
    ec2::TESTS,
];
/// What a table requires of a lab besides KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// Nothing: it runs in every lab.
    Kvm,
    /// Guests whose instructions are those of x86.
    X86,
    /// Images whose packages were configured, which takes an emulator where they are foreign.
    Configured,
    /// Nothing, but what it shows is the same on every architecture: in a lab of another architecture than
    /// this machine's it is a long test.
    Time,
}

impl Need {
    /// Whether the lab for `arch` has it.
    fn is_met(self, arch: Arch) -> bool {
        match self {
            Need::Kvm => true,
            Need::X86 => arch == Arch::X86_64,
            Need::Configured | Need::Time => Arch::host().is_ok_and(|host| host == arch),
        }
    }
}

/// What runs on genuine KVM in a lab each time.
const ON_KVM: &[(Need, Table)] = &[
    (Need::Kvm, run::TESTS),
    (Need::Kvm, instance::LIFECYCLE),
    (Need::Kvm, network::TESTS),
    (Need::Kvm, network::LAB_TESTS),
    (Need::Kvm, sandbox::TESTS),
    (Need::Kvm, clock::TESTS),
    (Need::Kvm, clock::LAB_TESTS),
    (Need::Kvm, snapshot::TESTS),
    (Need::X86, hostile::TESTS),
    (Need::X86, kvm::TESTS),
    (Need::X86, kernels::TESTS),
    (Need::X86, examples::I386),
    (Need::Kvm, terminal::LAB_TESTS),
    (Need::X86, bench::LAB_TESTS),
    (Need::Time, work::TESTS),
    (Need::Time, instance::TESTS),
    (Need::Time, instance::LAB_TESTS),
];
/// What runs there with all tests only: what it shows of KVM is in `ON_KVM`, and what it shows of packages
/// and images runs on the software processor.
const ON_KVM_ALL: &[(Need, Table)] = &[(Need::Configured, directory::TESTS)];
/// What takes too many minutes there for each change.
const ON_KVM_LONG: &[(Need, Table)] = &[
    (Need::Configured, cloud::LONG),
    (Need::Configured, examples::LAB_LONG),
    (Need::X86, kernels::LONG),
];

/// What the lab for `arch` runs each time, with all tests, and its long tests.
fn on_kvm(arch: Arch) -> [Vec<Table>; 3] {
    let pick = |tables: &[(Need, Table)], wanted: &dyn Fn(Need) -> bool| {
        let wanted = tables.iter().filter(|(need, _)| wanted(*need));
        wanted.map(|(_, table)| *table).collect::<Vec<_>>()
    };
    let short = pick(ON_KVM, &|need| need.is_met(arch));
    let mut long = pick(ON_KVM_LONG, &|need| need.is_met(arch));
    long.extend(pick(ON_KVM, &|need| need == Need::Time && !need.is_met(arch)));
    [short, pick(ON_KVM_ALL, &|need| need.is_met(arch)), long]
}

/// Counters of the programs as they ship.
const SHIPPING: &[Table] = &[counters::TESTS];

/// Why a test that could run does not.
#[derive(Default)]
struct Missing {
    /// Why what an ordinary change does not need is left out.
    all: Option<String>,
    /// Why builds cannot be compared with those of apt and mmdebstrap.
    oracle: Option<String>,
    /// Why nothing can be built without root.
    user: Option<String>,
    /// Why what takes minutes is left out.
    time: Option<String>,
    /// Why a lab cannot be had.
    lab: Vec<(Arch, Option<String>)>,
}

/// Whether tests that take many minutes are to run.
fn long_tests() -> bool {
    std::env::var_os("KILN_LONG_TESTS").is_some()
}

impl Missing {
    fn look() -> Missing {
        let all = std::env::var_os("KILN_ALL_TESTS").is_some();
        Missing {
            all: (!all).then(|| "they run with cargo xtask test --all, and when one is named".to_owned()),
            oracle: oracle::missing(),
            user: kiln_tests::rootless::missing(),
            time: (!long_tests()).then(|| "KILN_LONG_TESTS is not set".to_owned()),
            lab: [Arch::X86_64, Arch::Aarch64]
                .into_iter()
                .filter(|arch| all || Arch::host().is_ok_and(|host| host == *arch))
                .map(|arch| (arch, Lab::missing(arch, Profile::Dev)))
                .collect(),
        }
    }

    /// Says what is missing, and whether that is more than time.
    fn report(&self) -> bool {
        let Missing {
            all,
            oracle,
            user,
            time,
            lab,
        } = self;
        let report = |what: &str, why: &Option<String>| {
            why.iter().for_each(|why| eprintln!("e2e: {what}: {why}"));
            why.is_some()
        };
        report("tests that take many minutes do not run", time);
        report("KVM on arm64 and the programs that ship are not tested", all);
        let labs = lab
            .iter()
            .map(|(arch, why)| report(&format!("no lab for {arch}"), why));
        [
            report("builds are not compared with apt's", oracle),
            report("builds without root are not compared", user),
        ]
        .into_iter()
        .chain(labs)
        .fold(false, |some, this| some | this)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let host = match prepare(&arguments) {
        Ok(image) => image,
        Err(error) => {
            eprintln!("the programs or the images could not be built: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    eprintln!("e2e: images are in {}", host.with_file_name("").display());
    // A lab has what `prepare` has built.
    let missing = Missing::look();
    if missing.report() && std::env::var_os("CI").is_some() {
        return ExitCode::FAILURE;
    }
    let home = tempfile::tempdir().expect("a temporary folder for the tests' state");
    let here = TestHost::here(home.path().to_owned()).expect("this architecture is known");
    let here = || Arc::clone(&here);
    let Missing {
        all,
        oracle,
        user,
        time,
        lab,
    } = missing;
    let built: &[Table] = &[trouble::TESTS, archives::TESTS, examples::TESTS];
    let rootless_long = user.clone().or(time.clone());
    let mut trials = on("soft", here(), None, SOFT);
    trials.extend(on(
        "soft",
        here(),
        time.clone(),
        &[examples::LONG, cloud::LONG, kernels::LONG],
    ));
    // The suites' guests are of x86, and are built here.
    let suites: &[Table] = match Arch::host() {
        Ok(Arch::X86_64) => &[suites::LONG],
        _ => &[],
    };
    trials.extend(on("soft", here(), time.clone(), suites));
    trials.extend(on("build", here(), None, built));
    trials.extend(on("build", here(), oracle, &[oracle::TESTS]));
    trials.extend(on("build", here(), user, &[rootless::TESTS]));
    trials.extend(on("build", here(), rootless_long, &[rootless::LONG]));
    for (arch, why) in lab {
        let name = format!("lab-{arch}");
        let host = TestHost::lab(arch, Profile::Dev);
        let groups = [None, all.clone(), time.clone()];
        for (tables, group) in on_kvm(arch).iter().zip(groups) {
            trials.extend(on(&name, Arc::clone(&host), why.clone().or(group), tables));
        }
    }
    if Arch::host().is_ok_and(|host| host == Arch::X86_64) {
        let host = TestHost::lab(Arch::X86_64, Profile::Launch);
        trials.extend(on("shipping", host, all.clone(), SHIPPING));
        trials.extend(on("shipping", here(), all, &[counters::HERE]));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    print_slowest();
    conclusion.exit_code()
}

/// How long each test took.
static TOOK: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Where the time went: a change waits for these.
fn print_slowest() {
    const PRINTED: usize = 10;
    let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
    took.sort_unstable_by(|a, b| b.cmp(a));
    let all: Duration = took.iter().map(|(time, _)| *time).sum();
    eprintln!("e2e: {} tests took {} s; the slowest:", took.len(), all.as_secs());
    for (time, test) in took.iter().take(PRINTED) {
        eprintln!("e2e: {:>6.1} s  {test}", time.as_secs_f64());
    }
}

/// Whether `arguments` name one of the long tests of `tables`, whose images take minutes to build.
fn needs_long(arguments: &Arguments, tables: &[Table]) -> bool {
    let hosts = ["soft", "lab-x86_64", "lab-aarch64"];
    let names = tables.iter().flat_map(|table| table.iter()).map(|(name, _)| name);
    let named = |name: &&str| {
        let full = hosts.map(|host| format!("{host}::{name}"));
        let matches = |filter: &String| match arguments.exact {
            true => full.contains(filter),
            false => full.iter().any(|full| full.contains(filter)),
        };
        arguments.filter.as_ref().is_none_or(matches)
    };
    long_tests() && names.into_iter().any(named)
}

/// Builds the programs, and the images and the archive that tests need, those that long tests share only
/// where one of them is named. Returns the hello image.
fn prepare(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    const HELLO: &str = "examples/hello.toml";
    const PLAIN: &str = "examples/plain.toml";
    const DIRECTORY: &str = "examples/employee-directory.toml";
    let arch = Arch::host()?;
    let dist = Dist::build(Profile::Dev)?;
    if needs_long(arguments, &[examples::LONG, cloud::LONG, examples::LAB_LONG]) {
        for recipe in ["microvm", "cloud", "debian", "web"] {
            dist.image(&format!("examples/{recipe}.toml"))?;
        }
    }
    if arch == Arch::X86_64 && needs_long(arguments, &[kernels::LONG]) {
        dist.image_of_32_bit_kernel(kernels::LONG_IMAGE)?;
    }
    for recipe in ["linux-6.1", "linux-6.12", "linux-7"] {
        dist.image(&format!("tests/kernels/{recipe}.toml"))?;
    }
    dist.image(PLAIN)?;
    dist.image(DIRECTORY)?;
    if arch == Arch::X86_64 {
        dist.image_of_i386(DIRECTORY)?;
    }
    repository::build(arch, DIRECTORY, PLAIN, "examples/employee-directory")?;
    dist.image(HELLO)
}

/// A trial for each test; all are ignored where the test host is missing.
fn on(name: &str, host: Arc<TestHost>, missing: Option<String>, tables: &[Table]) -> Vec<Trial> {
    let trial = |&(name_of_test, test): &(&str, Test)| {
        let host = Arc::clone(&host);
        let full = format!("{name}::{name_of_test}");
        let timed = {
            let full = full.clone();
            move || {
                let start = Instant::now();
                let result = test(&host).map_err(|error| Failed::from(format!("{error:#}")));
                let mut took = TOOK.lock().unwrap_or_else(PoisonError::into_inner);
                took.push((start.elapsed(), full));
                result
            }
        };
        Trial::test(full, timed).with_ignored_flag(missing.is_some())
    };
    tables.iter().flat_map(|table| table.iter()).map(trial).collect()
}
