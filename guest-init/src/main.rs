//! `/init` of the initramfs; called as `poweroff`, `reboot`, `halt` or `shutdown`, the command of that name.

use std::ffi::OsString;
use std::process::ExitCode;

use guest_init::{pid1, shutdown};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match shutdown::command(&arguments) {
        Some(name) if std::process::id() != 1 => shutdown::run(name, &arguments[1..]),
        _ => pid1::main(),
    }
}
