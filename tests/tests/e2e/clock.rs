//! The guest's clock agrees with the host's: when the guest is ready, after a pause, and after the host's
//! clock was set.

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;
use crate::directory::ok;

pub const TESTS: &[(&str, Test)] = &[(
    "the_guests_clock_is_right_at_ready_and_after_a_pause",
    the_guests_clock_is_right,
)];

/// The host's clock is set, which only a host of our own may suffer.
pub const LAB_TESTS: &[(&str, Test)] = &[(
    "the_guests_clock_follows_when_the_hosts_jumps",
    the_guests_clock_follows,
)];

/// By how much the guest's clock may be wrong, in nanoseconds.
const CLOCK_ERROR: i128 = 50_000_000;

/// Readings that `clocks` makes.
pub const READINGS: usize = 10;

/// `clocks NAME` reads the clocks of this host and of the guest of that name: a line `clock`, the host's
/// before, the guest's, the host's after, in nanoseconds, for each reading. A clock is what a new file bears,
/// since BusyBox's `date` knows whole seconds only.
pub const READ_CLOCKS: &str = r#"
export TZ=UTC
now() { rm -f now; : >now; stat -c %z now; }
nanoseconds() { t=${1%% +*}; echo "$(date -u -d "${t%.*}" +%s)${t#*.}"; }
clocks() {
    mkfifo in out
    vmm exec -i $1 -- sh -c "while read x; do rm -f /run/now; : >/run/now; stat -c %z /run/now; done" <in >out &
    exec 3>in 4<out
    for i in 1 2 3 4 5 6 7 8 9 10; do
        before=$(now); echo >&3; read guest <&4; after=$(now)
        echo clock $(nanoseconds "$before") $(nanoseconds "$guest") $(nanoseconds "$after")
    done
    exec 3>&- 4<&-; wait $!; rm in out
}
"#;

/// The guest read its clock between two readings of the host's, in each line of `clocks` in `text`: it must
/// not be outside by more than [`CLOCK_ERROR`]. On a slow host the two lie far apart; an error shows all the
/// same, because it would be there in every reading.
pub fn check(text: &str, readings: usize) -> Result<()> {
    let lines: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("clock "))
        .collect();
    ensure!(lines.len() == readings, "{text}");
    for line in lines {
        let numbers: Vec<i128> = line
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| line.to_owned())?;
        let [before, guest, after] = numbers[..] else {
            anyhow::bail!("{line}");
        };
        ensure!(
            (before - CLOCK_ERROR..=after + CLOCK_ERROR).contains(&guest),
            "the guest's clock is {} ms behind",
            (before - guest) / 1_000_000
        );
    }
    Ok(())
}

/// Runs `steps`, which may call `clocks`, in a folder of its own. A lab takes one line.
pub fn run(host: &TestHost, steps: &str) -> Result<String> {
    let mut script = format!("{READ_CLOCKS}{steps}");
    for (text, escaped) in [("\\", "\\\\"), ("%", "%%"), ("\n", "\\n"), ("'", "'\\''")] {
        script = script.replace(text, escaped);
    }
    let line = format!(
        "export IMAGES=$PWD; D=$(mktemp -d) && cd $D && printf '{script}' >script && sh script; status=$?; cd /; rm -rf $D; \
         exit $status"
    );
    ok(host, &line)
}

/// A paused guest answers nothing: `exec` ends all the same when it is asked to, and meanwhile the
/// guest falls behind.
const PAUSE: &str = r#"
vmm run $IMAGES/hello.ami -d --name clock --wait agent >/dev/null && clocks clock && mkfifo up || exit 1
vmm exec clock -- sh -c "echo up; exec sleep 100000" >up & exec=$!
read up <up
vmm pause clock && kill -TERM $exec
wait $exec; echo exec $?
vmm resume clock && clocks clock && vmm terminate --time 0 clock >/dev/null
"#;

fn the_guests_clock_is_right(host: &TestHost) -> Result<()> {
    let text = run(host, PAUSE)?;
    ensure!(text.contains("exec 143\n"), "{text}");
    check(&text, 2 * READINGS)
}

/// What a host finds when it wakes up: its date is another, its monotonic clock has not moved. And back, as a
/// person sets it.
const JUMP: &str = r#"
vmm run $IMAGES/hello.ami -d --name clock --wait agent >/dev/null || exit 1
for shift in 3600 -3600; do
    date -s @$(($(date +%s) + shift)) >/dev/null || exit 1
    until guest=$(vmm exec clock -- date +%s) && apart=$(($(date +%s) - guest)) && test $apart -lt 600 && test $apart -gt -600; do
        sleep 0.2
    done
    clocks clock
done
vmm terminate --time 0 clock >/dev/null
"#;

fn the_guests_clock_follows(host: &TestHost) -> Result<()> {
    check(&run(host, JUMP)?, 2 * READINGS)
}
