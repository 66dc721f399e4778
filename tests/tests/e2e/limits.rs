//! `--limit`: what a guest may do in a second, as it is measured from outside of it.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;

pub const TESTS: &[(&str, Test)] = &[(
    "a_limited_guest_does_no_more_than_it_may",
    a_limited_guest_does_no_more,
)];

/// Bytes that the guest sends.
const SENT: u64 = 3 << 20;

fn a_limited_guest_does_no_more(host: &TestHost) -> Result<()> {
    for (limit, advice) in [
        ("disk=1", "64KiB/s"),
        ("cpu=1", "cannot be limited"),
        ("iops=1,iops=2", "twice"),
    ] {
        let refused = host.sh(&format!("vmm run hello.ami --rm --limit {limit} -- true"))?;
        ensure!(
            refused.status != 0 && refused.stderr.contains(advice),
            "{limit}: {refused:?}"
        );
    }
    let refused = host.sh("vmm run hello.ami --rm --icount --limit iops=100 -- true")?;
    ensure!(
        refused.status == 125 && refused.stderr.contains("leave one of them out"),
        "{refused:?}"
    );
    ok(
        host,
        "vmm run hello.ami -d --name slow --net user,loopback --limit net=8Mbit/s --limit iops=100 \
         --volume 64M --wait agent",
    )?;
    // 400 requests at 100 a second, of which 10 are free after a rest: dd reads the device past the page cache.
    let start = Instant::now();
    ok(
        host,
        "vmm exec slow -- dd if=/dev/vdb of=/dev/null bs=4k count=400 iflag=direct",
    )?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(3800), "400 requests took {took:?}");
    let (bytes, took) = send(host)?;
    // 3 MiB at a million bytes a second, of which a tenth is free.
    ensure!(
        bytes == SENT && took > Duration::from_millis(2800),
        "{bytes} bytes were sent in {took:?}"
    );
    let record = ok(host, "vmm inspect slow")?;
    ensure!(record.contains("\"iops\": 100"), "{record}");
    ok(host, "vmm terminate --time 0 slow").map(drop)
}

/// Lets the guest send to a port of this host; returns how much came, and how long it took from the first byte to the last.
fn send(host: &TestHost) -> Result<(u64, Duration)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port")?;
    let port = listener.local_addr()?.port();
    let receiver = std::thread::spawn(move || -> std::io::Result<(u64, Duration)> {
        let (mut stream, _) = listener.accept()?;
        let (mut buffer, mut total, mut start) = (vec![0; 64 << 10], 0, None);
        loop {
            let count = stream.read(&mut buffer)?;
            let start = *start.get_or_insert_with(Instant::now);
            if count == 0 {
                return Ok((total, start.elapsed()));
            }
            total += count as u64;
        }
    });
    ok(
        host,
        &format!("vmm exec slow -- sh -c 'head -c {SENT} /dev/zero | nc -w 60 10.0.2.2 {port}'"),
    )?;
    match receiver.join() {
        Ok(result) => result.context("receiving"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
