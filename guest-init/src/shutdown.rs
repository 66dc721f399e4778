//! `poweroff`, `reboot`, `halt` and `shutdown`: the names under which this program asks PID 1 to end the
//! machine, for images that have no programs of these names.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;

/// The names, each one a command.
pub const NAMES: &[&str] = &["poweroff", "reboot", "halt", "shutdown"];

const USAGE: &str = "\
Usage: poweroff [-f]
       reboot [-f]
       halt [-f]
       shutdown [-h | -P | -H | -r] now

Asks guest-init to end the machine: services and commands are asked to stop, and file systems are written.
halt powers off as well; an instance that is neither on nor off is of no use.
  -f, --force   at once, without stopping anything; file systems are written
  -h, -P, -H    power off (what shutdown does anyway)
  -r            start again
";

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Help,
    End { reboot: bool, force: bool },
}

/// The command that the first of `arguments`, the program's own name, stands for; `None` for another name.
pub fn command(arguments: &[OsString]) -> Option<&'static str> {
    let name = Path::new(arguments.first()?).file_name()?;
    NAMES.iter().copied().find(|known| name == *known)
}

/// Does what the command line says.
pub fn run(name: &str, arguments: &[OsString]) -> ExitCode {
    let words = arguments.iter().map(|word| word.to_string_lossy());
    let order = match parse(name, words) {
        Ok(order) => order,
        Err(why) => {
            eprintln!("{name}: {why}\n  try: {name} --help");
            return ExitCode::from(2);
        }
    };
    let done = match order {
        Order::Help => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Order::End { reboot, force: false } => ask(reboot),
        Order::End { reboot, force: true } => end(reboot),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Errno::EPERM) => {
            eprintln!("{name}: only root may do this\n  try: sudo {name}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{name}: PID 1 could not be asked: {error}\n  try: {name} -f");
            ExitCode::FAILURE
        }
    }
}

fn parse(name: &str, words: impl Iterator<Item = impl AsRef<str>>) -> Result<Order, String> {
    let (mut reboot, mut force) = (name == "reboot", false);
    let mut time = None;
    for word in words {
        match word.as_ref() {
            "--help" => return Ok(Order::Help),
            "-f" | "--force" => force = true,
            "-r" | "--reboot" if name != "reboot" => reboot = true,
            "-h" | "-P" | "-p" | "--poweroff" | "-H" | "--halt" => reboot = false,
            // Nothing is written to wtmp, and no message is sent: there are no users.
            "-d" | "-w" | "--no-wtmp" | "--no-wall" | "-n" | "-i" => {}
            option if option.starts_with('-') => return Err(format!("there is no option {option}")),
            // The rest is a message to those who are logged in.
            word if name == "shutdown" => {
                time.get_or_insert_with(|| word.to_owned());
            }
            word => return Err(format!("{word:?} is too much")),
        }
    }
    match time.as_deref() {
        _ if name != "shutdown" => {}
        Some("now" | "+0") => {}
        // As everywhere else it would mean in a minute, which a person would have to wait for.
        None => return Err("it does not say when; only `now` is known here".into()),
        Some(time) => return Err(format!("{time:?} is no time that is known here; only `now` is")),
    }
    Ok(Order::End { reboot, force })
}

/// Asks PID 1, guest-init or another init, as the agent does: SIGRTMIN+4 powers off and SIGRTMIN+5 reboots
/// (systemd(1)).
fn ask(reboot: bool) -> Result<(), Errno> {
    crate::agent::signal_init(reboot)
}

/// Ends the machine without PID 1.
fn end(reboot: bool) -> Result<(), Errno> {
    use nix::sys::reboot::RebootMode;
    nix::unistd::sync();
    let mode = match reboot {
        true => RebootMode::RB_AUTOBOOT,
        false => RebootMode::RB_POWER_OFF,
    };
    nix::sys::reboot::reboot(mode).map(|never| match never {})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(line: &str) -> Result<Order, String> {
        let mut words = line.split(' ');
        let name = command(&[OsString::from(words.next().unwrap())]).unwrap();
        parse(name, words)
    }

    #[test]
    fn arguments_of_sysvinit_and_systemd_are_understood() {
        let end = |reboot, force| Ok(Order::End { reboot, force });
        for (line, expected) in [
            ("/usr/sbin/poweroff", end(false, false)),
            ("halt -p", end(false, false)),
            ("reboot -f", end(true, true)),
            ("shutdown -h now", end(false, false)),
            ("shutdown -r now back soon", end(true, false)),
            ("shutdown +0", end(false, false)),
            ("poweroff --help", Ok(Order::Help)),
        ] {
            assert_eq!(order(line), expected, "{line}");
        }
        for line in [
            "shutdown",
            "shutdown -h +5",
            "shutdown -c",
            "poweroff now",
            "reboot --firmware-setup",
        ] {
            assert!(order(line).is_err(), "{line}");
        }
    }

    #[test]
    fn other_names_are_no_commands() {
        for name in ["/init", "guest-init", "", "/sbin/poweroffs"] {
            assert_eq!(command(&[OsString::from(name)]), None, "{name:?}");
        }
        assert_eq!(command(&[]), None);
    }
}
