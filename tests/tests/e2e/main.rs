//! Kiln through its command line: every test of a table, on every ground that this machine can offer.
//!
//! A ground that is not there (no QEMU, no programs for it) makes its tests ignored, by name and with the reason on standard error;
//! under CI that is a failure.

mod image;
mod run;

use std::process::ExitCode;
use std::sync::Arc;

use kiln_tests::arch::Arch;
use kiln_tests::dist::Dist;
use kiln_tests::ground::Ground;
use kiln_tests::lab::Lab;
use libtest_mimic::{Arguments, Failed, Trial};

/// A test: a story told on a ground.
type Story = fn(&Ground) -> anyhow::Result<()>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let host = match Arch::host()
        .and_then(Dist::build)
        .and_then(|dist| dist.image("examples/hello.toml"))
    {
        Ok(image) => image,
        Err(error) => {
            eprintln!("the programs or the hello image could not be built: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    eprintln!("e2e: images are in {}", host.with_file_name("").display());
    let home = tempfile::tempdir().expect("a temporary folder for the tests' state");
    let ci = std::env::var_os("CI").is_some();

    let here = Ground::here(home.path().to_owned()).expect("this architecture is known");
    let mut trials = on("soft", here, None, &[image::STORIES, run::STORIES]);
    let labs = [Arch::X86_64];
    for arch in labs {
        let missing = Lab::missing(arch);
        if let Some(why) = &missing {
            eprintln!("e2e: no lab for {arch}: {why}");
            if ci {
                return ExitCode::FAILURE;
            }
        }
        trials.extend(on(
            &format!("lab-{arch}"),
            Ground::lab(arch),
            missing,
            &[run::STORIES],
        ));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One trial per story; all ignored when the ground is missing.
fn on(name: &str, ground: Ground, missing: Option<String>, tables: &[&[(&str, Story)]]) -> Vec<Trial> {
    let ground = Arc::new(ground);
    let trial = |&(story, tell): &(&str, Story)| {
        let ground = Arc::clone(&ground);
        let told = move || tell(&ground).map_err(|error| Failed::from(format!("{error:#}")));
        Trial::test(format!("{name}::{story}"), told).with_ignored_flag(missing.is_some())
    };
    tables.iter().flat_map(|table| table.iter()).map(trial).collect()
}
