//! Counters of a launch that do not depend on the load of the machine, compared with
//! `tests/lab/counters.json`.
//!
//! A count that grows by more than its margin fails. One that shrinks by more fails too, and asks for the new
//! value to be recorded, so that a later regression to the old value is noticed. The margin is a hundredth,
//! and one where that is less than one; two hundredths of the instructions, of which some depend on names and
//! random numbers; three hundredths where it counts for something in which pages the linker has put what code
//! (pages touched, PSS). Guest RAM comes in large pages: its margin is two of them,
//! and a third of the nested page faults, of which there is one for each.

use std::fs;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, LAUNCHING, Profile, cargo, workspace};
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;
use crate::hostile_kernel::Program;
use crate::instance::process_of;

pub const TESTS: &[(&str, Test)] = &[
    (
        "system_calls_before_the_first_run",
        system_calls_before_the_first_run,
    ),
    ("system_calls_of_confinement", system_calls_of_confinement),
    ("exits_and_memory_of_a_launch", exits_and_memory_of_a_launch),
];

/// What needs no KVM.
pub const HERE: &[(&str, Test)] = &[("instructions_of_a_launch", instructions_of_a_launch)];

/// The recorded values.
const RECORDED: &str = "tests/lab/counters.json";

/// All that is recorded.
fn recorded() -> Result<Value> {
    let path = workspace().join(RECORDED);
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).context(RECORDED)
}

/// What is recorded of a counter: `{"value": N, "margin": N, "goal": N}`, and `"missed": true` where the goal
/// is.
struct Record {
    value: u64,
    margin: u64,
    goal: Option<u64>,
    missed: bool,
}

impl Record {
    fn read(name: &str) -> Result<Record> {
        let recorded = recorded()?;
        let number = |field: &str| {
            let number = recorded[name][field].as_u64();
            number.with_context(|| format!("{RECORDED} has no {name}.{field}"))
        };
        Ok(Record {
            value: number("value")?,
            margin: number("margin")?,
            goal: recorded[name]["goal"].as_u64(),
            missed: recorded[name]["missed"] == true,
        })
    }
}

/// Compares `measured` with the value recorded under `name`.
fn hold(name: &str, measured: u64) -> Result<()> {
    let Record {
        value,
        margin,
        goal,
        missed,
    } = Record::read(name)?;
    eprintln!("e2e: {name}: {measured} (recorded: {value} ± {margin})");
    ensure!(
        measured <= value + margin,
        "{name} grew from {value} to {measured}"
    );
    ensure!(
        measured + margin >= value,
        "{name} fell from {value} to {measured}: record it in {RECORDED}"
    );
    if let Some(goal) = goal {
        ensure!(
            missed || measured <= goal,
            "{name} is {measured}, beyond its goal"
        );
        ensure!(
            !missed || measured > goal,
            "{name} is {measured} and has reached its goal: take `missed` out of {RECORDED}"
        );
    }
    Ok(())
}

/// Compares `measured` with the goal recorded under `name`, and nothing else: how far it is from the goal is
/// partly chance.
fn hold_to_goal(name: &str, measured: u64) -> Result<()> {
    let goal = recorded()?[name]["goal"]
        .as_u64()
        .with_context(|| format!("{RECORDED} has no {name}.goal"))?;
    eprintln!("e2e: {name}: {measured} (goal: {goal})");
    ensure!(measured <= goal, "{name} is {measured}, beyond its goal");
    Ok(())
}

