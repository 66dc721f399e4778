//! Builds that fail because something is missing, full, read-only or interrupted: the message says what, why
//! and what to try, and no partial image is left.

use anyhow::{Result, ensure};
use kiln_tests::dist::kiln_dir;
use kiln_tests::lab::Output;
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("a_missing_package_is_named", a_missing_package_is_named),
    ("an_unreachable_mirror_is_named", an_unreachable_mirror_is_named),
    ("a_full_disk_leaves_no_image", a_full_disk_leaves_no_image),
    ("a_closed_output_is_an_error", a_closed_output_is_an_error),
    (
        "a_read_only_cache_serves_what_it_has",
        a_read_only_cache_serves_what_it_has,
    ),
    (
        "a_killed_build_leaves_a_whole_image_or_none",
        a_killed_build_leaves_a_whole_image_or_none,
    ),
    (
        "a_killed_build_ends_the_processes_that_it_runs",
        a_killed_build_ends_the_processes_that_it_runs,
    ),
];

/// Ensures that the command failed with all of `words` in its message, which is a message for people, and
/// left nothing.
pub fn refused(output: &Output, words: &[&str]) -> Result<()> {
    ensure!(output.status == 1, "{output:?}");
    for word in words.iter().chain(&["try:"]) {
        ensure!(output.stderr.contains(word), "`{word}` is missing: {output:?}");
    }
    ensure!(!output.stderr.contains("panicked"), "{output:?}");
    ensure!(output.stdout.is_empty(), "something is left: {output:?}");
    Ok(())
}

/// Runs `line` in a new folder and prints what it left there, images and what may become one.
pub fn attempt(host: &TestHost, line: &str) -> Result<Output> {
    host.sh(&format!(
        "D=$(mktemp -d); cd $D; ({line}) >/dev/null; status=$?; find . -name '*.ami' -o -name '.kiln-*'; cd /; rm -rf $D; exit $status"
    ))
}

fn hello() -> String {
    kiln_tests::dist::workspace()
        .join("examples/hello.toml")
        .display()
        .to_string()
}

fn a_missing_package_is_named(host: &TestHost) -> Result<()> {
    let line = "printf 'name = \"x\"\npackages = [\"ngnix-light\"]\n' >x.toml; imgtool build x.toml -o x.ami --quiet";
    refused(&attempt(host, line)?, &["ngnix-light", "nginx-light"])?;
    let line = "printf 'name = \"x\"\npackages = [\"nginx (>= 99)\"]\n' >x.toml; imgtool build x.toml -o x.ami --quiet";
    refused(&attempt(host, line)?, &["nginx", ">= 99"])
}

fn an_unreachable_mirror_is_named(host: &TestHost) -> Result<()> {
    // Port 9 of this machine: nobody listens.
    let line = "printf 'name = \"x\"\n[distribution]\nmirror = \"http://127.0.0.1:9/debian\"\n' >x.toml; \
                imgtool build x.toml -o x.ami --quiet";
    refused(&attempt(host, line)?, &["http://127.0.0.1:9/debian", "refused"])
}

/// What is printed to a stream that is closed, or to a full disk, is lost, and both programs say so.
fn a_closed_output_is_an_error(host: &TestHost) -> Result<()> {
    for line in [
        "imgtool inspect hello.ami >&-",
        "imgtool ls hello.ami >&-",
        "imgtool --version >&-",
        "imgtool ls hello.ami >/dev/full",
        "vmm --version >&-",
        "vmm doctor --json >&-",
    ] {
        let output = host.sh(line)?;
        ensure!(
            output.status == 120 && !output.stderr.is_empty(),
            "{line}: {output:?}"
        );
    }
    let output = host.sh("imgtool ls hello.ami / >/dev/null 2>&- <&-")?;
    ensure!(output.status == 0, "{output:?}");
    Ok(())
}

fn a_full_disk_leaves_no_image(host: &TestHost) -> Result<()> {
    let hello = hello();
    let warm = format!("imgtool build {hello} -o warm.ami --quiet && rm warm.ami");
    let output = attempt(host, &warm)?;
    ensure!(output.status == 0, "{output:?}");
    let line = format!(
        "mkdir small && unshare --mount --map-root-user sh -c 'mount -t tmpfs -o size=8m none small && \
         imgtool build {hello} -o small/x.ami --quiet; status=$?; ls -A small; exit $status'"
    );
    refused(&attempt(host, &line)?, &["disk is full", "x.ami"])
}

fn a_read_only_cache_serves_what_it_has(host: &TestHost) -> Result<()> {
    let hello = hello();
    let read_only = |command: &str| {
        format!(
            "mkdir -p $HOME/.cache/kiln && unshare --mount --map-root-user sh -c 'mount --bind $HOME/.cache/kiln $HOME/.cache/kiln && \
             mount -o remount,bind,ro $HOME/.cache/kiln && {command}'"
        )
    };
    let output = attempt(
        host,
        &format!("imgtool build {hello} -o warm.ami --quiet && rm warm.ami"),
    )?;
    ensure!(output.status == 0, "{output:?}");
    let output = attempt(
        host,
        &read_only(&format!("imgtool build {hello} -o x.ami --quiet && rm x.ami")),
    )?;
    ensure!(output.status == 0, "{output:?}");
    // A package that nothing else here uses.
    let line = "printf 'name = \"x\"\nvariant = \"extract\"\npackages = [\"hello\"]\n' >x.toml; ".to_owned()
        + &read_only("imgtool build x.toml -o x.ami --quiet");
    refused(&attempt(host, &line)?, &["cannot write", "read-only"])
}

fn a_killed_build_leaves_a_whole_image_or_none(host: &TestHost) -> Result<()> {
    let hello = hello();
    for seconds in ["0.2", "0.5", "1", "2"] {
        // The kill can also fall between the image's last step, its name, and the program's end: what has the
        // name is whole.
        let line = format!(
            "timeout --signal=KILL {seconds} imgtool build {hello} -o x.ami --quiet; status=$?; \
             [ ! -e x.ami ] || {{ imgtool verify x.ami && rm x.ami; }}; exit $status"
        );
        let output = attempt(host, &line)?;
        // 137: it was killed. On a fast machine the last ones are done before.
        ensure!(matches!(output.status, 0 | 137), "{output:?}");
        ensure!(output.stdout.is_empty(), "something is left: {output:?}");
    }
    Ok(())
}

/// A kernel's `make` would go on for minutes; here it is a step that sleeps.
fn a_killed_build_ends_the_processes_that_it_runs(host: &TestHost) -> Result<()> {
    let base = kiln_dir().join("images/plain.ami");
    let base = base.display();
    let line = format!(
        "D=$(mktemp -d); cd $D; printf 'name = \"x\"\nbase = \"{base}\"\nrun = [\"sleep 43217\"]\n' >x.toml; \
         imgtool build x.toml -o x.ami --quiet & build=$!; \
         sleeping() {{ i=0; while pgrep -f '^sleep 43217$' >/dev/null; [ $? != $1 ]; do i=$((i + 1)); test $i -lt 600 || return 1; sleep 0.1; done; }}; \
         sleeping 0; began=$?; kill -9 $build; wait $build; sleeping 1; ended=$?; \
         cd /; rm -rf $D; echo began $began ended $ended"
    );
    let output = host.sh(&line)?;
    ensure!(output.stdout == "began 0 ended 0\n", "{output:?}");
    Ok(())
}
