//! The example images as people use them, and images layered on images.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    (
        "the_employee_directory_lists_searches_adds_and_removes",
        the_employee_directory_lists_searches_adds_and_removes,
    ),
    ("an_image_is_layered_on_another", an_image_is_layered_on_another),
];

/// Images of 32-bit programs where there is KVM.
pub const I386: &[(&str, Test)] = &[(
    "the_employee_directory_is_served_by_32_bit_programs",
    the_employee_directory_is_served_by_32_bit_programs,
)];

/// Tests that build for minutes.
pub const LONG: &[(&str, Test)] = &[
    ("the_microvm_kernel_boots", the_microvm_kernel_boots),
    (
        "every_example_is_sound_mounts_and_boots",
        every_example_is_sound_mounts_and_boots,
    ),
    ("systemd_runs_on_both_kernels", systemd_runs_on_both_kernels),
    (
        "every_example_boots_with_both_kernels",
        every_example_boots_with_both_kernels,
    ),
    (
        "every_example_boots_with_32_bit_programs",
        every_example_boots_with_32_bit_programs,
    ),
];

/// Tests that need images which take minutes to build, run in a lab.
pub const LAB_LONG: &[(&str, Test)] = &[(
    "every_example_boots_with_both_kernels",
    every_example_boots_with_both_kernels,
)];

const LIMIT: Duration = Duration::from_secs(900);
/// All of them.
const EXAMPLES: [&str; 7] = [
    "hello",
    "debian",
    "web",
    "employee-directory",
    "plain",
    "cloud",
    "microvm",
];

fn recipe(name: &str) -> String {
    kiln_tests::dist::workspace()
        .join(format!("examples/{name}.toml"))
        .display()
        .to_string()
}

/// Two ports of this machine that were free a moment ago.
fn free_ports() -> Result<[u16; 2]> {
    let bind = || TcpListener::bind("127.0.0.1:0").context("no free port");
    let (first, second) = (bind()?, bind()?);
    Ok([first.local_addr()?.port(), second.local_addr()?.port()])
}

/// From an image of this host's architecture and, on x86_64, from one of 32-bit programs, which boot at the
/// same time.
fn the_employee_directory_lists_searches_adds_and_removes(host: &TestHost) -> Result<()> {
    let recipe = recipe("employee-directory");
    let names: &[&str] = match Arch::host()? {
        Arch::X86_64 => &["employees", "employees-i386"],
        Arch::Aarch64 => &["employees"],
    };
    let [first, second] = free_ports()?;
    let line = format!(
        r#"set -e
imgtool build {recipe} -o $HOME/employees.ami --quiet >/dev/null
[ ! -e employee-directory-i386.ami ] || ln -sf $PWD/employee-directory-i386.ami $HOME/employees-i386.ami
port={first}
for name in {names}; do
    vmm run $HOME/$name.ami -d --name $name -p 127.0.0.1:$port:80 >/dev/null
    port={second}
done
trap 'vmm terminate {names} >/dev/null; rm -f $HOME/employees.ami $HOME/employees-i386.ami' EXIT
post() {{ curl -s --max-time 60 -o /dev/null -w '%{{http_code}}\n' "$@"; }}
get() {{ curl -s --max-time 60 "$site$1"; echo; }}
serves() {{
    site=http://127.0.0.1:$1
    for i in $(seq 300); do curl -sf --max-time 60 $site/api/employees >/dev/null && break; sleep 1; done
    get /api/employees
    post -d 'name=Ada Lovelace&department=Engines&email=ada@example.org' $site/add
    post -d 'name=<b>100%</b>&department=Odd_names&email=odd@example.org' $site/add
    post -d 'name=&department=x&email=x' $site/add
    get '/api/employees?q=LOVE'
    get '/api/employees?q=100%25'
    get '/api/employees?q=d_n'
    get / | grep -o '&lt;b&gt;100%&lt;/b&gt;'
    post -d id=1 $site/remove
    post -d id=1 $site/remove
    get '/api/employees?q=ada'
}}
serves {first}
[ "{names}" = employees ] || {{ serves {second}; {I386_CHECKS} }}"#,
        names = names.join(" "),
    );
    let output = host.sh_within(&line, LIMIT)?;
    ensure!(output.status == 0, "{output:?}");
    let ada = r#"[{"id": 1, "name": "Ada Lovelace", "department": "Engines", "email": "ada@example.org"}]"#;
    let odd = r#"[{"id": 2, "name": "<b>100%</b>", "department": "Odd_names", "email": "odd@example.org"}]"#;
    // `_` and `%` are letters, not patterns.
    let serves = [
        "[]",
        "303",
        "303",
        "400",
        ada,
        odd,
        odd,
        "&lt;b&gt;100%&lt;/b&gt;",
        "303",
        "404",
        "[]",
    ];
    let mut expected = serves.to_vec();
    if names.len() > 1 {
        expected.extend(serves.iter().chain(I386_SAYS));
    }
    ensure!(output.stdout.lines().eq(expected), "{output:?}");
    Ok(())
}

