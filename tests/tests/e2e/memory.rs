//! Host memory that a guest uses and returns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;

pub const TESTS: &[(&str, Test)] = &[(
    "what_a_guest_frees_goes_back_to_the_host",
    what_a_guest_frees_goes_back,
)];

/// MiB that the guest fills and frees.
const FILLED: u64 = 96;
/// MiB that must come back: the guest's allocator keeps small pieces. It is far more than what the boot has
/// freed, which goes back at some moment, before or after the guest has filled its memory.
const RETURNED: u64 = 80;
/// Linux reports every two seconds, in small portions.
const TIMEOUT: Duration = Duration::from_secs(90);

fn what_a_guest_frees_goes_back(host: &TestHost) -> Result<()> {
    ok(
        host,
        "vmm run hello.ami -d --name breather --balloon --memory 256M --wait agent",
    )?;
    let fill = format!(
        "mount -t tmpfs none /mnt && head -c {} /dev/zero > /mnt/f",
        FILLED << 20
    );
    ok(host, &format!("vmm exec breather -- sh -c '{fill}'"))?;
    let full = resident(host)?;
    ensure!(
        full >= FILLED,
        "the guest filled {FILLED} MiB and has only {full}"
    );
    ok(host, "vmm exec breather -- sh -c 'rm /mnt/f; umount /mnt'")?;
    let start = Instant::now();
    loop {
        let now = resident(host)?;
        if now + RETURNED <= full {
            break;
        }
        ensure!(
            start.elapsed() < TIMEOUT,
            "{full} MiB became only {now} after {TIMEOUT:?}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    ok(host, "vmm terminate --time 0 breather").map(drop)
}

/// MiB of the host's memory that the guest's RAM holds: the mappings for which no swap is reserved. The decoded
/// code of a software processor, which comes and goes by itself, has other ones.
fn resident(host: &TestHost) -> Result<u64> {
    const RAM: &str = "/^Rss:/ { pages = $2 } /^VmFlags:.* nr/ { ram += pages } END { print ram + 0 }";
    let line = format!(
        "process=$(vmm inspect breather | sed -n 's/.*\"owner\": *\\([0-9]*\\).*/\\1/p'); \
         awk '{RAM}' /proc/$process/smaps"
    );
    let text = ok(host, &line)?;
    let kilobytes: u64 = text.trim().parse().with_context(|| format!("{text:?}"))?;
    Ok(kilobytes >> 10)
}
