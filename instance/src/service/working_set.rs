//! The working set of a warm image: the pages of its memory that a guest needs until it is ready. It is seen
//! once, when the image is made: a guest goes on from it, and the kernel tells which pages of the image its
//! process has mapped (proc_pid_pagemap(5)), which needs no privilege.
//!
//! The kernel maps pages that are in the page cache around one that is touched, so that the set has some pages
//! too many. A disk reads them in the same request.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use ami::{PartName, Source, Writer};
use machine::memory::saved::{PageRun, runs_of};
use machine::memory::{PAGE, host_page};
use machine::snapshot::State;

use crate::images::image::Image;
use crate::process::restore::MAX_STATE;
use crate::{Error, Result};

/// Bytes of an entry of `pagemap`.
const ENTRY: usize = 8;
/// Bits of an entry: the page is there, or on a swap device.
const PRESENT: u64 = 1 << 63 | 1 << 62;
/// Entries that are read in one go.
const CHUNK: usize = 4096;

/// A part of a process's memory that is mapped from a file.
struct Mapping {
    start: u64,
    end: u64,
    /// Where it begins in the file.
    offset: u64,
}

/// The pages of the memory part of `image` that the process `pid` has mapped, from the part's start.
///
/// # Errors
/// When the kernel does not say.
pub fn of_process(pid: u32, image: &Image) -> Result<Vec<PageRun>> {
    let (offset, length) = image.range(PartName::Memory)?;
    let metadata = image.file().metadata();
    let inode = metadata.map_err(Error::file("examining", image.path()))?.ino();
    let found = touched(pid, inode, offset, length);
    found.map_err(Error::os("looking which pages of its memory a guest needs"))
}

fn touched(pid: u32, inode: u64, offset: u64, length: u64) -> io::Result<Vec<PageRun>> {
    let directory = Path::new("/proc").join(pid.to_string());
    let maps = fs::read_to_string(directory.join("maps"))?;
    let pagemap = File::open(directory.join("pagemap"))?;
    let host_page = host_page();
    let mut pages = Vec::new();
    for mapping in maps.lines().filter_map(|line| mapping(line, inode)) {
        let in_part = |at: u64| at.checked_sub(offset).filter(|at| *at < length);
        for at in present(&pagemap, &mapping, host_page)? {
            let first = in_part(mapping.offset + (at - mapping.start)).map(|at| at / PAGE);
            pages.extend(
                first
                    .into_iter()
                    .flat_map(|first| first..first + host_page / PAGE),
            );
        }
    }
    pages.sort_unstable();
    Ok(runs_of(pages))
}

/// A line of `maps` that is about a mapping of the file with this number: `START-END PERMISSIONS OFFSET DEVICE
/// INODE PATH`. Which device it is on cannot be told on every file system.
fn mapping(line: &str, inode: u64) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    let found: u64 = fields.nth(1)?.parse().ok()?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    (found == inode).then_some(Mapping {
        start: number(start)?,
        end: number(end)?,
        offset: number(offset)?,
    })
}

/// The addresses of the pages of a mapping that are there.
fn present(pagemap: &File, mapping: &Mapping, page: u64) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    let mut entries = vec![0; CHUNK * ENTRY];
    let mut at = mapping.start;
    while at < mapping.end {
        let count = ((mapping.end - at) / page).clamp(1, CHUNK as u64);
        let bytes = &mut entries[..count as usize * ENTRY];
        pagemap.read_exact_at(bytes, at / page * ENTRY as u64)?;
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        let there = entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| u64::from_ne_bytes(**entry) & PRESENT != 0);
        found.extend(there.map(|(number, _)| at + number as u64 * page));
        at += count * page;
    }
    Ok(found)
}

/// Writes `image` anew, in its place, with this working set. Returns its new id.
///
/// # Errors
/// When it cannot be written; it is as it was then.
pub fn write(image: &Image, working_set: Vec<PageRun>) -> Result<String> {
    let (state, _) = image.warm(MAX_STATE)?;
    let state = State::from_bytes(&state)?
        .with_working_set(working_set)
        .to_bytes()?;
    let kept = [
        PartName::Kernel,
        PartName::Initramfs,
        PartName::Root,
        PartName::Memory,
    ];
    let mut lengths = Vec::new();
    for part in kept {
        lengths.push((part, image.range(part)?.1));
    }
    lengths.push((PartName::State, state.len() as u64));
    let writer = Writer::create(image.path(), &lengths)?;
    for part in kept {
        let (offset, _) = image.range(part)?;
        let file = image.file();
        writer.fill(part, Source::File { file, offset })?;
    }
    writer.fill(PartName::State, Source::Bytes(&state))?;
    let (id, _) = writer.finish(image.manifest().clone(), &|_| {})?;
    Ok(id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::memory::{Bytes, GuestAddress, Part, allocate};

    /// What this process has touched of a file that it has mapped, as guest RAM, from the file's third page on.
    #[test]
    fn pages_that_were_touched_are_found_by_their_place_in_the_part() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let pages = 4096;
        // Of a hole nothing is in the page cache: only what is touched is mapped.
        file.as_file().set_len((2 + pages) * PAGE).unwrap();
        let whole = Part::open(file.path()).unwrap();
        let part = whole.slice(2 * PAGE, pages * PAGE).unwrap();
        let memory = allocate(&[(0, pages * PAGE)]).unwrap();
        part.place(&memory, 0).unwrap();
        let inode = file.as_file().metadata().unwrap().ino();
        let found = |offset, length| touched(std::process::id(), inode, offset, length).unwrap();
        assert_eq!(found(2 * PAGE, pages * PAGE), []);
        memory.write_obj(1u8, GuestAddress(100 * PAGE)).unwrap();
        let runs = found(2 * PAGE, pages * PAGE);
        let covers = |page: u64| {
            runs.iter()
                .any(|run| (run.start..run.start + run.count).contains(&page))
        };
        assert!(covers(100) && !covers(3000), "{runs:?}");
        // Another part of the same file.
        assert_eq!(found(2000 * PAGE, 1000 * PAGE), []);
    }

    #[test]
    fn mappings_of_other_files_are_none() {
        let line = "7f0000000000-7f0000002000 rw-p 00003000 fd:01 4711 /srv/an image.ami";
        let found = mapping(line, 4711).unwrap();
        assert_eq!(
            (found.start, found.end, found.offset),
            (0x7f00_0000_0000, 0x7f00_0000_2000, 0x3000)
        );
        assert!(mapping(line, 4712).is_none());
        assert!(mapping("7f0000000000-7f0000002000 rw-p 00000000 00:00 0", 4711).is_none());
        assert!(mapping("", 0).is_none());
    }
}
