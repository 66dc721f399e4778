//! The `imgtool` command.

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // Configuring a root runs this program again, inside namespaces that only one thread can enter.
    imgtool::configure::run_if_asked(&arguments).unwrap_or_else(imgtool::cli::main)
}