/// Instructions of the program's first thread in a launch whose guest switches the machine off at once, as
/// callgrind counts them: nearly all of them come before the guest's first. The processor in software, so that
/// they can be counted on any host, and callgrind's processor, which is the same on hosts of AMD and Intel with
/// AVX2; not confined, because the confinement would apply to callgrind as well. The second launch, so that the
/// image is known to be whole already.
fn instructions_of_a_launch(host: &TestHost) -> Result<()> {
    let programs = Dist::build_programs(cargo(), Arch::host()?, Profile::Launch, &LAUNCHING)?;
    let folder = tempfile::tempdir()?;
    let kernel = folder.path().join("kernel");
    fs::write(&kernel, Program::default().elf())?;
    let run = format!(
        "{} run hello.ami --rm --accel soft --sandbox off --kernel {}",
        programs.program("vmm").display(),
        kernel.display()
    );
    let count = folder.path().join("count");
    let line = format!(
        "set -e; {run}; valgrind --tool=callgrind --separate-threads=yes --callgrind-out-file={} {run}",
        count.display()
    );
    let output = host.sh(&line)?;
    ensure!(output.status == 0, "{output:?}");
    let first = fs::read_to_string(folder.path().join("count-01"))?;
    let total = first.lines().find_map(|line| line.strip_prefix("totals: "));
    let total = total.context("the first thread has no total")?;
    hold("instructions_of_a_launch", total.trim().parse()?)
}

/// What a launch itself makes.
fn system_calls_before_the_first_run(host: &TestHost) -> Result<()> {
    hold_system_calls(host, "--sandbox off", "system_calls_before_first_run")
}

/// The same with what it takes to confine the process, which root does more for than others: there are
/// capabilities to drop.
fn system_calls_of_confinement(host: &TestHost) -> Result<()> {
    hold_system_calls(
        host,
        "--sandbox required",
        "system_calls_before_first_run_confined",
    )
}

/// The second launch, so that kernel and initramfs are known to be whole already.
fn hold_system_calls(host: &TestHost, option: &str, name: &str) -> Result<()> {
    let run = format!("vmm run hello.ami --rm --accel kvm {option} -- true");
    let line = format!(
        "set -e; {run}; strace -f -o $HOME/trace {run}; grep -q KVM_RUN $HOME/trace; \
         sed '/KVM_RUN/q' $HOME/trace | grep -v resumed; rm $HOME/trace"
    );
    let output = host.sh(&line)?;
    ensure!(output.status == 0, "{output:?}");
    let calls = calls_on_the_way(&output.stdout)?;
    hold(name, calls.len() as u64).with_context(|| format!("the calls were:\n{}", calls.join("\n")))
}

/// The calls that the first `KVM_RUN`, the last line of an `strace -f`, had to wait for: those of the
/// process's first thread until it starts the processor's, and then that one's. How far other threads and
/// processes have come by then is chance; the thread that copies the kernel, for which the first one waits,
/// makes its calls beside those of the machine.
fn calls_on_the_way(trace: &str) -> Result<Vec<&str>> {
    let lines: Vec<(&str, &str)> = trace
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(thread, call)| (thread, call.trim_start()))
        .filter(|(_, call)| call.contains('('))
        .collect();
    let (first, last) = lines.first().zip(lines.last()).context("no calls")?;
    ensure!(last.1.contains("KVM_RUN"), "the last call is {last:?}");
    let (main, processor) = (first.0, last.0);
    let begun = lines
        .iter()
        .position(|(thread, _)| *thread == processor)
        .context("the processor's thread")?;
    let starts = |(thread, call): &(&str, &str)| *thread == main && call.starts_with("clone");
    let start = lines[..begun]
        .iter()
        .rposition(starts)
        .context("no thread is started")?;
    let on_the_way = lines.iter().enumerate().filter(|(index, (thread, _))| {
        *thread == main && *index <= start || *thread == processor && *index + 1 < lines.len()
    });
    Ok(on_the_way.map(|(_, (_, call))| *call).collect())
}

/// The second launch, so that the image is known to be whole already, in the background; its root volume is
/// not filled. All of the program is in the page cache: of what is not there a fault maps less. Looks five
/// seconds after the guest's agent has answered at the memory of the process and of what it has started, and
/// ends it: prints the mappings and then what the launch was measured by, which the process writes last of
/// all.
fn launch() -> String {
    format!(
        "set -e; cat $(command -v vmm) >/dev/null; vmm run hello.ami --rm --accel kvm -- true; \
         vmm run hello.ami -d --rm --name counted --accel kvm --timing $HOME/timing --wait agent >/dev/null; sleep 5; \
         main=$({}); \
         for process in $main $(cat /proc/$main/task/*/children); do cat /proc/$process/smaps; done; \
         vmm stop counted >/dev/null; \
         for n in $(seq 300); do grep -q '^}}' $HOME/timing 2>/dev/null && break; sleep 0.1; done; \
         echo; cat $HOME/timing; rm $HOME/timing",
        process_of("counted")
    )
}

