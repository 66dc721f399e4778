//! QEMU's command line for each architecture: the one place that knows how the lab's host is made.

use std::path::Path;
use std::process::{Command, Stdio};

use super::Lab;
use crate::arch::Arch;

/// The emulator.
pub fn program(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "qemu-system-x86_64",
        Arch::Aarch64 => "qemu-system-aarch64",
    }
}

/// The serial console's name in the host.
pub fn console(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => "ttyAMA0",
    }
}

/// A machine whose processor has virtualization extensions, with the lab's kernel and disks, and nothing that
/// it does not need.
pub fn command(lab: &Lab, payload: &Path) -> Command {
    let mut qemu = Command::new(program(lab.arch));
    match lab.arch {
        Arch::X86_64 => qemu.args(["-M", "q35", "-cpu", "max"]),
        Arch::Aarch64 => qemu.args([
            "-M",
            "virt,virtualization=on,gic-version=3",
            // Pointer authentication as the architecture describes it takes most of an emulator's time.
            "-cpu",
            "max,pauth-impdef=on",
        ]),
    };
    qemu.args(["-accel", "tcg,thread=multi", "-smp", processors(lab.arch)])
        .args(["-m", "3G"])
        .args(["-display", "none", "-no-reboot", "-nodefaults", "-nic", "none"])
        .arg("-kernel")
        .arg(&lab.kernel)
        .arg("-initrd")
        .arg(&lab.initramfs)
        .args(["-append", &lab.command_line]);
    // Both disks are scratch: the root is removed at the end (snapshot), the payload was made for this
    // run.
    disk(&mut qemu, "root", &lab.root, "snapshot=on,");
    disk(&mut qemu, "payload", payload, "");
    qemu.stdin(Stdio::inherit());
    qemu
}

/// Releases of QEMU before 8.1 do not hold a page of code while they translate it. A host that patches its
/// own kernel (KVM does when the first virtual machine is made) can meet the half of the patch on the other
/// processor: `Oops: int3`. A host of one processor cannot. Two that take turns in one thread cannot either,
/// but each waits out the other's turn whenever it waits for the other: on a busy machine a guest of that
/// host did not boot within two minutes.
fn processors(arch: Arch) -> &'static str {
    const PAGES_ARE_LOCKED: (u32, u32) = (8, 1);
    match release(arch) {
        Some(release) if release >= PAGES_ARE_LOCKED => "2",
        _ => "1",
    }
}

/// The first two numbers of the emulator's version.
fn release(arch: Arch) -> Option<(u32, u32)> {
    let output = Command::new(program(arch)).arg("--version").output().ok()?;
    parse_release(&String::from_utf8_lossy(&output.stdout))
}

fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text
        .split_once("version ")?
        .1
        .split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn disk(qemu: &mut Command, name: &str, file: &Path, options: &str) {
    // A comma in a path is doubled for QEMU's option parser.
    let file = file.display().to_string().replace(',', ",,");
    qemu.arg("-drive").arg(format!(
        "if=none,id={name},format=raw,cache=unsafe,{options}file={file}"
    ));
    qemu.arg("-device").arg(format!("virtio-blk-pci,drive={name}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        assert_eq!(parse_release(debian), Some((7, 2)));
        assert_eq!(parse_release("QEMU emulator version 10.0.8"), Some((10, 0)));
        assert_eq!(parse_release("something else"), None);
        assert!(Some((7, 2)) < Some((8, 1)) && Some((10, 0)) > Some((8, 1)));
    }
}
