//! The initramfs: guest-init as `/init`, the modules it loads, and its configuration in
//! `/etc/kiln/boot.json`.

use std::path::{Path, PathBuf};

use ami::Architecture;
use ami::boot::{self, BootConfig};

use super::Error;
use super::cpio::Archive;
use super::modules::Module;

/// Largest guest-init: a debug build has 30 MB.
const MAX_GUEST_INIT: u64 = 256 << 20;

/// Pack the initramfs. `config.modules` is filled in here.
pub fn pack(guest_init: &[u8], modules: &[Module], mut config: BootConfig) -> Result<Vec<u8>, Error> {
    let path = |module: &Module| format!("{}/{}.ko", boot::MODULES, module.name);
    config.modules = modules
        .iter()
        .map(|module| format!("/{}", path(module)))
        .collect();
    let json = ami::json::canonical(&config).map_err(ami::Error::Manifest)?;
    let mut archive = Archive::new();
    for directory in [
        "dev",
        "etc",
        "etc/kiln",
        "lib",
        "lib/modules",
        "proc",
        "run",
        "sys",
    ] {
        archive.directory(directory);
    }
    // The kernel opens it as PID 1's standard streams before anything is mounted.
    archive.device("dev/console", 5, 1);
    archive.file(boot::PATH, 0o644, &json);
    for module in modules {
        archive.file(&path(module), 0o644, &module.bytes);
    }
    archive.file("init", 0o755, guest_init);
    Ok(archive.finish())
}

/// Read the guest-init for an architecture: the file given, else one next to this program or in the directory
/// of the architecture next to this program's.
pub fn find_guest_init(architecture: Architecture, given: Option<&Path>) -> Result<Vec<u8>, Error> {
    let architecture = architecture.of_kernel();
    let candidates = match given {
        Some(path) => vec![path.to_path_buf()],
        None => beside_us(architecture),
    };
    let Some(path) = candidates.iter().find(|path| path.exists()) else {
        let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::NoGuestInit {
            architecture,
            looked: looked.join(", "),
            machine: architecture.machine(),
        });
    };
    let read = |source| Error::Read {
        what: path.display().to_string(),
        source,
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    let unfit = |why| Error::GuestInit {
        path: path.clone(),
        why,
        architecture,
    };
    if length > MAX_GUEST_INIT {
        return Err(unfit("it has more than 256 MiB"));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    check_program(&bytes, architecture).map_err(unfit)?;
    Ok(bytes)
}

fn beside_us(architecture: Architecture) -> Vec<PathBuf> {
    let directory = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_path_buf()))
        .unwrap_or_default();
    let mut names = vec![format!("guest-init-{}", architecture.machine())];
    if Architecture::host() == Some(architecture) {
        names.push("guest-init".into());
    }
    let mut paths: Vec<_> = names.into_iter().map(|name| directory.join(name)).collect();
    // `cargo xtask` puts the programs of each machine into a directory of its name.
    let of_machine = |built: &Path| built.join(architecture.machine()).join("guest-init");
    paths.extend(directory.parent().map(of_machine));
    paths
}

/// A static program of the right machine: with nothing else in the initramfs, an interpreter cannot be found.
fn check_program(elf: &[u8], architecture: Architecture) -> Result<(), &'static str> {
    let machine: u16 = match architecture {
        Architecture::X86_64 | Architecture::I386 => 62,
        Architecture::Arm64 => 183,
    };
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") || elf.len() < 64 {
        return Err("it is not a 64-bit ELF program");
    }
    if elf[18..20] != machine.to_le_bytes() {
        return Err("it is for another architecture");
    }
    const PT_INTERP: u32 = 3;
    let table = u64::from_le_bytes(elf[32..40].try_into().unwrap_or_default()) as usize;
    let (entry, count) = (
        u16::from_le_bytes([elf[54], elf[55]]),
        u16::from_le_bytes([elf[56], elf[57]]),
    );
    for index in 0..usize::from(count) {
        let at = table.saturating_add(index * usize::from(entry));
        let kind = elf
            .get(at..)
            .and_then(|rest| rest.first_chunk::<4>())
            .ok_or("it is cut short")?;
        if u32::from_le_bytes(*kind) == PT_INTERP {
            return Err("it is linked dynamically");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Advice as _;

    fn config() -> BootConfig {
        BootConfig {
            schema: BootConfig::SCHEMA,
            modules: Vec::new(),
            root_device: "/dev/vda".into(),
            root_filesystem: "ext4".into(),
            root_writable: true,
            grow_root: true,
            init: "guest-init".into(),
            console: "hvc0".into(),
            console_shell: true,
            hostname: None,
            services: Vec::new(),
        }
    }

    #[test]
    fn boot_json_lists_the_modules_in_load_order() {
        let module = |name: &str| Module {
            name: name.into(),
            bytes: vec![1; 9],
        };
        let modules = [module("virtio_mmio"), module("virtio_blk")];
        let bytes = pack(b"program", &modules, config()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(r#""modules":["/lib/modules/virtio_mmio.ko","/lib/modules/virtio_blk.ko"]"#));
        assert_eq!(bytes, pack(b"program", &modules, config()).unwrap());
    }

    #[test]
    fn a_missing_or_dynamic_program_is_explained() {
        let error = find_guest_init(Architecture::Arm64, Some(Path::new("/no/guest-init")))
            .unwrap_err()
            .report();
        assert!(
            error.contains("/no/guest-init") && error.contains("cargo xtask cross aarch64"),
            "{error}"
        );
        let beside = beside_us(Architecture::Arm64);
        assert!(
            beside.iter().any(|path| path.ends_with("aarch64/guest-init")),
            "{beside:?}"
        );
        let shell = Path::new("/bin/sh");
        if let Some(host) = Architecture::host()
            && shell.exists()
        {
            let error = find_guest_init(host, Some(shell)).unwrap_err().report();
            assert!(error.contains("dynamically"), "{error}");
        }
    }
}
