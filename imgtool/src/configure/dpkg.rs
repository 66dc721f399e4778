//! Inside the sandbox: packages installed by the target's own dpkg, and commands run in a root.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::batches::{self, Batches, Needs};
use super::helper::in_root;
use super::job::{Failure, Job, Message, Task};
use super::mounts::{Mounts, enable_foreign, make_private, root_in_memory};
use super::{cleanup, disk, edit};
use crate::lock::Package;
use crate::progress::Step;
use crate::root::archive;
use crate::store::Store;
use crate::tree::{Meta, Tree};
use crate::unpack::{self, Deb, Filter, Unpack};

/// As much of a program's output as a person reads after a failure.
const OUTPUT_TAIL: u64 = 6000;
/// No daemon starts while an image is made: policy-rc.d, as Debian's init scripts and deb-systemd-invoke ask it.
const POLICY_RC_D: &str = "#!/bin/sh\nexit 101\n";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A job that failed.
#[derive(Debug)]
pub struct Failed(pub Failure);

impl Failed {
    /// Anything without an advice of its own.
    pub fn other(error: impl std::fmt::Display) -> Self {
        Self(Failure::Other(error.to_string()))
    }

    fn io(path: &Path, error: &io::Error) -> Self {
        let text = format!("{}: {error}", path.display());
        Self(match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::Full(text),
            _ => Failure::Other(text),
        })
    }
}

impl From<disk::Error> for Failed {
    fn from(error: disk::Error) -> Self {
        match error {
            disk::Error::Io { path, source } => Self::io(&path, &source),
            other => Self::other(other),
        }
    }
}

/// Does the job.
pub fn run(job: &Job) -> Result<(), Failed> {
    make_private()?;
    if job.user_namespace && crate::recipe::Arch::host() != Some(job.arch) {
        enable_foreign(job.arch, &job.work.join("binfmt"))?;
    }
    let root = job.work.join("root");
    fs::create_dir(&root).map_err(|e| Failed::io(&root, &e))?;
    let worker = Worker {
        job,
        root: &root,
        log: job.work.join("log"),
    };
    match &job.task {
        Task::Install {
            base,
            packages,
            store,
            exclude,
            include,
            epoch,
            sources,
        } => {
            let filter = Filter::new(exclude, include);
            let store = Store::at(store);
            match base {
                None => worker.install(packages, &store, &filter, *epoch, sources),
                Some(base) => worker.add(base, packages, &store, &filter, *epoch),
            }
        }
        Task::Run {
            root,
            name,
            steps,
            keep,
            epoch,
        } => {
            worker.run_steps(root, name, steps, keep.is_none(), *epoch)?;
            worker.collect(keep.as_deref().unwrap_or_default(), *epoch)
        }
    }
}

struct Worker<'a> {
    job: &'a Job,
    root: &'a Path,
    log: PathBuf,
}

