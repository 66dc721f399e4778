//! Confinement through the command line: which threads are confined, by what, and that all functions of an
//! instance still work.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;
use crate::instance::process_of;

pub const TESTS: &[(&str, Test)] = &[
    ("every_thread_is_confined_by_default", every_thread_is_confined),
    ("sandbox_off_applies_to_run_and_start", sandbox_off),
    (
        "without_a_network_nothing_is_reached",
        without_a_network_nothing_is_reached,
    ),
    ("a_confined_instance_resolves_names", names_are_resolved),
    ("doctor_lists_what_confines", doctor_lists),
];

/// A mebibyte on the console is a hundred thousand exits: minutes in the lab.
pub const ONCE: &[(&str, Test)] = &[
    ("a_confined_owner_turns_its_log_over", a_log_is_turned_over),
    (
        "processes_of_direct_execution_are_confined_and_end_with_the_instance",
        helpers_end,
    ),
];

/// `NAME FILTERS` of each thread of the process of instance `name`, one a line, without the kernel's own.
fn threads(host: &TestHost, name: &str) -> Result<Vec<(String, u32)>> {
    let line = format!(
        "process=$({}); \
         for t in /proc/$process/task/*; do \
         sed -n 's/^Name:\\t//p; s/^NoNewPrivs:\\t//p; s/^CapEff:\\t//p; s/^Seccomp_filters:\\t//p' $t/status | tr '\\n' ' '; \
         echo; done",
        process_of(name)
    );
    let text = ok(host, &line)?;
    let mut threads = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("kvm-")) {
        let words: Vec<_> = line.split_whitespace().collect();
        let [name, capabilities, no_new_privileges, filters] = words[..] else {
            anyhow::bail!("not a thread: {line:?} in {text}");
        };
        let filters: u32 = filters.parse()?;
        if filters > 0 {
            ensure!(
                capabilities == "0000000000000000" && no_new_privileges == "1",
                "{line}"
            );
        }
        threads.push((name.to_owned(), filters));
    }
    ensure!(threads.len() > 8, "too few threads: {text}");
    Ok(threads)
}

fn every_thread_is_confined(host: &TestHost) -> Result<()> {
    ok(
        host,
        "vmm run hello.ami -d --name walled --sandbox required --wait agent -p 80 --volume 1M",
    )?;
    let threads = threads(host, "walled")?;
    for (name, filters) in &threads {
        // The process's own list; on top of it the list of the thread's kind.
        let expected = if ["vmm", "exe", "spawner"].contains(&name.as_str()) {
            1
        } else {
            2
        };
        ensure!(*filters == expected, "{name} has {filters}: {threads:?}");
    }
    for name in ["cpu0", "blk", "net", "vsock", "console", "control", "spawner"] {
        ensure!(
            threads.iter().any(|(known, _)| known == name),
            "no {name} in {threads:?}"
        );
    }
    ok(host, "vmm exec walled -- true && vmm terminate --time 0 walled")?;
    // By default, and in the foreground, where the instance is removed in the end.
    ok(
        host,
        "before=$(ls -A $XDG_STATE_HOME/kiln/instances | wc -l); vmm run hello.ami --rm -- true; \
         test $(ls -A $XDG_STATE_HOME/kiln/instances | wc -l) = $before",
    )
    .map(drop)
}

fn sandbox_off(host: &TestHost) -> Result<()> {
    ok(
        host,
        "vmm run hello.ami -d --name open --sandbox off --wait agent",
    )?;
    let unconfined = threads(host, "open")?;
    ensure!(
        unconfined.iter().all(|(_, filters)| *filters == 0),
        "{unconfined:?}"
    );
    ok(
        host,
        "vmm stop open && vmm start open --sandbox required --wait agent",
    )?;
    let confined = threads(host, "open")?;
    ensure!(confined.iter().all(|(_, filters)| *filters >= 1), "{confined:?}");
    ok(host, "vmm terminate --time 0 open").map(drop)
}

