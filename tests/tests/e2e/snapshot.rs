//! A guest that runs is kept in an image and goes on as other instances: each has an identity of its own, and
//! what was in memory and on disk is there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;
use crate::clock;
use crate::directory::ok;

/// What is the same on each accelerator.
pub const TESTS: &[(&str, Test)] = &[(
    "a_warm_image_goes_on_as_instances_of_their_own",
    a_warm_image_goes_on,
)];

/// KiB of its own memory that an idle clone has beside the guest's at most, program and libraries divided by
/// who shares them.
const BESIDE_RAM: u64 = 5 << 10;
/// KiB of decoded code that it has at most. Its launch decodes 8 MiB, which are given back; what an idle guest
/// decodes later is 4.5 MiB after two minutes, so that it does not matter how late the test looks.
const DECODED: u64 = 6 << 10;
/// KiB of the guest's memory that a clone has changed at most: what its renewal writes, page by page. With
/// pages of 2 MiB it would be many times that. (What is only mapped of an image that is not on the disk yet is
/// dirty, too, but not changed.)
const CHANGED_RAM: u64 = 6 << 10;
/// Instructions of the guest from its restore to the answer of its agent, in thousands, at most.
const THOUSANDS_TO_READY: u64 = 5_000;
/// Pages that the process has touched before the guest goes on, at most.
const PAGES_BEFORE_FIRST_RUN: u64 = 1000;

/// The rest, on the software processor.
pub const ONCE: &[(&str, Test)] = &[
    (
        "a_guest_goes_on_from_the_middle_of_its_boot",
        a_guest_goes_on_from_the_middle_of_its_boot,
    ),
    (
        "a_server_goes_on_with_new_host_keys_and_without_old_connections",
        a_server_goes_on,
    ),
];

/// One guest is booted, and one warm image made of it, for all checks. It goes on a day later: in a lab the
/// host's clock is set ahead after the snapshot (`$LATER`), and here the guest's is set back before it
/// (`$EARLIER`). What it keeps in `/run` is nowhere but in memory.
///
/// Clones are made while the guest writes to its disk and floods its network: what it had been told to be on
/// disk before, each of them has, and nothing is missing in between.
const STEPS: &str = r#"
identity() { vmm exec $1 -- sh -c "echo $1 id \$(cat /var/lib/kiln/instance-id); echo $1 name \$(hostname); \
    echo $1 machine \$(cat /etc/machine-id); echo $1 random \$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '); \
    echo $1 mac \$(cat /sys/class/net/eth0/address); echo $1 kept \$(cat /run/kept /root/kept)"; }
