//! Writes that were acknowledged to a guest are not lost when the instance process is killed at any moment.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;
use serde_json::Value;

use crate::Test;
use crate::directory::ok;
use crate::instance::process_of;

pub const TESTS: &[(&str, Test)] = &[
    (
        "no_acknowledged_write_is_lost_by_kill_9",
        no_acknowledged_write_is_lost,
    ),
    (
        "a_killed_create_image_leaves_a_whole_image_or_none",
        a_killed_create_image_leaves_a_whole_image_or_none,
    ),
];

/// Boots that end by a kill. The first one's root volume still reads from the image, in the last it stands
/// alone.
const BOOTS: u32 = 2;
/// The same where there is time.
const LONG_BOOTS: u32 = 12;
/// Writes that are acknowledged before the kill.
const WRITES: u32 = 60;
/// How long filling a small root volume may take.
const FILLED: Duration = Duration::from_secs(120);

/// Writes files of many sizes and the blocks of one file, each through fsync, and names each one after that.
const WRITER: &str = "mkdir -p /d; i=$0; while :; do i=$((i+1)); \
    yes $i | head -c $((i*397%20000+1)) | dd of=/d/$i conv=fsync 2>/dev/null && \
    yes $i | head -c 4096 | dd of=/d/log bs=4096 seek=$((i%50)) conv=notrunc,fsync 2>/dev/null && echo $i; done";

/// Compares what there is with what was written, up to the number that was acknowledged last, and says how
/// many differ.
const CHECKER: &str = "bad=0; i=0; while [ $i -lt $0 ]; do i=$((i+1)); \
    yes $i | head -c $((i*397%20000+1)) | cmp -s - /d/$i || { bad=$((bad+1)); echo lost $i; }; done; \
    i=$(($0-49)); [ $i -gt 0 ] || i=1; while [ $i -le $0 ]; do \
    yes $i | head -c 4096 > /tmp/want; dd if=/d/log bs=4096 skip=$((i%50)) count=1 2>/dev/null | \
    cmp -s - /tmp/want || echo block of $i; i=$((i+1)); done; echo $bad; dmesg | grep -i 'EXT4-fs error'";

fn no_acknowledged_write_is_lost(host: &TestHost) -> Result<()> {
    let long = std::env::var_os("KILN_LONG_TESTS").is_some();
    let boots = if long { LONG_BOOTS } else { BOOTS };
    ok(host, "vmm run hello.ami -d --name durable --wait agent")?;
    let mut acknowledged = 0;
    for boot in 1..=boots {
        if boot == boots {
            wait_until_it_stands_alone(host)?;
        }
        acknowledged = write_until_killed(host, acknowledged)?;
        if boot == boots {
            fsck(host)?;
        }
        ok(host, "vmm start durable --wait agent")?;
        let printed = ok(
            host,
            &format!(
                "vmm exec durable -- sh -c '{}' {acknowledged}; true",
                quoted(CHECKER)
            ),
        )?;
        let complaints: Vec<_> = printed
            .lines()
            .filter(|line| !may_be_newer(line, acknowledged))
            .collect();
        ensure!(
            complaints == ["0"],
            "boot {boot}, {acknowledged} writes acknowledged: {printed}"
        );
    }
    ok(host, "vmm terminate --time 0 durable").map(drop)
}

/// A block of the log may hold the write after the last one that was acknowledged.
fn may_be_newer(line: &str, acknowledged: u32) -> bool {
    let number = line.strip_prefix("block of ").and_then(|n| n.parse::<u32>().ok());
    number.is_some_and(|number| number % 50 == (acknowledged + 1) % 50)
}

/// For the inside of single quotes.
fn quoted(script: &str) -> String {
    script.replace('\'', "'\\''")
}

fn record(host: &TestHost) -> Result<Value> {
    Ok(serde_json::from_str(&ok(host, "vmm inspect durable")?)?)
}

/// Lets the guest write on after number `from`, kills the process that runs it, and returns the last number
/// that arrived.
fn write_until_killed(host: &TestHost, from: u32) -> Result<u32> {
    let process = ok(host, &process_of("durable"))?;
    let process = process.trim();
    let mut writer = host
        .command("vmm")?
        .args(["exec", "durable", "--", "sh", "-c", WRITER, &from.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = BufReader::new(writer.stdout.take().context("its output")?).lines();
    let mut last = from;
    for line in lines {
        // A line that was cut by the kill is not an acknowledgement.
        let Ok(number) = line?.parse::<u32>() else { break };
        if number != last + 1 {
            break;
        }
        last = number;
        if last == from + WRITES {
            ok(host, &format!("kill -9 {process}"))?;
        }
    }
    writer.wait()?;
    let start = Instant::now();
    while self::record(host)?.pointer("/0/state").and_then(Value::as_str) != Some("stopped") {
        ensure!(
            start.elapsed() < FILLED,
            "the killed process is not gone after {FILLED:?}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(last >= from + WRITES, "the guest stopped writing at {last}");
    Ok(last)
}

fn root_volume(host: &TestHost) -> Result<(String, u64)> {
    let record = record(host)?;
    let path = record.pointer("/0/volumes/0/path").and_then(Value::as_str);
    let size = record.pointer("/0/volumes/0/size").and_then(Value::as_u64);
    Ok((path.context("a path")?.to_owned(), size.context("a size")?))
}

/// A volume that is filled is as long as the disk; before, it ends with a trailer.
fn wait_until_it_stands_alone(host: &TestHost) -> Result<()> {
    let (path, size) = root_volume(host)?;
    let start = Instant::now();
    while Path::new(&path).metadata()?.len() != size {
        ensure!(start.elapsed() < FILLED, "{path} is not filled after {FILLED:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// The file system's journal makes it whole, and then there is nothing wrong with it.
fn fsck(host: &TestHost) -> Result<()> {
    let (path, _) = root_volume(host)?;
    ok(
        host,
        &format!("e2fsck -p {path}; test $? -le 1 && e2fsck -fn {path}"),
    )
    .map(drop)
}

/// Killed before, while and after it copies: what has a name in the store is complete, what does not is gone
/// with the next image, and the instance runs on, thawed.
fn a_killed_create_image_leaves_a_whole_image_or_none(host: &TestHost) -> Result<()> {
    ok(host, "vmm run hello.ami -d --name model --wait agent")?;
    for seconds in ["0.02", "0.1", "0.2", "0.5", "1", "2"] {
        let killed = format!("timeout --signal=KILL {seconds} vmm create-image model cut --no-reboot");
        let output = host.sh(&killed)?;
        // 137: it was killed. On a fast machine the last ones are done before.
        ensure!(matches!(output.status, 0 | 137), "{output:?}");
        ok(
            host,
            "vmm exec model -- sh -c 'echo $$ > /root/alive && sync' && \
             for image in $XDG_DATA_HOME/kiln/images/ami-*.ami; do [ ! -e $image ] || imgtool verify $image || exit 1; done",
        )?;
    }
    ok(host, "vmm create-image model whole --no-reboot")?;
    let left = ok(
        host,
        "cd $XDG_DATA_HOME/kiln/images; find . -name '.capture-*' -o -name '.new-*' -o -name '.kiln-*'",
    )?;
    ensure!(left.is_empty(), "left behind: {left}");
    ok(host, "vmm run whole --rm -- true && vmm terminate --time 0 model").map(drop)
}
