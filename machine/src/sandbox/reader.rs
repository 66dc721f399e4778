//! A small process that reads one file for the confined one: a file that other programs replace by
//! renaming another over it.
//!
//! Landlock's rules apply to inodes, so the right to read such a file ends with its first replacement, and a
//! rule for its directory would allow all files in it. This process is started before the other one is
//! confined. A request is one byte of any value, and the answer is the content of the file; it
//! may open files for reading in two directories and make six system calls.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::helper::start_helper;
use super::{Error, Kind, Plan, Right, files, filter, privileges};

/// Bytes of the file that are answered.
pub(super) const FILE_CAP: usize = 64 << 10;

/// The file, and the way to its reader.
static READER: OnceLock<(PathBuf, Mutex<UnixStream>)> = OnceLock::new();

/// Starts the process. The caller's must have one thread only.
pub(super) fn start(path: &Path) -> Result<(), Error> {
    let serve = |socket| {
        let _ = serve(File::from(OwnedFd::from(socket)), path);
    };
    let socket = start_helper(serve).map_err(Error::os("starting the process that reads a file for it"))?;
    // No other code can have set it: a process is confined once.
    let _ = READER.set((path.to_owned(), Mutex::new(socket)));
    Ok(())
}

/// What the file at `path` holds, its first 64 KiB, by way of its reader where it has one.
///
/// # Errors
/// Those of opening and reading it.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let Some((_, socket)) = READER.get().filter(|(known, _)| known == path) else {
        return read_here(path);
    };
    let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
    socket.write_all(&[0])?;
    let mut answer = [0; 4];
    socket.read_exact(&mut answer)?;
    let answer = i32::from_le_bytes(answer);
    let length = usize::try_from(answer).map_err(|_| io::Error::from_raw_os_error(answer.wrapping_neg()))?;
    if length > FILE_CAP {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = vec![0; length];
    socket.read_exact(&mut content)?;
    Ok(content)
}

fn read_here(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?
        .take(FILE_CAP as u64)
        .read_to_end(&mut content)?;
    Ok(content)
}

/// In the new process: answers until the other one ends. The socket is read and written as a file is: no
/// other call is needed.
fn serve(mut socket: File, path: &Path) -> io::Result<()> {
    // What the other one's terminal or its user sends is not for this one.
    block_signals()?;
    // The directories of the name and of what it may lead to.
    let target = path.canonicalize().unwrap_or_default();
    let directories = [path, &target].map(|path| path.parent().map(Path::to_owned));
    let plan = Plan {
        files: directories
            .into_iter()
            .flatten()
            .map(|path| (path, Right::Read))
            .collect(),
        ..Plan::default()
    };
    privileges::drop_all_but(&Plan::default())?;
    files::restrict(&plan)?;
    // All the memory that it will have: from here on it can neither ask for more nor give some back.
    let (mut content, mut request) = (ManuallyDrop::new(vec![0; 4 + FILE_CAP]), [0]);
    filter::install(Kind::Reader)?;
    while socket.read(&mut request)? == 1 {
        let read = File::open(path).and_then(|file| fill(file, &mut content[4..]));
        let length = read.as_ref().copied().unwrap_or(0);
        let answer = match read {
            Ok(length) => i32::try_from(length).unwrap_or(0),
            Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
        };
        content[..4].copy_from_slice(&answer.to_le_bytes());
        socket.write_all(&content[..4 + length])?;
    }
    Ok(())
}

/// Reads until `room` is full or the file ends.
fn fill(mut file: File, room: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read(&mut room[length..])? {
            0 => return Ok(length),
            count => length += count,
        }
    }
}

fn block_signals() -> io::Result<()> {
    // SAFETY: a set of signals is numbers only, and is filled before it is used.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` lives until both calls return; the old set is not asked for.
    let done = unsafe {
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut())
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
