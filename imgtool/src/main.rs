//! The `imgtool` command.
#![allow(unsafe_code)]

/// Called before Rust's own start-up, which would put a writable /dev/null in the place of a standard stream
/// that is closed: what is printed there would be lost without a word.
#[used]
#[unsafe(link_section = ".init_array")]
static KEEP_CLOSED_STREAMS: extern "C" fn() = {
    /// What stands in for a closed stream can only be read, so that writing to it stays an error.
    extern "C" fn keep() {
        for stream in 0..=2 {
            // SAFETY: takes numbers, and a C string; the lowest free descriptor is the one that is closed.
            unsafe {
                if libc::fcntl(stream, libc::F_GETFD) < 0 {
                    libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
                }
            }
        }
    }
    keep
};

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    // Configuring a root runs this program again, inside namespaces that only one thread can enter.
    imgtool::configure::run_if_asked(&arguments).unwrap_or_else(imgtool::cli::main)
}
