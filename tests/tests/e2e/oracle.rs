//! Comparisons with Debian's own tools: the packages that apt selects, the root that mmdebstrap builds.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_tests::test_host::TestHost;

use crate::Test;

pub const TESTS: &[(&str, Test)] = &[
    ("resolution_is_the_same_as_apts", resolution_is_the_same_as_apts),
    (
        "minbase_is_what_mmdebstrap_makes",
        minbase_is_what_mmdebstrap_makes,
    ),
];

/// Why there is nobody to ask, if there is not.
pub fn missing() -> Option<String> {
    for program in ["apt-get", "mmdebstrap"] {
        let found = std::process::Command::new(program).arg("--version").output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Some(format!("{program} is not installed"));
        }
    }
    let id = std::process::Command::new("id").arg("-u").output();
    let root = id.is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    (!root).then(|| "this is not root: owners and devices of a root cannot be unpacked".into())
}

const LIMIT: Duration = Duration::from_secs(900);

/// Package sets with alternatives, virtual packages, version bounds and many dependencies.
const SETS: [&str; 10] = [
    "",
    "systemd-sysv openssh-server sudo",
    "nginx",
    "postgresql",
    "python3",
    "apache2 php",
    "mariadb-server",
    "docker.io",
    "build-essential git",
    "default-jre-headless",
];

/// A root for apt alone: its lists, an empty dpkg database, the suites that a recipe uses by default.
const APT: &str = r#"
set -e
R=$HOME/apt
mkdir -p $R/etc/apt/apt.conf.d $R/etc/apt/preferences.d $R/etc/apt/trusted.gpg.d $R/var/lib/dpkg \
    $R/var/lib/apt/lists/partial $R/var/cache/apt/archives/partial
: >$R/var/lib/dpkg/status
key='[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
cat >$R/etc/apt/sources.list <<EOF
deb $key http://deb.debian.org/debian trixie main
deb $key http://deb.debian.org/debian trixie-updates main
deb $key http://deb.debian.org/debian-security trixie-security main
EOF
cat >$R/apt.conf <<EOF
Dir "$R/";
Dir::State::status "$R/var/lib/dpkg/status";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Install-Recommends "0";
APT::Sandbox::User "root";
Acquire::Languages "none";
EOF
export APT_CONFIG=$R/apt.conf
apt-get -qq update
"#;

fn resolution_is_the_same_as_apts(host: &TestHost) -> Result<()> {
    let mut line = APT.to_owned();
    line += "mkdir -p $HOME/sets; cd $HOME/sets\n";
    for (i, set) in SETS.iter().enumerate() {
        let packages: Vec<String> = set
            .split_whitespace()
            .map(|package| format!("'{package}'"))
            .collect();
        // The kernel is no package here, so that the lock file has the root's packages and nothing else.
        line += &format!(
            "apt-get -s -qq install '?essential' '?priority(required)' apt {set} >{i}.apt\n\
             cat >{i}.toml <<'EOF'\nname = 'set'\narch = ['x86_64']\npackages = [{}]\nkernel.path = 'none'\nEOF\n\
             imgtool lock {i}.toml --quiet >/dev/null\n",
            packages.join(", ")
        );
    }
    line += "tail -n +1 *.apt; echo === lock files; tail -n +1 *.lock";
    let output = host.sh_within(&line, LIMIT)?;
    ensure!(output.status == 0, "{}", output.stderr);
    let (apt, locks) = output
        .stdout
        .split_once("=== lock files")
        .context("the end of apt's part")?;
    let (apt, locks) = (by_file(apt), by_file(locks));
    for (i, set) in SETS.iter().enumerate() {
        let expected = apt_packages(&apt[&i.to_string()]);
        let found = locked_packages(&locks[&i.to_string()]);
        ensure!(
            expected.len() > 60,
            "apt installs {} packages for `{set}`",
            expected.len()
        );
        let missing: Vec<_> = expected.difference(&found).collect();
        let more: Vec<_> = found.difference(&expected).collect();
        ensure!(
            missing.is_empty() && more.is_empty(),
            "`{set}`: apt alone has {missing:?}, imgtool alone {more:?}"
        );
    }
    Ok(())
}

/// The texts of several files as `tail -n +1` prints them, by the file's stem.
fn by_file(text: &str) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for part in text.split("==> ").skip(1) {
        if let Some((name, content)) = part.split_once(" <==\n") {
            let stem = name.split('.').next().unwrap_or(name);
            files.insert(stem.to_owned(), content.to_owned());
        }
    }
    files
}

