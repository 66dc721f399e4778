//! Images, roots and keys exchanged with other tools, without loss.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("minisigns_keys_sign_and_verify", minisigns_keys_sign_and_verify),
    (
        "a_root_survives_tar_ext4_and_container_archive",
        a_root_survives_tar_ext4_and_container_archive,
    ),
    (
        "an_oci_image_in_layers_is_imported",
        an_oci_image_in_layers_is_imported,
    ),
    (
        "whiteouts_in_any_order_are_as_umocis",
        whiteouts_in_any_order_are_as_umocis,
    ),
    (
        "attributes_survive_to_the_guest_and_back",
        attributes_survive_to_the_guest_and_back,
    ),
];

const LIMIT: Duration = Duration::from_secs(600);

/// In a folder of its own, with the hello image as `$hello`; ends at the first command that fails.
fn capture(host: &TestHost, line: &str) -> Result<String> {
    let line = format!("set -e; hello=$PWD/hello.ami; D=$(mktemp -d); trap 'rm -rf $D' EXIT; cd $D\n{line}");
    let output = host.sh_within(&line, LIMIT)?;
    ensure!(output.status == 0, "{output:?}");
    Ok(output.stdout)
}

fn expect(said: &str, lines: &[&str]) -> Result<()> {
    for line in lines {
        let found = said.lines().any(|l| l.trim_end() == *line);
        ensure!(found, "`{line}` is missing in:\n{said}");
    }
    Ok(())
}

/// Keys of either program serve the other, and the key that did not sign is refused.
fn minisigns_keys_sign_and_verify(host: &TestHost) -> Result<()> {
    let line = r#"
minisign -G -W -p theirs.pub -s theirs.key >/dev/null
imgtool keygen ours.key >/dev/null 2>&1
cp --sparse=always $hello a.ami
imgtool sign --key theirs.key a.ami >/dev/null 2>&1
imgtool verify --key theirs.pub a.ami >/dev/null 2>&1 && echo their key signs
imgtool verify --key ours.key.pub a.ami 2>&1 && exit 1
echo message >message
minisign -S -W -s ours.key -m message >/dev/null
minisign -V -q -p ours.key.pub -m message && echo our key signs
minisign -R -W -s ours.key -p again.pub >/dev/null
[ "$(tail -n 1 again.pub)" = "$(tail -n 1 ours.key.pub)" ] && echo the halves belong together
"#;
    let said = capture(host, line)?;
    expect(
        &said,
        &["their key signs", "our key signs", "the halves belong together"],
    )?;
    ensure!(
        said.contains("try:"),
        "the other key was refused without advice: {said}"
    );
    Ok(())
}

/// The hello image's root, out and in again by each way, boots and has the same files.
fn a_root_survives_tar_ext4_and_container_archive(host: &TestHost) -> Result<()> {
    let line = r#"
imgtool convert $hello --to tar -o root.tar >/dev/null
imgtool extract $hello --part root -o root.ext4 >/dev/null
layer=$(sha256sum root.tar | cut -d' ' -f1)
printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    $(dpkg --print-architecture) $layer >config.json
printf '[{"Config":"config.json","RepoTags":["hello:latest"],"Layers":["root.tar"]}]' >manifest.json
tar -cf docker.tar manifest.json config.json root.tar
imgtool ls -lR $hello / >expected
for source in root.tar root.ext4 docker.tar; do
    imgtool import $source -o x.ami --kernel $hello >/dev/null 2>&1
    imgtool verify x.ami >/dev/null 2>&1
    imgtool ls -lR x.ami / | diff expected - && echo $source has the same files
    vmm run x.ami --rm -- sh -c "echo $source boots"
    rm x.ami
done
"#;
    let said = capture(host, line)?;
    for source in ["root.tar", "root.ext4", "docker.tar"] {
        let (same, boots) = (format!("{source} has the same files"), format!("{source} boots"));
        expect(&said, &[&same, &boots])?;
    }
    Ok(())
}

