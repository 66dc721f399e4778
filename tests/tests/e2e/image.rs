//! The hello image: reproducible, with a clean file system, and every damage is detected.

use anyhow::{Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("two_builds_are_identical", two_builds_are_identical),
    ("the_root_passes_e2fsck", the_root_passes_e2fsck),
    ("damage_is_refused_by_name", damage_is_refused_by_name),
    ("a_truncated_image_is_refused", a_truncated_image_is_refused),
];

fn two_builds_are_identical(host: &TestHost) -> Result<()> {
    let recipe = kiln_tests::dist::workspace().join("examples/hello.toml");
    let recipe = recipe.display();
    let line = format!(
        "set -e; mkdir -p $HOME/b1 $HOME/b2/deeper; imgtool build {recipe} -o $HOME/b1/a.ami; \
         cd $HOME/b2/deeper; umask 077; LC_ALL=C.UTF-8 TZ=Asia/Tokyo imgtool build {recipe} -o b.ami; \
         cmp $HOME/b1/a.ami b.ami; rm $HOME/b1/a.ami b.ami"
    );
    let output = host.sh(&line)?;
    ensure!(output.status == 0, "{output:?}");
    Ok(())
}

fn the_root_passes_e2fsck(host: &TestHost) -> Result<()> {
    let line = "imgtool extract hello.ami --part root -o $HOME/root.ext4 && e2fsck -fn $HOME/root.ext4 && rm $HOME/root.ext4";
    let output = host.sh(line)?;
    ensure!(output.status == 0, "{output:?}");
    Ok(())
}

/// Flips a byte in the middle of each part; the offsets come from the image itself.
fn damage_is_refused_by_name(host: &TestHost) -> Result<()> {
    let inspected = host.sh("imgtool inspect --json hello.ami")?;
    ensure!(inspected.status == 0, "{inspected:?}");
    let image: serde_json::Value = serde_json::from_str(&inspected.stdout)?;
    for part in ["kernel", "initramfs", "root"] {
        let parts = image
            .pointer("/manifest/parts")
            .and_then(serde_json::Value::as_array);
        let found = parts.and_then(|parts| parts.iter().find(|entry| entry["name"] == part));
        let Some(offset) = found.and_then(|entry| entry["offset"].as_u64()) else {
            anyhow::bail!("{part} has no offset in {image:#}")
        };
        let at = offset + 1500;
        let line = format!(
            "cp --sparse=always hello.ami $HOME/damaged.ami && \
             byte=$(od -An -tu1 -j{at} -N1 $HOME/damaged.ami) && \
             printf \"\\\\$(printf %o $((byte ^ 1)))\" | dd of=$HOME/damaged.ami bs=1 seek={at} conv=notrunc status=none && \
             imgtool verify $HOME/damaged.ami; status=$?; rm -f $HOME/damaged.ami; exit $status"
        );
        let output = host.sh(&line)?;
        ensure!(output.status != 0, "{part}: damage went unnoticed: {output:?}");
        ensure!(output.stderr.contains(part), "{part} is not named: {output:?}");
    }
    Ok(())
}

fn a_truncated_image_is_refused(host: &TestHost) -> Result<()> {
    for keep in ["100", "1000000", "20000000"] {
        let line =
            format!("head -c {keep} hello.ami > $HOME/short.ami; vmm run $HOME/short.ami --rm -- true");
        let output = host.sh(&line)?;
        ensure!(output.status == 125, "{keep} bytes: {output:?}");
        ensure!(output.stderr.contains("short.ami"), "{keep} bytes: {output:?}");
    }
    Ok(())
}