/// Exits to user space until the kernel starts its PID 1; what is copied to guest RAM and how many pages are
/// touched before the guest runs; what is mapped when it is up.
fn exits_and_memory_of_a_launch(host: &TestHost) -> Result<()> {
    let output = host.sh(&launch())?;
    ensure!(output.status == 0, "{output:?}");
    let (maps, timing) = output.stdout.split_once("\n{").context("no timing")?;
    let timing: Value = serde_json::from_str(&format!("{{{timing}"))?;
    let count = |at: &str| {
        let count = timing.pointer(at).and_then(Value::as_u64);
        count.with_context(|| format!("{at} is missing in {timing:#}"))
    };
    let memory = Memory::read(maps);
    let counters = [
        ("exits_to_pid1", count("/exits/kernel_ready/total")?),
        ("bytes_copied_to_guest", count("/memory/copied")?),
        ("pages_touched_before_first_run", count("/memory/faults")?),
        // Exits of any kind are not held: many are the host's timer, so they depend on how long a boot takes.
        ("nested_page_faults_to_init", count("/statistics/init/pf_fixed")?),
        ("guest_ram_resident_kib", memory.guest),
        ("private_beyond_guest_ram_kib", memory.private),
    ];
    // Each is reported, whatever became of the one before.
    let off = counters.map(|(name, measured)| hold(name, measured).err());
    let pss = hold_to_goal("pss_beyond_guest_ram_kib", memory.beyond).err();
    let off = off.iter().flatten().chain(&pss);
    let off: Vec<String> = off.map(|error| format!("{error:#}")).collect();
    // What is off stands last: of a long report that is cut, the end is what is read.
    ensure!(
        off.is_empty(),
        "the exits were: {:#}\nthe mappings were, in KiB resident and proportional:\n{}{}",
        timing["exits"]["kernel_ready"],
        memory.mappings,
        off.join("\n")
    );
    Ok(())
}

/// What a process has mapped, in KiB.
#[derive(Debug, Default)]
struct Memory {
    /// Guest RAM that is there, kernel and initramfs of the image included.
    guest: u64,
    /// All else, what is shared divided by who shares it. Which of the program's code has come back from the
    /// page cache since the launch is in it, which is chance.
    beyond: u64,
    /// What of that is written to, and nobody else's.
    private: u64,
    /// A line for each mapping that has something: what it holds, and its first line in `smaps`.
    mappings: String,
}

impl Memory {
    /// From `/proc/PID/smaps`. Guest RAM is what asks for huge pages, and the writable mappings of an image.
    fn read(smaps: &str) -> Memory {
        let mut memory = Memory::default();
        let (mut head, mut resident, mut proportional, mut private) = ("", 0, 0, 0);
        for line in smaps.lines() {
            let Some((name, value)) = line.split_once(':') else {
                continue;
            };
            let kib = || value.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            match name {
                "Rss" => resident = kib(),
                "Pss" => proportional = kib(),
                "Private_Dirty" => private = kib(),
                // The last of a mapping's lines.
                "VmFlags" => {
                    if resident > 0 {
                        memory.mappings += &format!("{resident:>7} {proportional:>7} {head}\n");
                    }
                    let huge = value.split_whitespace().any(|flag| flag == "hg");
                    if huge || head.ends_with(".ami") && head.contains(" rw-p ") {
                        memory.guest += resident;
                    } else {
                        memory.beyond += proportional;
                        memory.private += private;
                    }
                }
                // `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE PATH`
                _ if name.contains('-') && name.contains(' ') => head = line,
                _ => {}
            }
        }
        memory
    }
}