/// Whether the instance process is in the host's network namespace shows which one it could reach anything
/// in.
fn without_a_network_nothing_is_reached(host: &TestHost) -> Result<()> {
    let network_of_owner = |name: &str, options: &str| {
        let line = format!(
            "vmm run hello.ami -d --name {name} --sandbox required --wait agent {options} && \
             process=$({}) && \
             readlink /proc/$process/ns/net && vmm exec {name} -- true && vmm terminate --time 0 {name} >/dev/null",
            process_of(name)
        );
        ok(host, &line)
    };
    let host = ok(host, "readlink /proc/self/ns/net")?;
    let (alone, with) = (
        network_of_owner("alone", "--net none")?,
        network_of_owner("with", "")?,
    );
    ensure!(!alone.contains(host.trim()), "{alone} is the host's {host}");
    ensure!(with.contains(host.trim()), "{with} is not the host's {host}");
    Ok(())
}

/// The thread that brings the output may not open the new log itself.
fn a_log_is_turned_over(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name wordy --wait agent")?;
    ok(
        host,
        "vmm exec wordy -- sh -c 'for i in 1 2 3; do seq 1 60000 >/dev/console; done; echo the-end >/dev/console'",
    )?;
    ok(
        host,
        "i=0; until vmm logs wordy | tail -3 | grep -q the-end; do i=$((i + 1)); test $i -lt 60 || exit 1; sleep 1; done; \
         vmm inspect wordy >/dev/null; vmm exec wordy -- true",
    )?;
    ok(
        host,
        "ls $XDG_STATE_HOME/kiln/instances/*/console.log.1 && vmm terminate --time 0 wordy",
    )
    .map(drop)
}

/// Of the processes in which programs run: descriptors, whether they may gain privileges, lists of system calls.
/// They hold guest RAM and nothing else, and do not outlive a process that is killed.
fn helpers_end(host: &TestHost) -> Result<()> {
    let offered = ok(host, "vmm doctor --json")?.contains("programs can run on this processor");
    ok(
        host,
        "vmm run hello.ami -d --name helped --direct on --cpus 2 --sandbox required --wait agent && \
         vmm exec helped -- sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done'",
    )?;
    let process = process_of("helped");
    let line = format!(
        "for c in $(cat /proc/$({process})/task/*/children); do \
         readlink /proc/$c/fd/0 | grep -q memfd:guest-ram || continue; echo $c \
         $(ls /proc/$c/fd | wc -l) $(sed -n 's/^NoNewPrivs:\t//p; s/^Seccomp_filters:\t//p' /proc/$c/status); done"
    );
    let helpers = ok(host, &line)?;
    ensure!(
        helpers.lines().count() == if offered { 8 } else { 0 },
        "{offered} {helpers:?}"
    );
    ensure!(
        helpers.lines().all(|helper| helper.ends_with(" 1 1 1")),
        "{helpers}"
    );
    let numbers: Vec<_> = helpers
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    ok(
        host,
        &format!(
            "kill -9 $({process}); for c in {}; do \
             while grep -q '^State:.[^ZX]' /proc/$c/status 2>/dev/null; do sleep 0.05; done; done; \
             vmm terminate --time 0 helped",
            numbers.join(" ")
        ),
    )
    .map(drop)
}

/// The resolver's name is in a file, which the thread of the network may not open itself. Nobody has to
/// answer: a question that is sent is enough, and a process that died could not answer the next command.
fn names_are_resolved(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name asker --wait agent")?;
    host.sh("vmm exec asker -- timeout 5 nslookup kiln.invalid 10.0.2.3")?;
    ok(host, "vmm exec asker -- true && vmm terminate --time 0 asker").map(drop)
}

fn doctor_lists(host: &TestHost) -> Result<()> {
    let printed = ok(host, "vmm doctor --json")?;
    for what in ["\"system calls\"", "\"files\"", "\"own network\"", "\"direct\""] {
        ensure!(printed.contains(what), "{printed}");
    }
    Ok(())
}
