//! `profile`: where the guest's kernel spends its instructions.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::request::{Hardware, NetworkArgs, Storage};
use super::run::Run;
use super::stream::note;
use super::{Context, Status, options, output, value};
use crate::profile::{Report, Symbols, draw};
use instance::images::image::Image;
use instance::process::per_run::PerRun;
use machine::accel::Profiling;
use machine::memory::Part;

/// Boot an image, and show where its kernel spends its instructions
///
/// The boot runs on the software processor with instructions as time, so all runs of an image give the same
/// counts. The instance is removed afterwards.
#[derive(Debug, Args)]
pub struct Profile {
    /// An AMI file, or the id or name of an image in the store
    image: String,

    /// Number of functions to print
    #[arg(long, value_name = "N", default_value_t = 30)]
    top: usize,
    /// A System.map with the names of the kernel's functions, for a kernel without a symbol table
    #[arg(long, value_name = "FILE")]
    system_map: Option<PathBuf>,
    /// Where the folded stacks go (default: the image's name with `.folded`)
    #[arg(long, value_name = "FILE", value_parser = value::output_file)]
    folded: Option<PathBuf>,
    /// Where the flame graph goes (default: the image's name with `.svg`)
    #[arg(long, value_name = "FILE", value_parser = value::output_file)]
    svg: Option<PathBuf>,

    #[command(flatten)]
    hardware: Hardware,
    #[command(flatten)]
    storage: Storage,
    #[command(flatten)]
    network: NetworkArgs,

    /// Write when each step of the boot was reached, as JSON
    #[arg(long, value_name = "FILE")]
    timing: Option<PathBuf>,
    /// How long to wait for the agent
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = value::seconds)]
    wait_timeout: Duration,

    /// What to run in the guest once it is up (default: true)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Profile {
    pub fn run(self, context: &Context) -> anyhow::Result<Status> {
        let path = context.service.image_file(&self.image)?;
        // Before the guest runs, so that a kernel without names costs no boot.
        let symbols = self.symbols(&path)?;
        let stem = path.file_stem().unwrap_or_default();
        let beside = |given: Option<PathBuf>, extension| {
            given.unwrap_or_else(|| Path::new(stem).with_extension(extension))
        };
        let (folded, svg) = (beside(self.folded, "folded"), beside(self.svg, "svg"));

        let profiling = Arc::new(Profiling {
            functions: symbols.starts(),
            result: Mutex::default(),
        });
        let per_run = PerRun {
            timing: self.timing.map(options::timing),
            exits: false,
            icount: true,
            profile: Some(Arc::clone(&profiling)),
            outputs: vec![folded.clone(), svg.clone()],
            ..PerRun::default()
        };
        let command = if self.command.is_empty() {
            vec!["true".to_owned()]
        } else {
            self.command
        };
        let run = Run::once(
            self.image,
            self.hardware,
            self.storage,
            self.network,
            per_run,
            command,
        );
        let status = run.timeout(self.wait_timeout).run(context)?;

        let profile = profiling.result.lock().ok().and_then(|mut result| result.take());
        let report = profile.map_or_else(Report::default, |profile| Report::new(&profile, &symbols));
        let title = format!("{}: {} instructions", stem.display(), report.total());
        write(&folded, &report.folded())?;
        write(&svg, &draw(&report, &title))?;
        print(&report, self.top)?;
        note(format_args!(
            "folded stacks: {}; flame graph: {}",
            folded.display(),
            svg.display()
        ));
        Ok(status)
    }

    fn symbols(&self, image: &Path) -> anyhow::Result<Symbols> {
        if let Some(path) = &self.system_map {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            return Symbols::of_system_map(&text).with_context(|| format!("cannot use {}", path.display()));
        }
        let kernel = match self.hardware.kernel() {
            Some(path) => Part::open(path)?,
            None => Image::open(image)?.kernel()?,
        };
        Ok(Symbols::of_kernel(&kernel.read()?)?)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn print(report: &Report, top: usize) -> anyhow::Result<()> {
    let total = report.total().max(1) as f64;
    let share = |count: u64| format!("{:.2} %", count as f64 * 100.0 / total);
    let rows: Vec<_> = report
        .functions()
        .into_iter()
        .take(top)
        .map(|function| {
            vec![
                function.own.to_string(),
                share(function.own),
                share(function.with_callees),
                function.name,
            ]
        })
        .collect();
    Ok(output::table(
        &["INSTRUCTIONS", "OWN", "WITH CALLEES", "FUNCTION"],
        &rows,
    )?)
}