/// What the instance `employees-i386` is asked about its programs and its architecture, and what it says.
const I386_CHECKS: &str = r#"
vmm exec employees-i386 -- sh -c 'dpkg --print-architecture; python3 -c "import struct; print(struct.calcsize(\"P\"))"; uname -m'
vmm exec employees-i386 -- python3 -c '
import json, urllib.request as r
at = "http://169.254.169.254/latest/"
token = r.Request(at + "api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
token = r.urlopen(token).read().decode()
document = r.Request(at + "dynamic/instance-identity/document", headers={"X-aws-ec2-metadata-token": token})
print(json.load(r.urlopen(document))["architecture"])
'
imgtool inspect --json $HOME/employees-i386.ami | tr -d ' \n' | grep -o '"architecture":"[^"]*"';
"#;
const I386_SAYS: &[&str] = &["i386", "4", "x86_64", "i386", "\"architecture\":\"i386\""];

/// Over the address of its network: programs of 32 bits on hardware.
fn the_employee_directory_is_served_by_32_bit_programs(host: &TestHost) -> Result<()> {
    let line = format!(
        r#"set -e
ln -sf $PWD/employee-directory-i386.ami $HOME/employees-i386.ami
vmm run employee-directory-i386.ami -d --name employees-i386 --wait agent >/dev/null
trap 'vmm terminate employees-i386 >/dev/null' EXIT
vmm exec employees-i386 -- python3 -c '
import time, urllib.request as r
form = b"name=Ada&department=Engines&email=ada@example.org"
for attempt in range(300):
    try:
        r.urlopen("http://127.0.0.1/add", form).read()
        break
    except OSError:
        time.sleep(1)
print(r.urlopen("http://127.0.0.1/api/employees?q=ada").read().decode())
'
{I386_CHECKS}"#
    );
    let output = host.sh_within(&line, LIMIT)?;
    ensure!(output.status == 0, "{output:?}");
    let ada = r#"[{"id": 1, "name": "Ada", "department": "Engines", "email": "ada@example.org"}]"#;
    ensure!(
        output
            .stdout
            .lines()
            .eq(std::iter::once(ada).chain(I386_SAYS.iter().copied())),
        "{output:?}"
    );
    Ok(())
}

/// Files come on top, packages are added by the base's own dpkg, and the rest is the base's.
fn an_image_is_layered_on_another(host: &TestHost) -> Result<()> {
    let line = r#"set -e
D=$(mktemp -d); trap 'rm -rf $D' EXIT; hello=$PWD/hello.ami; cd $D
cat >child.toml <<EOF
name = "child"
base = "$hello"
files = [{ path = "/etc/note", content = "on top\n" }]
EOF
imgtool build child.toml --offline --quiet >/dev/null
vmm run child.ami --rm -- sh -c 'cat /etc/note; uname -s'
imgtool inspect --json $hello
imgtool inspect --json child.ami
imgtool extract $hello --part kernel -o kernel >/dev/null 2>&1
printf 'name = "own"\nbase = "%s"\n[kernel]\npath = "kernel"\n' $hello >own.toml
XDG_CACHE_HOME=$D/empty imgtool build own.toml --offline --quiet >/dev/null; imgtool verify own.ami >/dev/null
printf 'name = "none"\nbase = "%s"\npackages = ["hello"]\n' $hello >none.toml
imgtool build none.toml --quiet 2>&1 && exit 1
printf 'name = "minbase"\narch = ["x86_64"]\n' >minbase.toml
imgtool build minbase.toml --quiet >/dev/null
printf 'name = "more"\nbase = "minbase.ami"\npackages = ["hello"]\n' >more.toml
imgtool build more.toml --quiet >/dev/null
imgtool diff minbase.ami more.ami | grep -A1 '^package:'
imgtool cat more.ami /var/lib/dpkg/status | grep -A1 '^Package: hello$'
imgtool extract more.ami --part root -o root.ext4 >/dev/null; e2fsck -fn root.ext4 >/dev/null 2>&1; echo e2fsck $?"#;
    let output = host.sh_within(line, LIMIT)?;
    ensure!(output.status == 0, "{output:?}");
    ensure!(output.stdout.starts_with("on top\nLinux\n"), "{output:?}");
    let mut images = serde_json::Deserializer::from_str(&output.stdout["on top\nLinux\n".len()..])
        .into_iter::<serde_json::Value>();
    let mut image = || images.next().context("an image's description")?.context("JSON");
    let (base, child) = (image()?, image()?);
    ensure!(
        base["id"].is_string() && child["manifest"]["parent"] == base["id"],
        "{child:#} does not name its parent {}",
        base["id"]
    );
    for word in [
        "has no packages that dpkg knows",
        "package:\n  + hello: ",
        "Package: hello\nStatus: install ok installed\n",
        "e2fsck 0",
    ] {
        ensure!(output.stdout.contains(word), "`{word}` is missing: {output:?}");
    }
    Ok(())
}

/// The image was built before the tests began. Its kernel is ours, and says itself that nothing is a module.
fn the_microvm_kernel_boots(host: &TestHost) -> Result<()> {
    let command =
        "vmm run microvm.ami --rm -- sh -c 'uname -r; ls /proc/modules; zcat /proc/config.gz; true'";
    let output = host.sh_within(command, LIMIT)?;
    ensure!(output.status == 0, "{output:?}");
    let release = output.stdout.lines().next().unwrap_or_default();
    ensure!(release.ends_with("-microvm"), "{output:?}");
    ensure!(
        output.stderr.contains("/proc/modules"),
        "it knows modules: {output:?}"
    );
    let configuration = |line: &str| output.stdout.lines().any(|l| l == line);
    for symbol in [
        "VIRTIO_MMIO",
        "VIRTIO_BLK",
        "VIRTIO_NET",
        "EXT4_FS",
        "OVERLAY_FS",
        "SECCOMP_FILTER",
        "CGROUP_BPF",
    ] {
        ensure!(
            configuration(&format!("CONFIG_{symbol}=y")),
            "{symbol} is not built in"
        );
    }
    Ok(())
}

/// The file system is sound to e2fsck, this machine's kernel mounts and reads all of it, and the image boots.
/// Some were built before the tests began.
fn every_example_is_sound_mounts_and_boots(host: &TestHost) -> Result<()> {
    for example in EXAMPLES {
        let line = format!(
            r#"set -e
D=$(mktemp -d); trap 'umount $D/root 2>/dev/null || true; rm -rf $D' EXIT
if [ -e {example}.ami ]; then ln -s $PWD/{example}.ami $D/x.ami; else imgtool build {} -o $D/x.ami --quiet >/dev/null; fi
imgtool verify $D/x.ami >/dev/null 2>&1
imgtool extract $D/x.ami --part root -o $D/root.ext4 >/dev/null
e2fsck -fn $D/root.ext4 >/dev/null 2>&1 && echo sound
mkdir $D/root; mount -o loop,ro $D/root.ext4 $D/root
[ -e $D/root/usr/bin/sh ] && find $D/root -xdev -type f -exec cat '{{}}' + >/dev/null && echo mounted
umount $D/root
vmm run $D/x.ami --rm -- sh -c 'read name </proc/1/comm; echo $name'"#,
            recipe(example)
        );
        let output = host.sh_within(&line, LIMIT)?;
        ensure!(
            output.status == 0 && output.stdout == "sound\nmounted\ninit\n",
            "{example}: {output:?}"
        );
    }
    Ok(())
}

/// The shell of each is an ELF program of 32 bits (byte 4 of the header is 1), on a 64-bit kernel; the
/// microvm kernel runs such programs, too. Configured natively, and so on x86_64 only; without the security
/// archive, as [`kiln_tests::dist::Dist::image_of_i386`].
fn every_example_boots_with_32_bit_programs(host: &TestHost) -> Result<()> {
    if Arch::host()? != Arch::X86_64 {
        return Ok(());
    }
    for example in EXAMPLES {
        let line = format!(
            r#"set -e
D=$(mktemp -d); trap 'rm -rf $D' EXIT
cp -r $(dirname {}) $D/recipes; cd $D/recipes; printf '\n[distribution]\nsecurity = false\n' >>{example}.toml
imgtool build {example}.toml --arch i386 -o $D/x.ami --quiet >/dev/null
imgtool verify $D/x.ami >/dev/null 2>&1
vmm run $D/x.ami --rm -- sh -c 'od -An -tu1 -j4 -N1 /bin/sh; uname -m'"#,
            recipe(example)
        );
        let output = host.sh_within(&line, LIMIT)?;
        let words: Vec<&str> = output.stdout.split_whitespace().collect();
        ensure!(
            output.status == 0 && words == ["1", "x86_64"],
            "{example}: {output:?}"
        );
    }
    Ok(())
}

/// Debian's user space on its own kernel and on ours: systemd says that everything runs, and no unit failed.
/// The kernel is the microvm image's, which was built before the tests began.
fn systemd_runs_on_both_kernels(host: &TestHost) -> Result<()> {
    for kernel in ["", "[kernel]\npath = \"kernel\"\n"] {
        let line = format!(
            r#"set -e
D=$(mktemp -d); trap 'vmm terminate systemd >/dev/null 2>&1; rm -rf $D' EXIT
imgtool extract microvm.ami --part kernel -o $D/kernel >/dev/null 2>&1
cp {} $D/x.toml; printf '%s' '{kernel}' >>$D/x.toml
imgtool build $D/x.toml -o $D/x.ami --quiet >/dev/null
vmm run $D/x.ami -d --name systemd >/dev/null
for i in $(seq 60); do
    sleep 2
    state=$(vmm exec systemd -- systemctl is-system-running --wait 2>/dev/null || true)
    case $state in running|degraded) break; esac
done
echo $state
vmm exec systemd -- systemctl --failed --no-legend --plain
vmm exec systemd -- cat /proc/1/comm"#,
            recipe("debian")
        );
        let output = host.sh_within(&line, LIMIT)?;
        ensure!(
            output.status == 0 && output.stdout == "running\nsystemd\n",
            "`{kernel}`: {output:?}"
        );
    }
    Ok(())
}

