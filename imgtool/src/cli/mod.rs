//! The command line: what can be typed, and which function answers.

mod compare;
mod error;
mod files;
mod image;
mod make;
mod transport;

use std::io::{BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use ami::Architecture;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

pub use error::Error;

use crate::advice::Advice;

/// Build machine images, and look inside them.
#[derive(Debug, Parser)]
#[command(
    name = "imgtool",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an image from a recipe
    Build(Build),
    /// Write the lock file of a recipe, or bring it up to date
    Lock(Lock),
    /// Show what an image is
    Inspect {
        /// The image
        image: PathBuf,
        /// As JSON: id, manifest and file
        #[arg(long)]
        json: bool,
    },
    /// Read all of an image and check every byte
    Verify {
        /// The image
        image: PathBuf,
        /// Refuse it unless this key signed it (a minisign public key)
        #[arg(long)]
        key: Option<PathBuf>,
        /// Report progress as JSON lines on standard error
        #[arg(long)]
        json: bool,
    },
    /// List files of the root
    Ls {
        /// The image
        image: PathBuf,
        /// A file or directory in it
        #[arg(default_value = "/")]
        path: String,
        /// With mode, owner, size and time
        #[arg(short, long)]
        long: bool,
        /// With everything below
        #[arg(short = 'R', long)]
        recursive: bool,
    },
    /// Print files of the root
    Cat {
        /// The image
        image: PathBuf,
        /// Files in it
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Copy files of the root, or a whole part, out of an image
    Extract(Extract),
    /// Show what differs between two images
    Diff {
        /// The first image
        before: PathBuf,
        /// The second image
        after: PathBuf,
        /// Compare times of files, too
        #[arg(long)]
        times: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what takes the space in an image
    Du {
        /// The image
        image: PathBuf,
        /// Write a page with a treemap
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// How many lines of each kind
        #[arg(short = 'n', long, default_value_t = 15)]
        lines: usize,
    },
    /// Print the bill of materials, SPDX 2.3 JSON
    Sbom {
        /// The image
        image: PathBuf,
    },
    /// Make a pair of keys for signing: FILE and FILE.pub
    Keygen {
        /// The secret key's file
        file: PathBuf,
    },
    /// Sign an image in place; neither its content nor its id changes
    Sign {
        /// The image
        image: PathBuf,
        /// The secret key, as `keygen` or `minisign -G -W` wrote it
        #[arg(long)]
        key: PathBuf,
    },
    /// Write the root of an image in another format, or an image without the guest that a warm one holds
    Convert {
        /// The image
        image: PathBuf,
        /// The format of the root
        #[arg(long, value_enum, required_unless_present = "cold")]
        to: Option<Format>,
        /// Write the image without memory and machine state: it boots
        #[arg(long, conflicts_with = "to")]
        cold: bool,
        /// Write it here
        #[arg(short, long)]
        output: PathBuf,
    },
    /// Make an image of a tar, a container image in an archive, or a raw ext4
    Import(Import),
    /// Compress an image for transport
    Pack {
        /// The image
        image: PathBuf,
        /// Write it here [default: the image's name and `.zst`]
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Make an image of a packed one
    Unpack {
        /// The packed image
        packed: PathBuf,
        /// Write it here [default: the name without `.zst`]
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages
    Man {
        /// Into this directory
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Build {
    /// The recipe
    recipe: PathBuf,
    /// Write the image here [default: the recipe's name and `.ami`]
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    packages: Packages,
    /// The guest-init program [default: the one beside imgtool]
    #[arg(long, env = "KILN_GUEST_INIT")]
    guest_init: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Lock {
    /// The recipe
    recipe: PathBuf,
    #[command(flatten)]
    packages: Packages,
}

#[derive(Debug, Args)]
struct Packages {
    /// For this architecture: x86_64, arm64 or i386 [default: the host's, if the recipe allows it]
    #[arg(long)]
    arch: Option<Architecture>,
    /// Refuse to change the lock file
    #[arg(long)]
    locked: bool,
    /// Use nothing but the cache
    #[arg(long)]
    offline: bool,
    /// Report progress as JSON lines on standard error
    #[arg(long)]
    json: bool,
    /// Print nothing but the result
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct Import {
    /// The source: a tar (plain, gzip, bzip2, xz or zstd), what `docker save` wrote, an OCI archive, or a raw
    /// ext4
    source: PathBuf,
    /// Write the image here
    #[arg(short, long)]
    output: PathBuf,
    /// The image's name [default: the source's]
    #[arg(long)]
    name: Option<String>,
    /// Its architecture: x86_64, arm64 or i386 [default: what a container image says, else the host's]
    #[arg(long)]
    arch: Option<ami::Architecture>,
    /// Take the kernel from this image, or use this kernel [default: Debian's]
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Size of the root, such as 2G [default: the content and headroom]
    #[arg(long)]
    root_size: Option<crate::recipe::Size>,
    /// The guest-init program [default: the one beside imgtool]
    #[arg(long, env = "KILN_GUEST_INIT")]
    guest_init: Option<PathBuf>,
}

/// A format that `convert` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// The ext4 itself, sparse
    Raw,
    /// QEMU's copy-on-write format
    Qcow2,
    /// The files, with owners, attributes and devices
    Tar,
}

#[derive(Debug, Args)]
struct Extract {
    /// The image
    image: PathBuf,
    /// Files and directories in it [default: all]
    #[arg(conflicts_with = "part")]
    paths: Vec<String>,
    /// A part instead: kernel, initramfs, root, sbom, memory or state
    #[arg(long)]
    part: Option<ami::PartName>,
    /// Into this directory; with --part, this file
    #[arg(short, long)]
    output: PathBuf,
}

/// The status when standard output could not be written, as `vmm` has it.
const UNWRITTEN: u8 = 120;
/// The status when whoever read standard output has left, as in `imgtool ls … | head`: 128 + SIGPIPE, as with
/// other programs.
const NOT_READ: u8 = 141;

/// Run the command that the process was started with.
pub fn main() -> ExitCode {
    let mut out = match output() {
        Ok(out) => BufWriter::new(out),
        Err(error) => return report(&error.into()),
    };
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli.command, &mut out),
        Err(error) if error.use_stderr() => error.exit(),
        Err(help) => print_help(&help, &mut out),
    };
    match result.and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// Standard output, of which Rust's own type hides that it is closed.
fn output() -> std::io::Result<std::fs::File> {
    let owned = std::io::stdout().as_fd().try_clone_to_owned()?;
    Ok(owned.into())
}

/// Help and version, which are output like any other.
fn print_help(help: &clap::Error, out: &mut dyn Write) -> Result<(), Error> {
    let text = help.render();
    if std::io::stdout().is_terminal() {
        return Ok(write!(out, "{}", text.ansi())?);
    }
    Ok(write!(out, "{text}")?)
}

/// Says what failed, and returns the status.
fn report(error: &Error) -> ExitCode {
    let status = match error {
        Error::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return NOT_READ.into(),
        Error::Output(_) => UNWRITTEN.into(),
        _ => ExitCode::FAILURE,
    };
    // Nothing is left to do when even that fails.
    let _ = writeln!(std::io::stderr(), "imgtool: {}", error.report());
    status
}

fn run(command: Command, out: &mut dyn Write) -> Result<(), Error> {
    match command {
        Command::Build(arguments) => make::build(&arguments, out),
        Command::Lock(arguments) => make::lock(&arguments, out),
        Command::Inspect { image, json } => image::inspect(&image, json, out),
        Command::Verify { image, key, json } => image::verify(&image, key.as_deref(), json, out),
        Command::Ls {
            image,
            path,
            long,
            recursive,
        } => files::ls(&image, &path, long, recursive, out),
        Command::Cat { image, paths } => files::cat(&image, &paths, out),
        Command::Extract(arguments) => match arguments.part {
            Some(part) => image::extract_part(&arguments.image, part, &arguments.output, out),
            None => files::extract(&arguments.image, &arguments.paths, &arguments.output, out),
        },
        Command::Diff {
            before,
            after,
            times,
            json,
        } => compare::diff(&before, &after, times, json, out),
        Command::Du { image, html, lines } => compare::du(&image, html.as_deref(), lines, out),
        Command::Sbom { image } => image::sbom(&image, out),
        Command::Keygen { file } => transport::keygen(&file, out),
        Command::Sign { image, key } => transport::sign(&image, &key, out),
        Command::Convert {
            image, to, output, ..
        } => match to {
            Some(format) => transport::convert(&image, format, &output, out),
            None => transport::cool(&image, &output, out),
        },
        Command::Import(arguments) => make::import(&arguments, out),
        Command::Pack { image, output } => transport::pack(&image, output.as_deref(), out),
        Command::Unpack { packed, output } => transport::unpack(&packed, output.as_deref(), out),
        Command::Completions { shell } => {
            // Into memory first: the generator does not expect its writer to fail.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "imgtool", &mut script);
            Ok(out.write_all(&script)?)
        }
        Command::Man { directory } => {
            let made = std::fs::create_dir_all(&directory);
            let written = made.and_then(|()| clap_mangen::generate_to(Cli::command(), &directory));
            written.map_err(|source| Error::Write {
                path: directory,
                source,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lost_output_has_exit_status_120() {
        let lost = |kind: std::io::ErrorKind| report(&Error::Output(kind.into()));
        assert_eq!(lost(std::io::ErrorKind::StorageFull), ExitCode::from(120));
        assert_eq!(lost(std::io::ErrorKind::BrokenPipe), ExitCode::from(141));
    }

    #[test]
    fn completions_that_cannot_be_written_are_an_error() {
        for shell in [Shell::Bash, Shell::Zsh] {
            let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
            let printed = run(Command::Completions { shell }, &mut { full });
            assert!(matches!(printed, Err(Error::Output(_))));
        }
    }

    #[test]
    fn every_shell_and_manual_page_is_generated() {
        let mut out = Vec::new();
        run(Command::Completions { shell: Shell::Bash }, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("inspect"));
        let dir = tempfile::tempdir().unwrap();
        run(
            Command::Man {
                directory: dir.path().into(),
            },
            &mut Vec::new(),
        )
        .unwrap();
        assert!(dir.path().join("imgtool-build.1").exists());
    }
}
