//! The initramfs: guest-init as `/init`, the modules it loads, and its configuration in
//! `/etc/kiln/boot.json`.

use std::path::{Path, PathBuf};

use ami::boot::{self, BootConfig};

use super::Error;
use super::cpio::Archive;
use super::modules::Module;
use crate::target::Target;

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

/// Read the guest-init for a target: the file given, else one next to this program or in the directory of the
/// target next to this program's.
pub fn find_guest_init(target: Target, given: Option<&Path>) -> Result<Vec<u8>, Error> {
    let candidates = match given {
        Some(path) => vec![path.to_path_buf()],
        None => beside_us(target),
    };
    let Some(path) = candidates.iter().find(|path| path.exists()) else {
        let looked: Vec<_> = candidates.iter().map(|path| path.display().to_string()).collect();
        return Err(Error::NoGuestInit {
            target,
            looked: looked.join(", "),
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
        target,
    };
    if length > MAX_GUEST_INIT {
        return Err(unfit("it has more than 256 MiB"));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    check_program(&bytes, target).map_err(unfit)?;
    Ok(bytes)
}

fn beside_us(target: Target) -> Vec<PathBuf> {
    let directory = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_path_buf()))
        .unwrap_or_default();
    let mut names = vec![format!("guest-init-{target}")];
    if std::env::consts::ARCH == target.name() {
        names.push("guest-init".into());
    }
    let mut paths: Vec<_> = names.into_iter().map(|name| directory.join(name)).collect();
    // `cargo xtask` puts the programs of each machine into a directory of its name.
    let of_target = |built: &Path| built.join(target.name()).join("guest-init");
    paths.extend(directory.parent().map(of_target));
    paths
}

/// A static program of the right machine: with nothing else in the initramfs, an interpreter cannot be found.
fn check_program(elf: &[u8], target: Target) -> Result<(), &'static str> {
    let (class, machine) = match target {
        Target::X86_64 => (2, 62u16),
        Target::Aarch64 => (2, 183),
        Target::I686 => (1, 3),
    };
    if elf.get(..4) != Some(b"\x7fELF") || elf.len() < 64 {
        return Err("it is not an ELF program");
    }
    if elf[4..6] != [class, 1] || elf[18..20] != machine.to_le_bytes() {
        return Err("it is for another architecture");
    }
    const PT_INTERP: u32 = 3;
    let half = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
    // Offset of the program headers, their size and number (System V ABI, "ELF header").
    let (table, entry, count) = if class == 1 {
        let table = u32::from_le_bytes(elf[28..32].try_into().unwrap_or_default());
        (table as usize, half(42), half(44))
    } else {
        let table = u64::from_le_bytes(elf[32..40].try_into().unwrap_or_default());
        (table as usize, half(54), half(56))
    };
    for index in 0..count {
        let at = table.saturating_add(index * entry);
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
        let error = find_guest_init(Target::Aarch64, Some(Path::new("/no/guest-init")))
            .unwrap_err()
            .report();
        assert!(
            error.contains("/no/guest-init") && error.contains("cargo xtask cross aarch64"),
            "{error}"
        );
        for target in [Target::Aarch64, Target::I686] {
            let beside = beside_us(target);
            let end = format!("{target}/guest-init");
            assert!(beside.iter().any(|path| path.ends_with(&end)), "{beside:?}");
        }
        let shell = Path::new("/bin/sh");
        if let Some(host) = ami::Architecture::host()
            && shell.exists()
        {
            let error = find_guest_init(Target::of(host), Some(shell))
                .unwrap_err()
                .report();
            assert!(error.contains("dynamically"), "{error}");
        }
    }

    #[test]
    fn a_32_bit_program_is_for_32_bit_kernels() {
        let mut program = vec![0; 84];
        program[..6].copy_from_slice(b"\x7fELF\x01\x01");
        program[18] = 3;
        // One program header, behind the file's.
        (program[28], program[42], program[44]) = (52, 32, 1);
        assert_eq!(check_program(&program, Target::I686), Ok(()));
        assert!(check_program(&program, Target::X86_64).is_err());
        program[52] = 3;
        assert_eq!(
            check_program(&program, Target::I686),
            Err("it is linked dynamically")
        );
        program.truncate(64);
        (program[28], program[44]) = (52, 2);
        assert!(check_program(&program, Target::I686).is_err());
    }
}