/// An OCI image that umoci makes of the hello image's root, in two layers: the second changes, adds and
/// removes. What is imported is what umoci unpacks. A run of it shows the command's output on the console and
/// ends with its status, as `docker run` does; a command of the run takes its place.
fn an_oci_image_in_layers_is_imported(host: &TestHost) -> Result<()> {
    let line = r#"
imgtool convert $hello --to tar -o root.tar >/dev/null
umoci init --layout oci
umoci new --image oci:hello
umoci unpack --image oci:hello first
tar -xpf root.tar -C first/rootfs
umoci repack --image oci:hello first
umoci unpack --image oci:hello second
echo second >second/rootfs/etc/hostname
mkdir second/rootfs/srv/new; echo above >second/rootfs/srv/new/file
rm -r second/rootfs/etc/hosts second/rootfs/usr/share
umoci repack --image oci:hello second
umoci config --image oci:hello --config.cmd sh --config.cmd -c --config.cmd 'echo $WORD in $PWD on $(tty); exit 7' \
    --config.env WORD=layered --config.workingdir /srv/new --config.exposedports 80/tcp
tar -cf oci.tar -C oci .
imgtool import oci.tar -o x.ami --kernel $hello >/dev/null
imgtool verify x.ami >/dev/null
imgtool inspect --json x.ami | tr -d ' \n' | grep -o '"exposed_ports":\[[^]]*\]'
umoci unpack --image oci:hello third
tar -cpf third.tar -C third/rootfs .
imgtool import third.tar -o third.ami --kernel $hello >/dev/null 2>&1
imgtool ls -lR x.ami / >ours; imgtool ls -lR third.ami / >theirs; diff ours theirs && echo the same files
imgtool cat x.ami /etc/hostname
imgtool cat x.ami /srv/new/file
imgtool cat x.ami /etc/hosts 2>/dev/null || echo removed
imgtool inspect x.ami | grep ^command
vmm run x.ami --rm </dev/null || echo status $?
vmm run x.ami --rm -- echo replaced
"#;
    let said = capture(host, line)?;
    expect(
        &said,
        &[
            "the same files",
            "second",
            "above",
            "removed",
            r"command        sh -c 'echo $WORD in $PWD on $(tty); exit 7' (in /srv/new)",
            "layered in /srv/new on /dev/hvc0",
            "status 7",
            "replaced",
        ],
    )
}

/// Directories in which an upper layer has entries in an order of their own.
const ORDERS: usize = 150;

/// What an upper layer may have in such a directory. The lower one has `dir/old`, `dir/sub/deep`, `other` and
/// `link`, which leads to `dir`.
const UPPER: [&str; 12] = [
    "dir/",
    "dir/old",
    "dir/new",
    "dir/sub/new",
    "dir/.wh.old",
    "dir/.wh.sub",
    "dir/.wh..wh..opq",
    "link/new",
    "link/.wh.old",
    "link/.wh..wh..opq",
    ".wh.dir",
    ".wh.other",
];

/// The names of an upper layer in the order of its entries: in each directory some of [`UPPER`], shuffled by
/// a fixed sequence.
fn upper_entries() -> String {
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut names = String::new();
    for directory in 0..ORDERS {
        let mut entries = UPPER.to_vec();
        for _ in 0..2 + random(5) {
            let entry = entries.swap_remove(random(entries.len()));
            names += &format!("cases/{directory}/{entry}\n");
        }
    }
    names
}

/// Whiteouts before and after the entries of their own layer, by way of a link and without.
fn whiteouts_in_any_order_are_as_umocis(host: &TestHost) -> Result<()> {
    let line = format!(
        "cat >entries <<'END'\n{}END\nlast={}\n{}",
        upper_entries(),
        ORDERS - 1,
        r#"
for i in $(seq 0 $last); do mkdir -p lower/cases/$i/dir/sub; ln -s dir lower/cases/$i/link; done
for i in lower/cases/*; do echo lower | tee $i/dir/old $i/dir/sub/deep >$i/other; done
tar -cf lower.tar -C lower cases
while read name; do mkdir -p upper/${name%/*}; done <entries
while read name; do case $name in */) ;; *) echo upper >upper/$name;; esac; done <entries
tar --no-recursion -cf upper.tar -C $PWD/upper -T entries
umoci init --layout oci
umoci new --image oci:x
umoci raw add-layer --image oci:x lower.tar
umoci raw add-layer --image oci:x upper.tar
umoci unpack --image oci:x theirs
tar -cf oci.tar -C oci .
imgtool import oci.tar -o x.ami --kernel $hello >/dev/null
imgtool extract x.ami /cases -o ours >/dev/null
ls ours/cases | wc -l
diff -r --no-dereference ours/cases theirs/rootfs/cases && echo the same files
"#
    );
    let said = capture(host, &line)?;
    expect(&said, &[&ORDERS.to_string(), "the same files"])
}