/// `Inst name (version suite [arch])`.
fn apt_packages(text: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let mut words = line.strip_prefix("Inst ")?.split_whitespace();
        let name = words.next()?;
        Some(format!("{name} {}", words.next()?.trim_start_matches('(')))
    };
    text.lines().filter_map(line).collect()
}

/// `name = "…"` and `version = "…"` one after the other.
fn locked_packages(text: &str) -> BTreeSet<String> {
    let value = |line: &str, key: &str| {
        let value = line.strip_prefix(key)?.strip_prefix(" = \"")?;
        Some(value.trim_end_matches('"').to_owned())
    };
    let mut name = String::new();
    let mut found = BTreeSet::new();
    for line in text.lines() {
        if let Some(new) = value(line, "name") {
            name = new;
        } else if let Some(version) = value(line, "version") {
            found.insert(format!("{name} {version}"));
        }
    }
    found
}

/// What differs on purpose, as docs/recipe.md says. A name that ends in `/` stands for all below it.
const DIFFERENT: &[&str] = &[
    // Instances mount devtmpfs and a new /run; their host name and resolver are their own.
    "dev/",
    "run/",
    "etc/fstab",
    "etc/hostname",
    "etc/resolv.conf",
    // Where apt finds packages, in deb822 form and with all suites.
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/debian.sources",
    // apt itself was not run: no record of what it would remove, no directories of its download user.
    "var/lib/apt/extended_states",
    "var/lib/apt/lists/partial",
    "var/cache/apt/archives/partial",
    // Locks and backups of the tools that configured the root.
    "etc/.pwd.lock",
    "etc/group-",
    "etc/passwd-",
    "var/cache/apt/archives/lock",
    "var/cache/debconf/config.dat-old",
    "var/cache/debconf/templates.dat-old",
    "var/lib/apt/lists/lock",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
    // dpkg's own defaults, written or left out.
    "var/lib/dpkg/arch",
    "var/lib/dpkg/available",
    // The day on which the accounts were made: the newest package's, not today.
    "etc/shadow",
];

/// Every file of both roots by name: kind, mode, owner, link target, size, digest. The times of the roots'
/// making are left out.
fn minbase_is_what_mmdebstrap_makes(host: &TestHost) -> Result<()> {
    let line = r#"
set -e
mkdir -p $HOME/trees; cd $HOME/trees
printf 'name = "minbase"\narch = ["x86_64"]\n' >minbase.toml
imgtool build minbase.toml -o minbase.ami --quiet >/dev/null
imgtool convert minbase.ami --to tar -o ours.tar >/dev/null
mmdebstrap --quiet --variant=minbase --architectures=amd64 trixie theirs.tar \
    "deb http://deb.debian.org/debian trixie main" \
    "deb http://deb.debian.org/debian trixie-updates main" \
    "deb http://deb.debian.org/debian-security trixie-security main"
for tree in ours theirs; do
    mkdir $tree
    tar -xf $tree.tar -C $tree --numeric-owner --xattrs --xattrs-include='*'
    echo "=== $tree"
    cd $tree
    find . -mindepth 1 ! -type f -printf '%P\t%y %m %U:%G %l\n'
    find . -type f -printf '%P\t%y %m %U:%G %n %s ' -exec sha256sum '{}' ';' | sed 's/  [^ ]*$//'
    cd ..
done
cd ..; rm -rf trees
"#;
    let output = host.sh_within(line, LIMIT)?;
    ensure!(output.status == 0, "{}", output.stderr);
    let (ours, theirs) = output
        .stdout
        .split_once("=== theirs\n")
        .context("the second tree")?;
    let (ours, theirs) = (tree(ours), tree(theirs));
    ensure!(ours.len() > 4000, "only {} files", ours.len());
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let differing: Vec<String> = names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name) && !on_purpose(name))
        .map(|name| format!("{name}: {:?}, mmdebstrap {:?}", ours.get(name), theirs.get(name)))
        .collect();
    ensure!(differing.is_empty(), "{}", differing.join("\n"));
    Ok(())
}

fn tree(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, what)| (name.to_owned(), what.to_owned()))
        .collect()
}

fn on_purpose(name: &str) -> bool {
    DIFFERENT
        .iter()
        .any(|different| match different.strip_suffix('/') {
            Some(_) => name.starts_with(different),
            None => name == *different,
        })
}