impl Worker<'_> {
    fn install(
        &self,
        packages: &[Package],
        store: &Store,
        filter: &Filter,
        epoch: Option<i64>,
        sources: &str,
    ) -> Result<(), Failed> {
        let debs = self.job.work.join("packages");
        fs::create_dir(&debs).map_err(|e| Failed::io(&debs, &e))?;
        say(Message::Start(
            "decompress packages".into(),
            packages.len() as u64,
        ));
        let (needs, newest) = prepare(packages, store, &debs)?;
        say(Message::Finish(format!("{} packages", packages.len())));
        let epoch = epoch.unwrap_or(newest);
        root_in_memory(self.root, size_of(&debs)?);
        let batches = batches::plan(&needs);
        self.bootstrap(packages, &batches.essential, &debs, filter, epoch)?;
        {
            let _mounts = Mounts::new(self.root, Some(&debs))?;
            self.configure(&batches, packages.len(), epoch)?;
        }
        self.write_sources(sources)?;
        self.collect("", epoch)
    }

    /// Adds packages to a root in which dpkg works.
    fn add(
        &self,
        base: &Path,
        packages: &[Package],
        store: &Store,
        filter: &Filter,
        epoch: Option<i64>,
    ) -> Result<(), Failed> {
        let debs = self.job.work.join("packages");
        fs::create_dir(&debs).map_err(|e| Failed::io(&debs, &e))?;
        let (needs, newest) = prepare(packages, store, &debs)?;
        let mut tree = archive::read(base).map_err(Failed::other)?;
        // Nothing in the result is newer than the newest of what it is made of.
        let epoch = epoch.unwrap_or(newest.max(tree.node(Tree::ROOT).meta.mtime));
        let length = fs::metadata(base).map_or(u64::MAX, |m| m.len());
        root_in_memory(self.root, length.saturating_add(size_of(&debs)?));
        write_policy(&mut tree, filter, epoch)?;
        disk::write(&tree, self.root)?;
        let mut batches = batches::plan(&needs);
        let essential = std::mem::take(&mut batches.essential);
        if !essential.is_empty() {
            batches.later.insert(0, essential);
        }
        {
            let _mounts = Mounts::new(self.root, Some(&debs))?;
            self.configure(&batches, packages.len(), epoch)?;
        }
        self.collect("", epoch)
    }

    /// Unpacks the essential packages, so that there is a system in which dpkg can install them.
    fn bootstrap(
        &self,
        packages: &[Package],
        essential: &[usize],
        debs: &Path,
        filter: &Filter,
        epoch: i64,
    ) -> Result<(), Failed> {
        say(Message::Start(
            "unpack the essential".into(),
            essential.len() as u64,
        ));
        let mut tree = Tree::new();
        unpack::merge_usr(&mut tree, self.job.arch.debian(), 0).map_err(Failed::other)?;
        let order: Vec<usize> = essential.to_vec();
        let chosen: Vec<Package> = order.iter().map(|i| packages[*i].clone()).collect();
        let load = |package: &Package| {
            let i = packages.iter().position(|p| p == package).unwrap_or_default();
            let path = debs.join(file_name(i));
            fs::read(&path).map_err(|source| unpack::Error::Scratch { path, source })
        };
        let (scratch, step) = (&*self.job.work, &Ticks as &dyn Step);
        let unpack = Unpack {
            load: &load,
            packages: &chosen,
            filter,
            scratch,
            step,
        };
        unpack.unpack_into(&mut tree).map_err(Failed::other)?;
        prepare_root(&mut tree, filter, epoch)?;
        disk::write(&tree, self.root)?;
        say(Message::Finish(format!("{} packages", essential.len())));
        Ok(())
    }

    fn configure(&self, batches: &Batches, total: usize, epoch: i64) -> Result<(), Failed> {
        say(Message::Start("configure".into(), total as u64));
        let files = |batch: &[usize]| {
            batch
                .iter()
                .map(|i| format!("/run/packages/{}", file_name(*i)))
                .collect::<Vec<_>>()
        };
        // The essential packages depend on each other in circles: they are there already, unpacked.
        if !batches.essential.is_empty() {
            self.dpkg(
                &["--install", "--force-depends"],
                &files(&batches.essential),
                epoch,
            )?;
        }
        for batch in &batches.later {
            self.dpkg(&["--unpack"], &files(batch), epoch)?;
            self.dpkg(&["--configure", "--pending"], &[], epoch)?;
        }
        say(Message::Finish(format!(
            "{total} packages, {} batches",
            batches.later.len() + 1
        )));
        Ok(())
    }

    fn dpkg(&self, action: &[&str], files: &[String], epoch: i64) -> Result<(), Failed> {
        // The database is written once by us at the end; no need to wait for the disk in between.
        let mut words = vec!["dpkg", "--force-unsafe-io", "--log=/dev/null"];
        words.extend(action);
        words.extend(files.iter().map(String::as_str));
        self.program(&words, epoch)
    }

    /// Runs a program in the root. Its output is kept for the case that it fails.
    fn program(&self, words: &[&str], epoch: i64) -> Result<(), Failed> {
        let log = File::create(&self.log).map_err(|e| Failed::io(&self.log, &e))?;
        let errors = log.try_clone().map_err(|e| Failed::io(&self.log, &e))?;
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
            .map_err(Failed::other)?;
        if let Some(stdout) = child.stdout.take() {
            copy_output(stdout, log).map_err(|e| Failed::io(&self.log, &e))?;
        }
        let status = child.wait().map_err(Failed::other)?;
        if status.success() {
            return Ok(());
        }
        let output = tail(&self.log).unwrap_or_else(|e| e.to_string());
        // A program of another architecture without an interpreter: ENOEXEC, as `enter` says it.
        if output.contains("Exec format error") {
            return Err(Failed(Failure::Foreign {
                arch: self.job.arch,
                why: "Exec format error".into(),
            }));
        }
        let command = words.iter().take(8).copied().collect::<Vec<_>>().join(" ");
        Err(Failed(Failure::Program {
            command,
            status: status.to_string(),
            output,
        }))
    }

    fn write_sources(&self, sources: &str) -> Result<(), Failed> {
        let dir = self.root.join("etc/apt/sources.list.d");
        if sources.is_empty() || !dir.is_dir() {
            return Ok(());
        }
        let path = dir.join("debian.sources");
        fs::write(&path, sources).map_err(|e| Failed::io(&path, &e))
    }

    /// `small` says that the steps add little to what is in the root.
    fn run_steps(
        &self,
        archive_path: &Path,
        name: &str,
        steps: &[String],
        small: bool,
        epoch: i64,
    ) -> Result<(), Failed> {
        let tree = archive::read(archive_path).map_err(Failed::other)?;
        if small {
            root_in_memory(
                self.root,
                fs::metadata(archive_path).map_or(u64::MAX, |m| m.len()),
            );
        }
        disk::write(&tree, self.root)?;
        say(Message::Start(name.to_owned(), steps.len() as u64));
        {
            let _mounts = Mounts::new(self.root, None)?;
            for step in steps {
                self.program(&["/bin/sh", "-euc", step], epoch)?;
                say(Message::Tick);
            }
        }
        say(Message::Finish(format!("{} steps", steps.len())));
        Ok(())
    }

    /// Reads a directory of the root back, removes what belongs to this machine, and writes the archive.
    fn collect(&self, directory: &str, epoch: i64) -> Result<(), Failed> {
        let mut tree = disk::read(&self.root.join(directory))?;
        cleanup::clean(&mut tree, epoch).map_err(Failed::other)?;
        let output = &self.job.output;
        let failed = |e: io::Error| Failed::io(output, &e);
        let file = File::create(output).map_err(failed)?;
        archive::write(&tree, io::BufWriter::with_capacity(1 << 18, file)).map_err(failed)
    }
}

