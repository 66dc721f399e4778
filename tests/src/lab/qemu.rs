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

/// A machine whose processor has virtualization extensions, with the lab's kernel and disks, and nothing that it
/// does not need.
pub fn command(lab: &Lab, payload: &Path) -> Command {
    let mut qemu = Command::new(program(lab.arch));
    match lab.arch {
        Arch::X86_64 => qemu.args(["-M", "q35", "-cpu", "max"]),
        Arch::Aarch64 => qemu.args(["-M", "virt,virtualization=on,gic-version=3", "-cpu", "max"]),
    };
    qemu.args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "3G"])
        .args(["-display", "none", "-no-reboot", "-nodefaults", "-nic", "none"])
        .arg("-kernel")
        .arg(&lab.kernel)
        .arg("-initrd")
        .arg(&lab.initramfs)
        .args(["-append", &lab.command_line]);
    // Both disks are scratch: the root is thrown away at the end (snapshot), the payload was made for this run.
    disk(&mut qemu, "root", &lab.root, "snapshot=on,");
    disk(&mut qemu, "payload", payload, "");
    qemu.stdin(Stdio::inherit());
    qemu
}

fn disk(qemu: &mut Command, name: &str, file: &Path, options: &str) {
    // A comma in a path is doubled for QEMU's option parser.
    let file = file.display().to_string().replace(',', ",,");
    qemu.arg("-drive").arg(format!(
        "if=none,id={name},format=raw,cache=unsafe,{options}file={file}"
    ));
    qemu.arg("-device").arg(format!("virtio-blk-pci,drive={name}"));
}
