//! Runs programs in the root in the sandbox, and returns the changed root.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::chroot::in_root;
use super::failure::Failure;
use super::job::{Job, Message};
use super::{cleanup, disk};
use crate::archive;

/// As much of a program's output as a person reads after a failure.
const OUTPUT_TAIL: u64 = 6000;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Works on a root.
pub struct Worker<'a> {
    /// What it does.
    pub job: &'a Job,
    /// The directory of the root.
    pub root: &'a Path,
    /// The output of the last program.
    pub log: PathBuf,
}

impl Worker<'_> {
    /// Runs a program in the root. Its output is kept for the case that it fails.
    pub fn program(&self, words: &[&str], epoch: i64) -> Result<(), Failure> {
        let log = File::create(&self.log).map_err(|e| Failure::io(&self.log, &e))?;
        let errors = log.try_clone().map_err(|e| Failure::io(&self.log, &e))?;
        let mut child = in_root(self.root)
            .args(words)
            .env_clear()
            .envs([
                ("PATH", PATH),
                ("HOME", "/root"),
                ("LC_ALL", "C.UTF-8"),
                ("TZ", "UTC"),
                ("TERM", "dumb"),
                ("DEBIAN_FRONTEND", "noninteractive"),
                ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
                ("SOURCE_DATE_EPOCH", &epoch.to_string()),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(Failure::other)?;
        if let Some(stdout) = child.stdout.take() {
            copy_output(stdout, log).map_err(|e| Failure::io(&self.log, &e))?;
        }
        let status = child.wait().map_err(Failure::other)?;
        if status.success() {
            return Ok(());
        }
        let output = tail(&self.log).unwrap_or_else(|e| e.to_string());
        // A program of another architecture without an interpreter: ENOEXEC, as `enter` says it.
        if output.contains("Exec format error") {
            return Err(Failure::Foreign {
                arch: self.job.arch,
                why: "Exec format error".into(),
            });
        }
        let command = words.iter().take(8).copied().collect::<Vec<_>>().join(" ");
        Err(Failure::Program {
            command,
            status: status.to_string(),
            output,
        })
    }

    /// Reads a directory of the root back, removes what belongs to this machine, and writes the archive.
    pub fn collect(&self, directory: &str, epoch: i64) -> Result<(), Failure> {
        let mut tree = disk::read(&self.root.join(directory))?;
        cleanup::clean(&mut tree, epoch).map_err(Failure::other)?;
        let output = &self.job.output;
        let failed = |e: io::Error| Failure::io(output, &e);
        let file = File::create(output).map_err(failed)?;
        archive::write(&tree, io::BufWriter::with_capacity(1 << 18, file)).map_err(failed)
    }
}

/// Copies a program's output to the log. The line with which dpkg begins to configure a package advances the
/// step; its `--status-fd` would have to be a descriptor of its own, because dpkg closes it for the scripts.
fn copy_output(from: impl Read, mut log: File) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        if line.starts_with(b"Setting up ") {
            Message::Tick.say();
        }
        log.write_all(&line)?;
        line.clear();
    }
    Ok(())
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(OUTPUT_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(OUTPUT_TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(30)..];
    Ok(last
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect::<String>()
        .trim_end()
        .to_owned())
}
