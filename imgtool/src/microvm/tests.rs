use std::process::Command;

use super::*;

/// Runs the check on a configuration that asks for `wanted` and one that came out as `got`.
fn check(wanted: &str, got: &str) -> std::process::Output {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("microvm.config"), wanted).unwrap();
    std::fs::write(dir.path().join(".config"), got).unwrap();
    Command::new("sh")
        .args(["-euc", CHECK])
        .current_dir(dir.path())
        .output()
        .unwrap()
}

#[test]
fn a_dropped_symbol_is_named() {
    let got = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n";
    assert!(check("# A\nCONFIG_A=y\nCONFIG_C=\"x\"\n", got).status.success());
    for lost in ["CONFIG_B=y", "CONFIG_C=\"y\"", "CONFIG_D=y"] {
        let output = check(&format!("CONFIG_A=y\n{lost}\n"), got);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(lost), "{said}");
        assert!(!said.contains("CONFIG_A"), "{said}");
    }
}

#[test]
fn configuration_fragments_set_each_symbol_once_and_no_module() {
    for arch in [Architecture::X86_64, Architecture::Arm64] {
        let text = fragment(arch);
        let mut seen = std::collections::BTreeSet::new();
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (symbol, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
            assert!(symbol.starts_with("CONFIG_") && !value.is_empty(), "{line}");
            assert!(seen.insert(symbol), "{arch}: {symbol} is there twice");
            assert_ne!(value, "m", "{line}: there are no modules");
        }
        // What the machine model has, and what an instance needs before its root is mounted.
        for needed in [
            "VIRTIO_MMIO",
            "VIRTIO_BLK",
            "VIRTIO_NET",
            "VIRTIO_CONSOLE",
            "VIRTIO_VSOCKETS",
            "EXT4_FS",
        ] {
            assert!(text.contains(&format!("CONFIG_{needed}=y\n")), "{arch}: {needed}");
        }
    }
}

#[test]
fn a_foreign_kernel_is_cross_compiled() {
    assert!(
        !packages(Architecture::X86_64, Architecture::X86_64)
            .iter()
            .any(|p| p.contains("aarch64"))
    );
    assert!(packages(Architecture::X86_64, Architecture::Arm64).contains(&"gcc-aarch64-linux-gnu".into()));
    assert!(packages(Architecture::Arm64, Architecture::X86_64).contains(&"gcc-x86-64-linux-gnu".into()));
    let compile = &steps(Architecture::X86_64, Architecture::Arm64)[2];
    assert!(
        compile.contains("ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-") && compile.contains(" Image"),
        "{compile}"
    );
}
