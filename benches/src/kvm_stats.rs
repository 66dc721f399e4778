//! What KVM has counted of a monitor's guest, as the host's kernel shows it to root: the same observation for
//! every monitor (Linux, Documentation/filesystems/debugfs.rst; virt/kvm/kvm_main.c has a folder for each
//! virtual machine).

use std::fs;
use std::path::Path;

use super::outcome::Statistic;

/// A folder for each virtual machine, named by the process and the descriptor that made it.
pub const DEBUGFS: &str = "/sys/kernel/debug/kvm";

/// The statistics that are not zero of the virtual machine that the process `pid` has made, below `folder`.
/// None without root, debugfs or KVM.
pub fn of_process(folder: &Path, pid: u32) -> Vec<Statistic> {
    let owner = format!("{pid}-");
    let machines = fs::read_dir(folder).into_iter().flatten().flatten();
    let mine = machines.filter(|entry| entry.file_name().to_string_lossy().starts_with(&owner));
    let files = mine.filter_map(|entry| fs::read_dir(entry.path()).ok()).flatten();
    let mut statistics: Vec<_> = files
        .flatten()
        .filter_map(|file| {
            // Folders of processors and histograms are no numbers.
            let count = fs::read_to_string(file.path()).ok()?.trim().parse().ok()?;
            let name = file.file_name().to_string_lossy().into_owned();
            (count > 0).then_some(Statistic { name, count })
        })
        .collect();
    statistics.sort_by(|a, b| a.name.cmp(&b.name));
    statistics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_processs_machine_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let machine = folder.path().join("12-9");
        fs::create_dir_all(machine.join("vcpu0")).unwrap();
        fs::create_dir(folder.path().join("123-9")).unwrap();
        for (name, text) in [
            ("pf_fixed", "38\n"),
            ("exits", "5800\n"),
            ("nx_lpage_splits", "0\n"),
            ("mmu", "a table\n"),
        ] {
            fs::write(machine.join(name), text).unwrap();
            fs::write(folder.path().join("123-9").join(name), "7\n").unwrap();
        }
        let read: Vec<_> = of_process(folder.path(), 12)
            .into_iter()
            .map(|statistic| (statistic.name, statistic.count))
            .collect();
        assert_eq!(read, [("exits".to_owned(), 5800), ("pf_fixed".to_owned(), 38)]);
        assert_eq!(of_process(Path::new("/nowhere"), 12), []);
    }
}
