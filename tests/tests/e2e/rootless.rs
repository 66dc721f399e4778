//! A user without privileges: the images are the same bytes as root's, and instances are confined like
//! root's.

use std::time::Duration;

use anyhow::{Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::rootless;
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "the_web_example_is_the_same_rootless",
        the_web_example_is_the_same_rootless,
    ),
    (
        "a_user_launches_confined_with_and_without_a_network",
        a_user_launches_confined,
    ),
];

/// Tests that build for minutes.
pub const LONG: &[(&str, Test)] = &[
    (
        "the_other_examples_are_the_same_rootless",
        the_other_examples_are_the_same_rootless,
    ),
    (
        "examples_of_32_bit_programs_are_the_same_rootless",
        examples_of_32_bit_programs_are_the_same_rootless,
    ),
    (
        "the_microvm_example_is_the_same_rootless",
        the_microvm_example_is_the_same_rootless,
    ),
];

const LIMIT: Duration = Duration::from_secs(1800);

fn the_web_example_is_the_same_rootless(host: &TestHost) -> Result<()> {
    build_both(host, "web", None)
}

fn the_other_examples_are_the_same_rootless(host: &TestHost) -> Result<()> {
    let examples = ["hello", "debian", "employee-directory", "plain", "cloud"];
    examples
        .iter()
        .try_for_each(|example| build_both(host, example, None))
}

/// Configured natively, and so on x86_64 only; without the security archive, as
/// [`kiln_tests::dist::Dist::image_of_i386`].
fn examples_of_32_bit_programs_are_the_same_rootless(host: &TestHost) -> Result<()> {
    if Arch::host()? != Arch::X86_64 {
        return Ok(());
    }
    let examples = ["hello", "debian", "employee-directory", "plain", "cloud", "web"];
    examples
        .iter()
        .try_for_each(|example| build_both(host, example, Some("i386")))
}

/// Its kernel is compiled twice.
fn the_microvm_example_is_the_same_rootless(host: &TestHost) -> Result<()> {
    build_both(host, "microvm", None)
}

/// All walls stand without root, the namespace of the network included, which takes one of users then.
fn a_user_launches_confined(host: &TestHost) -> Result<()> {
    let user = rootless::USER;
    let line = format!(
        "set -e
         D=$(mktemp -d /tmp/kiln-rootless.XXXXXX); trap 'rm -rf $D' EXIT
         cp $(command -v vmm) hello.ami $D/; mkdir $D/home; chmod -R a+rX $D; chown {user}: $D/home
         run() {{
             setpriv --reuid {user} --regid {user} --clear-groups env -i PATH=/usr/bin:/bin HOME=$D/home \
                 $D/vmm run $D/hello.ami --rm --accel soft --sandbox required $1 -- ip -o link
         }}
         run '--net none' | sed 's/^/alone /'; run | sed 's/^/with /'"
    );
    let output = host.sh(&line)?;
    let printed = |what: &str| output.stdout.lines().any(|line| line.starts_with(what));
    ensure!(
        output.status == 0 && printed("alone 1: lo") && printed("with 2: eth0") && !printed("alone 2: eth0"),
        "{output:?}"
    );
    Ok(())
}

/// Builds with all that may differ being different: user, cache, directory, umask, locale, time zone. For
/// another architecture than the host's, if one is named.
fn build_both(host: &TestHost, example: &str, arch: Option<&str>) -> Result<()> {
    let (arch, security) = match arch {
        None => (String::new(), ""),
        Some(arch) => (
            format!("--arch {arch}"),
            "\\n[distribution]\\nsecurity = false\\n",
        ),
    };
    let examples = kiln_tests::dist::workspace().join("examples");
    let examples = examples.display();
    let user = rootless::USER;
    // The programs and recipes must be where the user can read them; packages need not be downloaded twice.
    let line = format!(
        "set -e
         D=$(mktemp -d /tmp/kiln-rootless.XXXXXX); trap 'rm -rf $D' EXIT
         mkdir $D/root $D/bin $D/deeper $D/deeper/cache
         cp -r {examples} $D/recipes; printf '{security}' >>$D/recipes/{example}.toml
         cp -r $D/recipes $D/deeper/recipes
         cp $(command -v imgtool) $(dirname $(command -v imgtool))/guest-init $D/bin/
         export XDG_CACHE_HOME=$D/cache
         $D/bin/imgtool build $D/recipes/{example}.toml {arch} -o $D/root/image.ami --quiet
         mkdir $D/deeper/cache/kiln; cp -r $D/cache/kiln/blobs $D/deeper/cache/kiln/
         cp $D/recipes/{example}.lock $D/deeper/recipes/
         chmod 755 $D; chown -R {user}: $D/deeper
         umask 077
         cd $D/deeper
         setpriv --reuid {user} --regid {user} --clear-groups env -i PATH=/usr/bin:/bin HOME=$D/deeper \
             XDG_CACHE_HOME=$D/deeper/cache LC_ALL=C.UTF-8 TZ=Asia/Tokyo \
             $D/bin/imgtool build recipes/{example}.toml {arch} --locked --offline -o image.ami --quiet
         cmp $D/root/image.ami image.ami"
    );
    let output = host.sh_within(&line, LIMIT)?;
    ensure!(output.status == 0, "{example}: {output:?}");
    let ids: Vec<&str> = output
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    ensure!(ids.len() == 2 && ids[0] == ids[1], "{example}: {output:?}");
    Ok(())
}
