//! A long computation: guest and host get the same results.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[(
    "compression_and_digests_are_right",
    compression_and_digests_are_right,
)];

/// The guest digests and compresses two megabytes; the host does the first, undoes the second and compares.
fn compression_and_digests_are_right(host: &TestHost) -> Result<()> {
    let line = "vmm run hello.ami --rm -- sh -c \
                'seq 1 300000 > /tmp/plain; sha256sum < /tmp/plain >&2; gzip -9 < /tmp/plain' > packed.$$ && \
                gunzip -c < packed.$$ | sha256sum; status=$?; rm -f packed.$$; exit $status";
    let guest = host.sh(line)?;
    ensure!(guest.status == 0, "{guest:?}");
    let host = host.sh("seq 1 300000 | sha256sum")?;
    ensure!(host.status == 0 && host.stdout.len() > 64, "{host:?}");
    ensure!(
        guest.stdout == host.stdout,
        "unpacked: {guest:?} instead of {host:?}"
    );
    ensure!(
        guest.stderr.contains(&host.stdout),
        "digested: {guest:?} instead of {host:?}"
    );
    Ok(())
}
