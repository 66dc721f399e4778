//! Volumes of instances, and the image that a root volume reads from.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::directory::ok;
use crate::instance::refused;

/// With `--rm` the root volume is not filled in the background: it reads from the image for as long as it
/// runs.
pub fn a_deleted_image_stays(host: &TestHost) -> Result<()> {
    ok(
        host,
        "vmm image import hello.ami lazy && vmm run lazy -d --rm --name reader --wait agent",
    )?;
    ok(host, "vmm image rm lazy")?;
    refused(host, "vmm run lazy -d", 125, "no image")?;
    let read = ok(
        host,
        "vmm exec reader -- find / -xdev -type f -exec md5sum {} + | sort | md5sum",
    )?;
    let again = ok(
        host,
        "vmm exec reader -- sh -c 'echo 3 > /proc/sys/vm/drop_caches; find / -xdev -type f -exec md5sum {} +' | sort | md5sum",
    )?;
    ensure!(read == again, "{read} {again}");
    ok(host, "vmm terminate --time 0 reader").map(drop)
}

pub fn volumes_are_kept_or_deleted_as_requested(host: &TestHost) -> Result<()> {
    ok(
        host,
        "truncate -s 8M $HOME/own.img && vmm run hello.ami -d --name disks --volume 16M --volume 24M,keep \
         --volume 32M,ephemeral --volume $HOME/own.img --wait agent",
    )?;
    let sizes = ok(host, "vmm exec disks -- sh -c 'cat /sys/block/vd[b-e]/size'")?;
    ensure!(sizes == "32768\n49152\n65536\n16384\n", "{sizes:?}");
    ok(
        host,
        "vmm exec disks -- sh -c 'for d in b c d e; do echo mark | dd of=/dev/vd$d conv=fsync 2>/dev/null; done'",
    )?;
    ok(host, "vmm stop disks && vmm start disks --wait agent")?;
    let marks = ok(
        host,
        "vmm exec disks -- sh -c 'for d in b c d e; do head -c 4 /dev/vd$d | tr \"\\0\" -; echo; done'",
    )?;
    ensure!(marks == "mark\nmark\n----\nmark\n", "{marks:?}");
    let record: serde_json::Value = serde_json::from_str(&ok(host, "vmm inspect disks")?)?;
    let volume = |index: usize| record[0]["volumes"][index]["path"].as_str().unwrap_or_default();
    let terminated = host.sh("vmm terminate --time 0 disks")?;
    ensure!(terminated.stderr.contains("vol-"), "{terminated:?}");
    for (index, stays) in [(0, false), (1, false), (2, true), (3, false), (4, true)] {
        let found = host.sh(&format!("test -e {}", volume(index)))?;
        ensure!((found.status == 0) == stays, "{}: {found:?}", volume(index));
    }
    ok(host, &format!("rm {} $HOME/own.img", volume(2))).map(drop)
}

pub fn a_boot_without_its_root_disk_reports_why(host: &TestHost) -> Result<()> {
    refused(
        host,
        "vmm run hello.ami --rm --append 'root=/dev/vdz rootwait=1' -- true",
        125,
        "/dev/vdz",
    )?;
    let output = host.sh("vmm run hello.ami --rm --append 'root=/dev/vdz rootwait=1' </dev/null")?;
    ensure!(output.status == 121, "a panic was expected: {output:?}");
    Ok(())
}

/// The state directory on a file system of 48 MiB: the guest is paused when it is full, and its write
/// succeeds when there is room.
pub fn a_full_disk(host: &TestHost) -> Result<()> {
    let within = |line: &str| format!("export XDG_STATE_HOME=/work/small; {line}");
    ok(
        host,
        "mkdir -p /work/small && mount -t tmpfs -o size=48m none /work/small",
    )?;
    ok(
        host,
        &within("vmm run hello.ami -d --name full --root-size 512M --wait agent"),
    )?;
    let said = ok(
        host,
        &within(
            "until_ps() { i=0; until vmm ps | grep -q \"$1\"; do i=$((i + 1)); test $i -lt 600 || exit 1; sleep 0.2; done; }; \
             vmm exec full -- sh -c 'dd if=/dev/urandom of=/root/big bs=1M count=100 conv=fsync 2>/dev/null; echo status $?; \
             dmesg | grep -ci i/o.error' >$HOME/said 2>&1 & writer=$!; \
             until_ps 'paused.*No space left'; \
             mount -o remount,size=400m /work/small; wait $writer; cat $HOME/said; rm $HOME/said; \
             vmm pause full && until_ps 'paused by request' && vmm resume full && vmm exec full -- echo goes on",
        ),
    )?;
    ensure!(
        said.contains("status 0\n0\n") && said.ends_with("goes on\n"),
        "{said:?}"
    );
    ok(host, &within("vmm terminate --time 0 full; umount /work/small")).map(drop)
}
