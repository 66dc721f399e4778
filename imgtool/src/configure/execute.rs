//! Carries out a [`Job`](super::job::Job) inside the sandbox.

use std::fs;

use ami::Architecture;
use nix::sys::personality::{self, Persona};

use super::disk;
use super::failure::Failure;
use super::input::InputRoot;
use super::job::{Job, Message, Task};
use super::mounts::{Mounts, enable_foreign, make_private, root_in_memory};
use super::worker::Worker;
use crate::store::Store;
use crate::unpack::Filter;

/// The execution domain of 32-bit programs (linux/personality.h).
const PER_LINUX32: i32 = 8;

/// Does the job.
pub fn run(job: &Job) -> Result<(), Failure> {
    make_private()?;
    if job.arch == Architecture::I386 {
        // `uname -m` says i686, as it does where an emulator runs these programs.
        personality::set(Persona::from_bits_retain(PER_LINUX32)).map_err(Failure::other)?;
    }
    if job.user_namespace && !job.arch.is_native() {
        enable_foreign(job.arch, &job.work.join("binfmt"))?;
    }
    let root = job.work.join("root");
    fs::create_dir(&root).map_err(|e| Failure::io(&root, &e))?;
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

impl Worker<'_> {
    /// `small` says that the steps add little to what is in the root.
    fn run_steps(
        &self,
        root: &InputRoot,
        name: &str,
        steps: &[String],
        small: bool,
        epoch: i64,
    ) -> Result<(), Failure> {
        if small {
            root_in_memory(self.root, root.bytes());
        }
        disk::write(&root.read().map_err(Failure::other)?, self.root)?;
        Message::Start(name.to_owned(), steps.len() as u64).say();
        {
            let _mounts = Mounts::new(self.root, None)?;
            for step in steps {
                self.program(&["/bin/sh", "-euc", step], epoch)?;
                Message::Tick.say();
            }
        }
        Message::Finish(format!("{} steps", steps.len())).say();
        Ok(())
    }
}