/// What dpkg and maintainer scripts are told about this root. Into the tree, not onto the disk: there, a link of the root
/// could lead out of it.
fn write_policy(tree: &mut Tree, filter: &Filter, epoch: i64) -> Result<(), Failed> {
    write_file(tree, "usr/sbin/policy-rc.d", POLICY_RC_D, 0o755, epoch)?;
    let options = filter.dpkg_options();
    if !options.is_empty() {
        write_file(tree, "etc/dpkg/dpkg.cfg.d/excludes", &options, 0o644, epoch)?;
    }
    Ok(())
}

/// What dpkg needs in order to begin.
fn prepare_root(tree: &mut Tree, filter: &Filter, epoch: i64) -> Result<(), Failed> {
    for empty in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
        write_file(tree, empty, "", 0o644, epoch)?;
    }
    for dir in ["var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        tree.create_dirs(dir.as_bytes(), &Meta::new(0o755, 0, 0, epoch))
            .map_err(Failed::other)?;
    }
    write_policy(tree, filter, epoch)
}

fn write_file(tree: &mut Tree, path: &str, text: &str, mode: u16, epoch: i64) -> Result<(), Failed> {
    let meta = Meta::new(mode, 0, 0, epoch);
    let is_new = tree.find(path.as_bytes()).map_err(Failed::other)?.is_none();
    edit::write_text(tree, path, text.into(), meta).map_err(Failed::other)?;
    if let Some(id) = tree.find_followed(path.as_bytes()).map_err(Failed::other)? {
        tree.node_mut(id).meta.mode = mode;
    }
    // A new name changes its directory.
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    if let Some(id) = tree.find_followed(parent.as_bytes()).map_err(Failed::other)?
        && is_new
    {
        tree.node_mut(id).meta.mtime = epoch;
    }
    Ok(())
}

