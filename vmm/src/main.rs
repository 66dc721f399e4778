//! The `vmm` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmm::cli::main(vmm::timeline::Timeline::start())
}
