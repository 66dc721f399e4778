//! A guest that runs is kept in an image and goes on as other instances: each has an identity of its own, and
//! what was in memory and on disk is there.

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;
use crate::clock;

pub const TESTS: &[(&str, Test)] = &[(
    "a_warm_image_goes_on_as_instances_of_their_own",
    a_warm_image_goes_on,
)];

/// KiB of its own memory that an idle clone has beside the guest's at most, program and libraries divided by
/// who shares them.
const BESIDE_RAM: u64 = 5 << 10;
/// KiB of the guest's memory that a clone has changed at most: what its renewal writes, page by page. With
/// pages of 2 MiB it would be as many MiB as now hundreds of KiB.
const CHANGED_RAM: u64 = 8 << 10;
/// Instructions of the guest from its restore to the answer of its agent, in thousands, at most.
const THOUSANDS_TO_READY: u64 = 5_000;
/// Pages that the process has touched before the guest goes on, at most.
const PAGES_BEFORE_FIRST_RUN: u64 = 1000;

/// One guest is booted, and one warm image made of it, for all checks. Its clock is set back by a day: it is
/// in the state of one that was frozen yesterday. What it keeps in `/run` is nowhere but in memory.
const STEPS: &str = r#"
identity() { vmm exec $1 -- sh -c "echo $1 id \$(cat /var/lib/kiln/instance-id); echo $1 name \$(hostname); \
    echo $1 machine \$(cat /etc/machine-id); echo $1 random \$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '); \
    echo $1 mac \$(cat /sys/class/net/eth0/address); echo $1 kept \$(cat /run/kept /root/kept)"; }
