//! `vmm --ami` on a terminal: keys, sizes, and every way out leaves the terminal as it was.

use std::time::Duration;

use anyhow::{Result, ensure};
use kiln_tests::pty::Terminal;
use kiln_tests::test_host::TestHost;
use nix::sys::signal::Signal;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("the_console_is_a_terminal", the_console_is_a_terminal),
    (
        "power_off_gives_the_terminal_back",
        power_off_gives_the_terminal_back,
    ),
    (
        "a_signal_gives_the_terminal_back",
        a_signal_gives_the_terminal_back,
    ),
];

/// The same within one command line.
pub const LAB_TESTS: &[(&str, Test)] = &[(
    "the_console_is_a_terminal_and_gives_it_back",
    the_console_is_a_terminal_and_gives_it_back,
)];

/// A boot in software on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
/// Anything else.
const SOON: Duration = Duration::from_secs(60);
/// What the shell of the hello image ends its prompt with.
const PROMPT: &str = "# ";
const CTRL_C: &str = "\x03";
const CTRL_BRACKET: &str = "\x1d";

/// `vmm --ami hello.ami --rm` with its prompt on the screen.
fn console(host: &TestHost) -> Result<Terminal> {
    let mut vmm = host.command("vmm")?;
    vmm.args(["--ami", "hello.ami", "--rm"]);
    let mut terminal = Terminal::start(vmm, 30, 90)?;
    terminal.wait_for(PROMPT, BOOT)?;
    Ok(terminal)
}

fn the_console_is_a_terminal(host: &TestHost) -> Result<()> {
    let mut terminal = console(host)?;
    ensure!(terminal.is_raw()?, "keys do not go through as they are");
    terminal.press("stty size\r")?;
    terminal.wait_for("30 90", SOON)?;
    terminal.resize(50, 132)?;
    terminal.press("sleep 1; stty size\r")?;
    terminal.wait_for("50 132", SOON)?;
    // Ctrl-C ends what runs in the guest, and nothing else.
    terminal.press("echo begun; sleep 1000\r")?;
    terminal.wait_for("begun\r\n", SOON)?;
    terminal.press(CTRL_C)?;
    terminal.press("echo still $((20 + 3))\r")?;
    terminal.wait_for("still 23", SOON)?;
    terminal.press(CTRL_BRACKET)?;
    let status = terminal.end(SOON)?;
    ensure!(status == Some(123), "a guest that was left ends with {status:?}");
    Ok(())
}

fn power_off_gives_the_terminal_back(host: &TestHost) -> Result<()> {
    let mut terminal = console(host)?;
    terminal.press("poweroff -f\r")?;
    let status = terminal.end(SOON)?;
    ensure!(status == Some(0), "power-off ends with {status:?}");
    Ok(())
}

fn a_signal_gives_the_terminal_back(host: &TestHost) -> Result<()> {
    let mut vmm = host.command("vmm")?;
    vmm.args(["--ami", "hello.ami", "--rm"]);
    let terminal = Terminal::start(vmm, 24, 80)?;
    terminal.wait_raw(SOON)?;
    terminal.signal(Signal::SIGTERM)?;
    let status = terminal.end(SOON)?;
    ensure!(status == Some(123), "SIGTERM ends with {status:?}");
    Ok(())
}

/// `script` makes the terminal; its keys come out of a pipe, and what the screen shows goes to a file.
fn the_console_is_a_terminal_and_gives_it_back(host: &TestHost) -> Result<()> {
    let line = r#"D=$(mktemp -d); mkfifo $D/keys
script -qefc "stty rows 30 cols 90; vmm --ami hello.ami --rm; echo ended with \$?; stty -a" $D/screen <$D/keys >/dev/null 2>&1 &
exec 8>$D/keys
shows() { for i in $(seq 600); do grep -q "$1" $D/screen && return 0; sleep 0.2; done; echo "no $1"; return 1; }
shows '# ' && printf 'stty size\r' >&8 &&
    shows '30 90' && printf 'echo begun; sleep 1000\r' >&8 &&
    shows '^begun' && printf '\003echo still $((20 + 3))\r' >&8 &&
    shows 'still 23' && printf 'poweroff -f\r' >&8 &&
    shows 'ended with' && shows ' echo '
status=$?
exec 8>&-; wait
cat $D/screen; rm -r $D; exit $status"#;
    let output = host.sh(line)?;
    ensure!(output.status == 0, "{output:?}");
    for word in ["ended with 0", " icanon", " echo "] {
        ensure!(output.stdout.contains(word), "`{word}` is missing: {output:?}");
    }
    Ok(())
}
