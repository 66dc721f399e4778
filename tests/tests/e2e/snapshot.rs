//! A guest that runs is kept in an image and goes on as other instances: each has an identity of its own, and
//! what was in memory and on disk is there.

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::clock;

pub const TESTS: &[(&str, Test)] = &[(
    "a_warm_image_goes_on_as_instances_of_their_own",
    a_warm_image_goes_on,
)];

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
for clone in $(cat clones); do vmm exec $clone -- echo clone answers; done
vmm terminate --time 0 origin $(cat clones) >/dev/null
vmm run warm --warm-only --rm -- cat /run/kept
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
    let said = clock::run(host, &format!("{{ {STEPS} }} 2>&1"))?;
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
    clock::check(&said, clock::READINGS)
}
