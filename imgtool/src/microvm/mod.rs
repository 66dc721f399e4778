//! The microvm kernel: Debian's kernel source with a configuration of ours, compiled by Debian's compiler in
//! a root of its own, so that the result depends on locked packages only and never on what this machine has
//! installed.
//!
//! ```text
//! lock (linux-source, gcc, make, …) ─ fetch ─ configure ─▶ root ─ run: unpack, configure, compile ─▶ kernel, cached
//! ```
//!
//! `allnoconfig` drops what it does not know or what lacks a dependency without a word; a kernel that lost a
//! requested symbol is refused before it is compiled.

use ami::Architecture;

/// The package with the source. It depends on the one of the suite's kernel, such as linux-source-6.12.
const SOURCE: &str = "linux-source";
/// Where the kernel is in the root when it is done.
pub const RESULT: &str = "kernel";

const COMMON: &str = include_str!("common.config");
const X86_64: &str = include_str!("x86_64.config");
const ARM64: &str = include_str!("arm64.config");

/// Fails with the lines that `.config` lacks.
const CHECK: &str = "\
lost=$(grep '^CONFIG_' microvm.config | grep -vxFf .config || true)
if [ -n \"$lost\" ]; then
    echo 'this kernel source does not take these lines of the configuration:' >&2
    echo \"$lost\" >&2
    exit 1
fi
";

/// The machine that compiles: this one. Other architectures are cross-compiled, which QEMU would take an hour
/// for.
pub fn builder() -> Architecture {
    Architecture::host()
        .map(Architecture::of_kernel)
        .unwrap_or(Architecture::X86_64)
}

/// What the compiling root is made of, besides the essential packages.
pub fn packages(builder: Architecture, target: Architecture) -> Vec<String> {
    let tools = [
        SOURCE,
        "bc",
        "bison",
        "flex",
        "gcc",
        "libc6-dev",
        "libelf-dev",
        "make",
        "xz-utils",
    ];
    let mut packages: Vec<String> = tools.map(str::to_owned).into();
    if builder != target.of_kernel() {
        packages.push(format!("gcc-{}", triplet(target).replace('_', "-")));
    }
    packages
}

/// What the compiling root does without.
pub fn exclude() -> Vec<String> {
    ["man", "doc", "info", "locale"]
        .map(|dir| format!("/usr/share/{dir}/*"))
        .into()
}

/// Whether a package of the kernel is part of the image: its source is, the compiler is not.
pub fn is_source(package: &str) -> bool {
    package.starts_with(SOURCE)
}

/// The configuration for an architecture, as `KCONFIG_ALLCONFIG` takes it.
pub fn fragment(target: Architecture) -> String {
    let own = match target {
        Architecture::X86_64 | Architecture::I386 => X86_64,
        Architecture::Arm64 => ARM64,
    };
    format!("{COMMON}\n{own}")
}

/// The commands that make the kernel in the compiling root.
pub fn steps(builder: Architecture, target: Architecture) -> Vec<String> {
    let target = target.of_kernel();
    let cross = match builder == target {
        true => String::new(),
        false => format!("CROSS_COMPILE={}-", triplet(target)),
    };
    // Where and when it was compiled, and by whom, must not show in the kernel.
    let make = format!(
        "make --silent -j\"$(nproc)\" ARCH={} {cross} KBUILD_BUILD_USER=kiln KBUILD_BUILD_HOST=kiln \
         KBUILD_BUILD_VERSION=1 KBUILD_BUILD_TIMESTAMP=\"$(date -u -d @$SOURCE_DATE_EPOCH)\"",
        kernel_arch(target)
    );
    let objcopy = match builder == target {
        true => "objcopy".to_owned(),
        false => format!("{}-objcopy", triplet(target)),
    };
    // x86_64 boots the ELF itself, without what only a debugger reads; arm64 its Image.
    let (goal, install) = match target {
        Architecture::X86_64 | Architecture::I386 => ("vmlinux", format!("{objcopy} -R .comment -S vmlinux")),
        Architecture::Arm64 => ("Image", "cp arch/arm64/boot/Image".to_owned()),
    };
    vec![
        "mkdir /build; tar -xf /usr/src/linux-source-*.tar.xz -C /build --strip-components=1 --no-same-owner"
            .into(),
        format!(
            "cd /build; cat >microvm.config <<'EOF'\n{}EOF\n{make} KCONFIG_ALLCONFIG=microvm.config allnoconfig\n{CHECK}",
            fragment(target)
        ),
        format!("cd /build; {make} {goal} modules.builtin"),
        format!(
            "cd /build; release=$({make} kernelrelease); mkdir -p /{RESULT}/boot /{RESULT}/usr/lib/modules/$release; \
             {install} /{RESULT}/boot/vmlinuz-$release; cp .config /{RESULT}/boot/config-$release; \
             cp modules.builtin /{RESULT}/usr/lib/modules/$release/"
        ),
    ]
}

/// The name of an architecture in the kernel's build system.
fn kernel_arch(arch: Architecture) -> &'static str {
    match arch {
        Architecture::X86_64 | Architecture::I386 => "x86_64",
        Architecture::Arm64 => "arm64",
    }
}

fn triplet(arch: Architecture) -> &'static str {
    match arch {
        Architecture::X86_64 | Architecture::I386 => "x86_64-linux-gnu",
        Architecture::Arm64 => "aarch64-linux-gnu",
    }
}

#[cfg(test)]
mod tests;