fn say(message: Message) {
    // If nobody listens, the end will show.
    let _ = message.send(&mut io::stdout());
}

/// Advances the caller's step.
struct Ticks;

impl Step for Ticks {
    fn advance(&self, units: u64) {
        (0..units).for_each(|_| say(Message::Tick));
    }

    fn finish(&self, _summary: &str) {}
}

/// The bytes of the files in a directory.
fn size_of(dir: &Path) -> Result<u64, Failed> {
    let failed = |e: io::Error| Failed::io(dir, &e);
    let mut total = 0;
    for entry in fs::read_dir(dir).map_err(failed)? {
        total += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
    }
    Ok(total)
}

fn file_name(index: usize) -> String {
    format!("{index}.deb")
}

/// Writes every package uncompressed, on all processors: dpkg would decompress one after the other. Returns what
/// decides their order, and the newest time in them.
fn prepare(packages: &[Package], store: &Store, debs: &Path) -> Result<(Vec<Needs>, i64), Failed> {
    let next = AtomicUsize::new(0);
    let newest = AtomicI64::new(0);
    let needs = Mutex::new(vec![Needs::default(); packages.len()]);
    let failure = Mutex::new(None);
    let work = || {
        while let Some((i, package)) = {
            let i = next.fetch_add(1, Ordering::Relaxed);
            packages.get(i).map(|package| (i, package))
        } {
            match prepare_one(package, store, &debs.join(file_name(i))) {
                Ok((need, time)) => {
                    newest.fetch_max(time, Ordering::Relaxed);
                    if let Ok(mut needs) = needs.lock() {
                        needs[i] = need;
                    }
                    say(Message::Tick);
                }
                Err(error) => {
                    next.store(packages.len(), Ordering::Relaxed);
                    if let Ok(mut first) = failure.lock() {
                        first.get_or_insert(error);
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    if let Some(error) = failure.into_inner().ok().flatten() {
        return Err(error);
    }
    let needs = needs.into_inner().map_err(Failed::other)?;
    Ok((needs, newest.into_inner()))
}

fn prepare_one(package: &Package, store: &Store, path: &Path) -> Result<(Needs, i64), Failed> {
    let bytes = unpack::from_store(store)(package).map_err(Failed::other)?;
    let refused = |damage: unpack::Damage| match damage {
        unpack::Damage::Read(e) if e.kind() == io::ErrorKind::StorageFull => Failed::io(path, &e),
        damage => Failed::other(unpack::Error::Package {
            package: package.to_string(),
            damage,
        }),
    };
    let deb = Deb::parse(&bytes).map_err(refused)?;
    let control = deb.control().map_err(refused)?;
    let file = File::create(path).map_err(|e| Failed::io(path, &e))?;
    let mut out = io::BufWriter::with_capacity(1 << 18, file);
    let newest = unpack::repack(&deb, &mut out).map_err(refused)?;
    Ok((Needs::parse(&control.paragraph), newest))
}

/// Copies a program's output to the log. The line with which dpkg begins to configure a package advances the step;
/// its `--status-fd` would have to be a descriptor of its own, because dpkg closes it for the scripts.
fn copy_output(from: impl Read, mut log: File) -> io::Result<()> {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        if line.starts_with(b"Setting up ") {
            say(Message::Tick);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;

    /// A base's links are its own: nothing is written where they would lead on this machine.
    #[test]
    fn a_link_of_the_root_stays_in_it() {
        let mut tree = Tree::new();
        let link = Kind::Symlink(b"/tmp/elsewhere".to_vec());
        tree.insert(b"usr", link, Meta::new(0o777, 0, 0, 0)).unwrap();
        prepare_root(&mut tree, &Filter::default(), 7).unwrap();
        let id = tree.find(b"tmp/elsewhere/sbin/policy-rc.d").unwrap().unwrap();
        assert_eq!(tree.node(id).meta, Meta::new(0o755, 0, 0, 7));
        assert!(tree.find(b"var/lib/dpkg/updates").unwrap().is_some());
    }
}