/// Every example with the kernel of its recipe; and Debian's user space, with Kiln's kernel, as an image
/// layered on the image.
fn every_example_boots_with_both_kernels(host: &TestHost) -> Result<()> {
    let init = "vmm run $image --rm -- sh -c 'read name </proc/1/comm; echo $name $(uname -r)'";
    let line = format!(
        r#"set -e
for image in hello.ami debian.ami web.ami employee-directory.ami plain.ami cloud.ami microvm.ami; do {init}; done
D=$(mktemp -d); trap 'rm -rf $D' EXIT; images=$PWD
imgtool extract microvm.ami --part kernel -o $D/kernel >/dev/null 2>&1
for name in debian web employee-directory plain cloud; do
    printf 'name = "%s-microvm"\nbase = "%s"\n[kernel]\npath = "kernel"\n' $name $images/$name.ami >$D/x.toml
    imgtool build $D/x.toml -o $D/x.ami --offline --quiet >/dev/null
    image=$D/x.ami; {init}
done"#
    );
    let output = host.sh_within(&line, LIMIT)?;
    ensure!(output.status == 0, "{output:?}");
    let lines: Vec<&str> = output.stdout.lines().collect();
    ensure!(
        lines.len() == 12
            && lines
                .iter()
                .all(|line| line.starts_with("init ") || line.starts_with("systemd ")),
        "{output:?}"
    );
    let ours = lines.iter().filter(|line| line.ends_with("-microvm"));
    ensure!(ours.count() == 6, "{output:?}");
    Ok(())
}
