//! The `imgtool` command.

fn main() -> std::process::ExitCode {
    imgtool::cli::main()
}