uptime() { vmm exec $1 -- sh -c "echo $1 uptime \$(cut -d. -f1 /proc/uptime)"; }
vmm run $IMAGES/hello.ami -d --name origin --wait agent >/dev/null || exit 1
vmm exec origin -- sh -c "echo memory >/run/kept; echo disk >/root/kept" || exit 1
if test -n "$EARLIER"; then vmm exec origin -- sh -c "date -s @\$((\$(date +%s) - $EARLIER)) >/dev/null" || exit 1; fi
uptime origin
vmm snapshot origin warm 2>warning || exit 1
grep -q "memory of the guest" warning; echo warned $?
identity origin
memory() { awk '/^Pss:/ { pss = $2 } /^Anonymous:/ { own = $2 }
    /^VmFlags:/ { if (/ nr/) ram += own; else if (/ nh/) decoded += pss; else beside += pss }
    END { print ram + 0, beside + 0, decoded + 0 }' \
    /proc/$(vmm inspect $1 | sed -n 's/.*"owner": *\([0-9]*\).*/\1/p')/smaps; }
if test $IDLE -gt 0; then
    vmm clone origin --count $IDLE --wait agent >idle || exit 1
    for clone in $(cat idle); do
        for n in $(seq 600); do set -- $(memory $clone); [ $1 -le $CHANGED_RAM ] && [ $2 -le $BESIDE_RAM ] && [ $3 -le $DECODED ] && break; sleep 0.1; done
        echo memory $1 $2 $3
    done
    vmm terminate --time 0 $(cat idle) >/dev/null
fi
vmm exec origin -- sh -c "ping -A -q 10.0.2.2 >/dev/null & i=0; while i=\$((i+1)); do echo \$i >>/root/log; sync; echo \$i; done" >acked & load=$!
until test -s acked; do sleep 0.1; done
echo acked $(tail -n 1 acked)
vmm clone origin --count $CLONES --wait agent >clones || exit 1
for clone in $(cat clones); do vmm exec $clone -- sh -c "echo clone answers; echo logged \$(awk 'END { print NR, \$0 }' /root/log)
    dmesg | grep -ci -e i/o.error -e ext4-fs.error | sed 's/^/errors /'"; done
kill $load; vmm terminate --time 0 origin $(cat clones) >/dev/null
if test -n "$LATER"; then date -s @$(($(date +%s) + LATER)) >/dev/null || exit 1; fi
before=$(date +%s); first=$(vmm run warm --warm-only --rm --timing timing -- date +%s) || exit 1; echo first $before $first $(date +%s); echo timing $(cat timing)
printf '#!/bin/sh\necho user data ran >/run/user-data\n' >script; echo ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBqZ2yUu4pD2gk4jQbqz5v8m0yQKxQ4n0B1kq1rj8w3X one >key.pub
vmm run warm --warm-only -d --name one --user-data script --ssh-key key.pub -p 7000 --wait agent >/dev/null || exit 1
uptime one; clocks one; identity one
vmm exec one -- sh -c "until test -s /run/user-data; do sleep 0.1; done; cat /run/user-data /root/.ssh/authorized_keys"
vmm port one 7000 | sed "s/127.0.0.1:[0-9]*/a port is open/"
echo hibernated >h && vmm cp h one:/run/hibernated && vmm stop --hibernate one >/dev/null && vmm ps -a | grep -c hibernated
vmm start one --wait agent >/dev/null && vmm exec one -- cat /run/hibernated && identity one | sed 's/^one/again/'
vmm terminate --time 0 one >/dev/null
if test -n "$LATER"; then date -s @$(($(date +%s) - LATER)) >/dev/null; fi
"#;

/// What needs no further guest, or depends on no accelerator.
const MORE: &str = r#"
vmm run warm --warm-only --rm --memory 128M -- true; echo other machine $?
vmm image export warm warm.ami >/dev/null && imgtool verify warm.ami && imgtool inspect warm.ami | grep "^warm" && imgtool du warm.ami | grep "  memory (of"
imgtool convert warm.ami --cold -o cold.ami >/dev/null && vmm run cold.ami --warm-only --rm -- true; echo no guest $?
vmm run warm --cold --rm -- sh -c "cat /root/kept; cat /run/kept; cat /proc/sys/kernel/hostname"; echo cold $?
"#;

fn a_warm_image_goes_on(host: &TestHost) -> Result<()> {
    const DAY: u32 = 86_400;
    let (more, set) = match host {
        TestHost::Here { .. } => (
            MORE,
            format!(
                "EARLIER={DAY} LATER= IDLE=2 CLONES=2 BESIDE_RAM={BESIDE_RAM} CHANGED_RAM={CHANGED_RAM} DECODED={DECODED}"
            ),
        ),
        TestHost::Lab { .. } => ("", format!("EARLIER= LATER={DAY} IDLE=0 CLONES=1")),
    };
    let steps = format!("{set}\n{{ {STEPS} {more} vmm image rm warm >/dev/null; }} 2>&1");
    let said = clock::run(host, &steps)?;
    let has = |line: &str| -> Result<()> {
        let found = said.lines().any(|found| found.contains(line));
        ensure!(found, "`{line}` is missing:\n{said}");
        Ok(())
    };
    for line in ["warned 0", "user data ran", "0B1kq1rj8w3X one", "a port is open"] {
        has(line)?;
    }
    if !more.is_empty() {
        for line in [
            "other machine 125",
            "no guest 125",
            "holds no running guest",
            "a running guest: soft",
            "memory (of",
            "ok",
        ] {
            has(line)?;
        }
    }
    check_clones(&said)?;
    let of = |who: &str, what: &str| -> Result<&str> {
        let begin = format!("{who} {what} ");
        let mut lines = said.lines().filter_map(|line| line.strip_prefix(&begin));
        lines
            .next()
            .with_context(|| format!("{begin}is missing:\n{said}"))
    };
    for what in ["id", "name", "machine", "random", "mac"] {
        ensure!(of("origin", what)? != of("one", what)?, "{what}:\n{said}");
    }
    for who in ["origin", "one", "again"] {
        ensure!(of(who, "kept")? == "memory disk", "{who}:\n{said}");
    }
    ensure!(of("one", "name")? == "one", "{said}");
    // The same instance goes on after a hibernation.
    for what in ["id", "name", "machine", "mac"] {
        ensure!(of("one", what)? == of("again", what)?, "{what}:\n{said}");
    }
    ensure!(said.lines().any(|line| line == "hibernated"), "{said}");
    // The guest has not lived the day that has passed, and its monotonic clock has not gone back.
    let (origin, one): (u32, u32) = (of("origin", "uptime")?.parse()?, of("one", "uptime")?.parse()?);
    ensure!(
        (origin..origin + DAY / 2).contains(&one),
        "{origin} s, then {one} s"
    );
    let first: Vec<u64> = numbers(&said, "first ")?;
    ensure!(first.is_sorted() && first.len() == 3, "the date: {said}");
    if let TestHost::Here { .. } = host {
        check_memory(&said)?;
        check_counts(&said)?;
    }
    clock::check(&said, clock::READINGS)
}

/// Each has all that was acknowledged before it was made, without gaps, and no error of its disk.
fn check_clones(said: &str) -> Result<()> {
    let acked = numbers(said, "acked ")?;
    let clones: Vec<_> = said.lines().filter(|line| line.starts_with("logged ")).collect();
    let answers = said.lines().filter(|line| *line == "clone answers").count();
    ensure!(!clones.is_empty() && answers == clones.len(), "{said}");
    let sound = said.lines().filter(|line| *line == "errors 0").count();
    ensure!(sound == answers, "{said}");
    for line in clones {
        let logged = numbers(line, "logged ")?;
        ensure!(
            logged.len() == 2 && logged[0] == logged[1] && logged[0] >= acked[0],
            "acknowledged: {acked:?}, {line}"
        );
    }
    Ok(())
}

/// The numbers of the first line that begins so.
fn numbers(said: &str, begin: &str) -> Result<Vec<u64>> {
    let line = said.lines().find_map(|line| line.strip_prefix(begin));
    let line = line.with_context(|| format!("{begin}is missing:\n{said}"))?;
    let numbers = line.split_ascii_whitespace().map(str::parse);
    numbers.collect::<Result<_, _>>().with_context(|| line.to_owned())
}

/// Saved before its kernel knows any device, and in its initramfs. Both go on to the end of their boot, as
/// instances of their own.
const EARLY: &str = r#"
vmm run $IMAGES/hello.ami -d --name early --append loglevel=7 >/dev/null || exit 1
vmm snapshot early first >/dev/null 2>&1 || exit 1
until vmm logs early | grep -q "Run /init"; do sleep 0.05; done
vmm snapshot early second >/dev/null 2>&1 || exit 1
vmm terminate --time 0 early >/dev/null
for image in first second; do vmm run $image --warm-only -d --name of-$image >/dev/null || exit 1; done
for name in of-first of-second; do
    id=$(vmm inspect $name | sed -n 's/^ *"id": "\(i-[^"]*\)".*/\1/p' | head -n 1)
    vmm exec --wait-timeout 300 $name -- sh -c "echo \$(hostname) \$(test $id = \$(cat /var/lib/kiln/instance-id) && echo itself)"
done
vmm terminate --time 0 of-first of-second >/dev/null
vmm image rm first second >/dev/null; ! vmm ps -a | grep -w -e early -e of-first -e of-second
"#;

fn a_guest_goes_on_from_the_middle_of_its_boot(host: &TestHost) -> Result<()> {
    let said = clock::run(host, EARLY)?;
    ensure!(said == "of-first itself\nof-second itself\n", "{said}");
    Ok(())
}

/// Connections to the SSH server of a guest that have not logged in. The server gives them all the time that
/// they want.
const CONNECTED: &str = "awk '$2 ~ /:0016$/ && $4 == \"01\"' /proc/net/tcp | wc -l";
/// The host key that the server gives.
const SERVED: &str = "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | sed -n 's/^127.0.0.1 //p'";
/// The host key that it is to have.
const KEY: &str = "cut -d' ' -f1-2 /etc/ssh/ssh_host_ed25519_key.pub";

fn a_server_goes_on(host: &TestHost) -> Result<()> {
    ok(host, "vmm run plain.ami -d --name server -p 22 --wait ssh")?;
    ok(
        host,
        "vmm exec server -- sh -c 'echo LoginGraceTime 0 >/etc/ssh/sshd_config.d/test.conf; kill -HUP $(cat /run/sshd.pid)'",
    )?;
    let address = ok(host, "vmm port server 22")?;
    let mut connection = greeted(address.trim())?;
    let connected = |name: &str| {
        ok(
            host,
            &format!("vmm exec {name} -- sh -c \"{}\"", quoted(CONNECTED)),
        )
    };
    ensure!(connected("server")?.trim() == "1", "it is connected");
    let old = ok(host, &format!("vmm exec server -- {KEY}"))?;
    ok(host, "vmm snapshot server server-warm")?;
    // The one that was saved has its connections still.
    connection.write_all(b"SSH-2.0-test\r\n")?;
    let mut answer = [0; 5];
    connection.read_exact(&mut answer)?;
    ok(
        host,
        "vmm run server-warm --warm-only -d --name other -p 22 --wait ssh",
    )?;
    let said = ok(
        host,
        &format!(
            "vmm exec other -- sh -c \"until test \\$({0}) = 0; do sleep 0.1; done; \
             until test \\\"\\$({SERVED})\\\" = \\\"\\$({KEY})\\\"; do sleep 0.1; done; {KEY}\"",
            quoted(CONNECTED)
        ),
    )?;
    ensure!(
        said.starts_with("ssh-ed25519 ") && said != old,
        "{said} after {old}"
    );
    ok(
        host,
        "vmm terminate --time 0 server other && vmm image rm server-warm",
    )
    .map(drop)
}

/// A connection to an SSH server that has said what it is, and waits to receive. While it reads its options
/// anew, it takes none.
fn greeted(address: &str) -> Result<TcpStream> {
    loop {
        let connection = TcpStream::connect(address).context("the published port")?;
        let mut banner = String::new();
        let read = BufReader::new(connection.try_clone()?).read_line(&mut banner);
        if read.is_ok() && banner.starts_with("SSH-2.0-") {
            return Ok(connection);
        }
    }
}

/// For a shell's double quotes.
fn quoted(text: &str) -> String {
    text.replace('"', "\\\"").replace('$', "\\$")
}

/// What each clone holds of the host's memory when it has nothing to do.
fn check_memory(said: &str) -> Result<()> {
    let clones: Vec<_> = said.lines().filter(|line| line.starts_with("memory ")).collect();
    ensure!(clones.len() == 2, "{said}");
    for line in clones {
        let [changed, beside, decoded] = numbers(line, "memory ")?[..] else {
            anyhow::bail!("{said}");
        };
        eprintln!(
            "e2e: a clone has {changed} KiB of changed RAM, {beside} KiB beside it, {decoded} KiB of decoded code"
        );
        ensure!(
            changed <= CHANGED_RAM && beside <= BESIDE_RAM && decoded <= DECODED,
            "{said}"
        );
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