const ATTRIBUTES: &str = r#"name = "all"
packages = ["acl", "attr", "libcap2-bin"]
memory = "256M"
run = [
  "mkdir /srv/all",
  "cp /bin/true /srv/all/capable; setcap cap_net_raw+ep /srv/all/capable",
  "echo x >/srv/all/acl; setfacl -m u:1000:rw,g:50:r /srv/all/acl; setfacl -d -m u:7:rx /srv/all",
  "echo x >/srv/all/noted; setfattr -n user.note -v 'as it was' /srv/all/noted",
  "echo one >/srv/all/first; ln /srv/all/first /srv/all/second",
  "truncate -s 1G /srv/all/sparse; printf end | dd of=/srv/all/sparse bs=1 seek=536870912 conv=notrunc status=none",
  "mkfifo -m 600 /srv/all/pipe; mknod /srv/all/null c 1 3; mknod /srv/all/disk b 254 5",
]
"#;

/// What there is to see of each; the same by the guest's programs and by this machine's.
const LOOK: &str = r#"set -e
cd $1
getcap capable
getfacl -cnE acl | tr "\n" " "; echo
getfacl -cnE . | tr "\n" " "; echo
getfattr --only-values -n user.note noted; echo
[ first -ef second ] && stat -c "%n has %h names" first
stat -c "%n has %s bytes" sparse
[ $(stat -c %b sparse) -le 1024 ] && echo holes are holes
dd if=sparse bs=4096 skip=131072 count=1 status=none | head -c 3; echo
stat -c "%n %F %a" pipe
"#;

/// Made by Debian's own tools while the image is built, read by them in the guest, and by this machine's
/// after `extract`.
fn attributes_survive_to_the_guest_and_back(host: &TestHost) -> Result<()> {
    let line = format!(
        "cat >all.toml <<'END'\n{ATTRIBUTES}END\ncat >look <<'END'\n{LOOK}END\n{}",
        r#"
imgtool build all.toml -o all.ami --quiet >/dev/null
imgtool extract all.ami --part root -o all.ext4 >/dev/null
e2fsck -fn all.ext4 >/dev/null 2>&1 && echo the file system is clean
vmm run all.ami --rm -- sh -c "$(cat look); stat -c '%n %F %t %T' null disk" look /srv/all
echo ===
imgtool extract all.ami /srv/all -o out >/dev/null
sh look out/all
imgtool convert all.ami --to tar -o all.tar >/dev/null
tar -tvf all.tar | awk '/srv\/all\/(null|disk)$/ { print $1, $3, $NF }'
"#
    );
    let said = capture(host, &line)?;
    expect(&said, &["the file system is clean"])?;
    let wanted = [
        "capable cap_net_raw=ep",
        "user::rw- user:1000:rw- group::r-- group:50:r-- mask::rw- other::r--",
        "user::rwx group::r-x other::r-x default:user::rwx default:user:7:r-x default:group::r-x default:mask::r-x default:other::r-x",
        "as it was",
        "first has 2 names",
        "sparse has 1073741824 bytes",
        "holes are holes",
        "end",
        "pipe fifo 600",
    ];
    let (guest, here) = said.split_once("===").context("two views")?;
    expect(guest, &wanted)?;
    expect(here, &wanted)?;
    // Devices are not made on this machine; an archive carries them.
    expect(
        guest,
        &["null character special file 1 3", "disk block special file fe 5"],
    )?;
    ensure!(
        here.contains("crw-r--r-- 1,3 ") && here.contains("brw-r--r-- 254,5 "),
        "the archive has other devices:\n{here}"
    );
    Ok(())
}
