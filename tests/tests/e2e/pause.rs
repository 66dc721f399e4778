//! Pauses of an instance, by request or because its host has no disk space; its clock is right before and
//! after.

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::directory::ok;
use crate::{Test, clock};

/// On the software processor only: the lab has a test of its own for a full disk on KVM.
pub const TESTS: &[(&str, Test)] = &[(
    "a_full_host_disk_and_a_request_pause_the_guest_and_nothing_is_lost",
    a_full_host_disk_and_a_request_pause_the_guest,
)];

/// Everything in one file system of 48 MiB that another process fills.
const FILL: &str = r#"
mount -t tmpfs -o size=48m none small && cd small && export XDG_STATE_HOME=$PWD/state || exit 1
vmm run "$IMAGES"/hello.ami -d --rm --name full --wait agent || exit 1
id=$(vmm ps -q)
until_ps() { while ! vmm ps | grep -q "$1"; do sleep 0.1; done; }
clocks full
cat /dev/zero >filler 2>/dev/null; truncate -s -1M filler
vmm exec full -- sh -c "head -c 6000000 /dev/urandom >/root/data && sync && sha256sum </root/data && echo written" >said 2>&1 & writer=$!
until_ps paused
vmm ps | grep full
vmm inspect full | grep -E "\"(requested|path|free|device)\""
vmm resume full; echo resume $?
vmm exec full -- true; echo exec $?
grep -q "paused: no space for /dev/vda in .*root.vol: No space left.* bytes are free" state/kiln/instances/$id/vmm.log; echo log $?
rm filler
wait $writer; cat said
vmm exec full -- sh -c "sync; sha256sum </root/data; echo errors \$(dmesg | grep -ci -e i/o.error -e ext4-fs.error)"
vmm pause full; echo pause $?
until_ps "paused by request"
vmm resume full && clocks full
cat /dev/zero >filler 2>/dev/null
vmm exec full -- sh -c "head -c 6000000 /dev/urandom >/root/more; sync" >/dev/null 2>&1 &
until_ps paused
vmm terminate full --time 0; echo terminate $?
vmm ps -aq
"#;

fn a_full_host_disk_and_a_request_pause_the_guest(host: &TestHost) -> Result<()> {
    // The state directory of an instance is in a mount namespace of this test's own.
    let script = format!("{}{FILL}", clock::READ_CLOCKS);
    let line = format!(
        "export IMAGES=$PWD; D=$(mktemp -d); mkdir $D/small; cat >$D/script <<'END'\n{script}\nEND\n\
         cd $D; unshare --mount --map-root-user sh script; status=$?; cd /; rm -rf $D; exit $status"
    );
    let said = ok(host, &line)?;
    let lines: Vec<_> = said.lines().collect();
    for expected in [
        "resume 125",
        "exec 125",
        "log 0",
        "errors 0",
        "written",
        "pause 0",
        "terminate 0",
        "\"requested\": false",
        "\"device\": \"/dev/vda\"",
    ] {
        let found = lines.iter().any(|line| line.contains(expected));
        ensure!(found, "`{expected}` is missing:\n{said}");
    }
    let ps = lines.iter().find(|line| line.contains("paused")).context("ps")?;
    for word in ["No space left", "root.vol", "bytes are free"] {
        ensure!(ps.contains(word), "`{word}` is missing: {ps}");
    }
    // The data was the same before and after.
    let sums: Vec<_> = lines.iter().filter(|line| line.ends_with("  -")).collect();
    ensure!(sums.len() == 2 && sums[0] == sums[1], "{said}");
    clock::check(&said, 2 * clock::READINGS)
}