vmm run $IMAGES/hello.ami -d --name origin --wait agent >/dev/null || exit 1
vmm exec origin -- sh -c "echo memory >/run/kept; echo disk >/root/kept; date -s @\$((\$(date +%s) - 86400)) >/dev/null" || exit 1
vmm snapshot origin warm 2>warning || exit 1
grep -q "memory of the guest" warning; echo warned $?
identity origin
vmm clone origin --count 3 --wait agent >clones || exit 1
memory() { awk '/^[0-9a-f]+-/ { head = $0 } /^Pss:/ { pss = $2 } /^Private_Dirty:/ { dirty = $2 }
    /^VmFlags:/ { if (head ~ /[.]ami/ || / nh/) ram += dirty; else beside += pss } END { print ram + 0, beside + 0 }' \
    /proc/$(vmm inspect $1 | sed -n 's/.*"owner": *\([0-9]*\).*/\1/p')/smaps; }
for clone in $(cat clones); do
    for n in $(seq 600); do set -- $(memory $clone); [ $2 -le $BESIDE_RAM ] && break; sleep 0.1; done
    echo memory $1 $2
done
for clone in $(cat clones); do vmm exec $clone -- echo clone answers; done
vmm terminate --time 0 origin $(cat clones) >/dev/null
vmm run warm --warm-only --rm --timing timing -- cat /run/kept; echo timing $(cat timing)
vmm run warm --warm-only -d --name one --wait agent >/dev/null && vmm run warm --warm-only -d --name two --wait agent >/dev/null || exit 1
identity one; identity two
clocks one
echo hibernated >h && vmm cp h one:/run/hibernated && vmm stop --hibernate one >/dev/null && vmm ps -a | grep -c hibernated
vmm start one --wait agent >/dev/null && vmm exec one -- cat /run/hibernated && identity one | sed 's/^one/again/'
vmm terminate --time 0 one two >/dev/null
vmm run warm --warm-only --rm --memory 128M -- true; echo other machine $?
vmm image export warm warm.ami >/dev/null && imgtool verify warm.ami && imgtool inspect warm.ami | grep "^warm" && imgtool du warm.ami | grep "  memory (of"
imgtool convert warm.ami --cold -o cold.ami >/dev/null && vmm run cold.ami --warm-only --rm -- true; echo no guest $?
vmm run warm --cold --rm -- sh -c "cat /root/kept; cat /run/kept; cat /proc/sys/kernel/hostname"; echo cold $?
vmm image rm warm >/dev/null; vmm ps -aq
"#;

fn a_warm_image_goes_on(host: &TestHost) -> Result<()> {
    let said = clock::run(host, &format!("BESIDE_RAM={BESIDE_RAM}; {{ {STEPS} }} 2>&1"))?;
    let has = |line: &str| -> Result<()> {
        let found = said.lines().any(|found| found.contains(line));
        ensure!(found, "`{line}` is missing:\n{said}");
        Ok(())
    };
    for line in [
        "warned 0",
        "other machine 125",
        "no guest 125",
        "holds no running guest",
        "a running guest: soft",
        "memory (of",
        "ok",
    ] {
        has(line)?;
    }
    let answers = said.lines().filter(|line| *line == "clone answers").count();
    ensure!(answers == 3, "{said}");
    let of = |who: &str, what: &str| -> Result<&str> {
        let begin = format!("{who} {what} ");
        let mut lines = said.lines().filter_map(|line| line.strip_prefix(&begin));
        lines
            .next()
            .with_context(|| format!("{begin}is missing:\n{said}"))
    };
    for what in ["id", "name", "machine", "random", "mac"] {
        let [origin, one, two] = [of("origin", what)?, of("one", what)?, of("two", what)?];
        ensure!(origin != one && one != two && origin != two, "{what}:\n{said}");
    }
    for who in ["origin", "one", "two", "again"] {
        ensure!(of(who, "kept")? == "memory disk", "{who}:\n{said}");
    }
    ensure!(
        of("one", "name")? == "one" && of("two", "name")? == "two",
        "{said}"
    );
    // The same instance goes on after a hibernation.
    for what in ["id", "name", "machine", "mac"] {
        ensure!(of("one", what)? == of("again", what)?, "{what}:\n{said}");
    }
    ensure!(said.lines().any(|line| line == "hibernated"), "{said}");
    check_memory(&said)?;
    check_counts(&said)?;
    clock::check(&said, clock::READINGS)
}

/// What each clone holds of the host's memory when it has nothing to do.
fn check_memory(said: &str) -> Result<()> {
    let clones: Vec<_> = said
        .lines()
        .filter_map(|line| line.strip_prefix("memory ")?.split_once(' '))
        .collect();
    ensure!(clones.len() == 3, "{said}");
    for (changed, beside) in clones {
        let (changed, beside): (u64, u64) = (changed.parse()?, beside.parse()?);
        eprintln!("e2e: a clone has {changed} KiB of changed RAM and {beside} KiB beside it");
        ensure!(changed <= CHANGED_RAM && beside <= BESIDE_RAM, "{said}");
    }
    Ok(())
}

/// What it takes to go on from a warm image.
fn check_counts(said: &str) -> Result<()> {
    let mut lines = said.lines().filter_map(|line| line.strip_prefix("timing "));
    let timing: Value = serde_json::from_str(lines.next().context("no timing")?)?;
    let events = timing["events"].as_array().context("events")?;
    let instructions = |id: &str| {
        let event = events.iter().find(|event| event["id"] == id);
        let count = event.and_then(|event| event["instructions"].as_u64());
        count.with_context(|| format!("{id} has no instructions in {timing:#}"))
    };
    let to_ready = (instructions("T10")? - instructions("T4")?) / 1000;
    let pages = timing["memory"]["faults"].as_u64().context("faults")?;
    eprintln!("e2e: {to_ready} thousand instructions to ready, {pages} pages touched before");
    ensure!(to_ready <= THOUSANDS_TO_READY, "{to_ready} thousand instructions");
    ensure!(pages <= PAGES_BEFORE_FIRST_RUN, "{pages} pages");
    Ok(())
}
