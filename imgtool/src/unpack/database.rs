//! dpkg's database for packages that were unpacked and not configured, so that `dpkg -l` and scanners see
//! them.

use std::fmt::Write;

use super::deb::Control;
use crate::tree::{Content, Kind, Meta, Tree, TreeError};

const ADMIN: &str = "var/lib/dpkg";

/// Collects the packages of one root.
#[derive(Debug, Default)]
pub struct Database {
    packages: Vec<Record>,
}

#[derive(Debug)]
struct Record {
    name: String,
    stem: String,
    control: Control,
    paths: Vec<Vec<u8>>,
}

impl Database {
    /// Adds a package with the paths that were unpacked, as its archive names them.
    pub fn add(&mut self, control: Control, paths: Vec<Vec<u8>>) {
        let field = |name: &str| field(&control.paragraph, name).unwrap_or_default().to_owned();
        let name = field("Package");
        // dpkg qualifies the files of packages that can be installed for two architectures at a time.
        let stem = match field("Multi-Arch") == "same" {
            true => format!("{name}:{}", field("Architecture")),
            false => name.clone(),
        };
        self.packages.push(Record {
            name,
            stem,
            control,
            paths,
        });
    }

    /// Writes `/var/lib/dpkg`; `architectures` is the text of its file `arch`, if it has one.
    pub fn write(
        mut self,
        tree: &mut Tree,
        architectures: Option<String>,
        mtime: i64,
    ) -> Result<(), TreeError> {
        self.packages.sort_by(|a, b| a.name.cmp(&b.name));
        let dir = Meta::new(0o755, 0, 0, mtime);
        for name in ["alternatives", "info", "parts", "triggers", "updates"] {
            tree.create_dirs(format!("{ADMIN}/{name}").as_bytes(), &dir)?;
        }
        let mut put = |path: String, mode: u16, text: Vec<u8>| {
            let meta = Meta::new(mode, 0, 0, mtime);
            tree.insert(
                format!("{ADMIN}/{path}").as_bytes(),
                Kind::File(Content::bytes(text)),
                meta,
            )
        };
        for empty in ["available", "diversions", "statoverride", "lock", "lock-frontend"] {
            put(
                empty.into(),
                if empty.starts_with("lock") { 0o640 } else { 0o644 },
                Vec::new(),
            )?;
        }
        if let Some(text) = architectures {
            put("arch".into(), 0o644, text.into_bytes())?;
        }
        put("info/format".into(), 0o644, b"1\n".to_vec())?;
        let mut status = String::new();
        for package in &self.packages {
            status.push_str(&paragraph(&package.control));
            put(format!("info/{}.list", package.stem), 0o644, list(&package.paths))?;
            for (name, (mode, content)) in &package.control.files {
                put(format!("info/{}.{name}", package.stem), *mode, content.clone())?;
            }
        }
        put("status".into(), 0o644, status.into_bytes())?;
        Ok(())
    }
}

fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    let line = paragraph
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(str::trim)
}

/// The paragraph of `status`: the package's own, the state, and its configuration files, which dpkg will
/// look at when it configures the package.
fn paragraph(control: &Control) -> String {
    let mut out = String::new();
    for line in control.paragraph.lines().filter(|line| !line.trim().is_empty()) {
        out.push_str(line);
        out.push('\n');
        if line.starts_with("Package:") {
            out.push_str("Status: install ok unpacked\n");
        }
    }
    let conffiles = control
        .files
        .get("conffiles")
        .map(|(_, text)| String::from_utf8_lossy(text));
    let mut lines = conffiles
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| line.starts_with('/'))
        .peekable();
    if lines.peek().is_some() {
        out.push_str("Conffiles:\n");
        for path in lines {
            // Writing to a String cannot fail.
            let _ = writeln!(out, " {path} newconffile");
        }
    }
    out.push('\n');
    out
}

/// The list of a package's paths as dpkg keeps it: absolute, the root as `/.`, no final slashes.
fn list(paths: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for path in paths {
        let path = path.strip_prefix(b".").unwrap_or(path);
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if !path.starts_with(b"/") {
            out.push(b'/');
        }
        out.extend_from_slice(if path.is_empty() { b"." } else { path });
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_finds_its_files() {
        let mut control = Control {
            paragraph: "Package: a\nVersion: 1\nArchitecture: amd64\nMulti-Arch: same\n".into(),
            ..Default::default()
        };
        control
            .files
            .insert("conffiles".into(), (0o644, b"/etc/a.conf\n".to_vec()));
        let mut database = Database::default();
        database.add(
            control,
            vec![b"./".to_vec(), b"./etc/".to_vec(), b"./etc/a.conf".to_vec()],
        );
        let mut tree = Tree::new();
        database
            .write(&mut tree, Some("amd64\ni386\n".into()), 7)
            .unwrap();
        let read = |path: &str| {
            let id = tree
                .find(path.as_bytes())
                .unwrap()
                .unwrap_or_else(|| panic!("{path}"));
            let Kind::File(content) = &tree.node(id).kind else {
                panic!("{path}")
            };
            String::from_utf8(content.read(1 << 20).unwrap()).unwrap()
        };
        assert_eq!(
            read("var/lib/dpkg/status"),
            "Package: a\nStatus: install ok unpacked\nVersion: 1\nArchitecture: amd64\nMulti-Arch: same\n\
             Conffiles:\n /etc/a.conf newconffile\n\n"
        );
        assert_eq!(read("var/lib/dpkg/arch"), "amd64\ni386\n");
        assert_eq!(read("var/lib/dpkg/info/a:amd64.list"), "/.\n/etc\n/etc/a.conf\n");
    }
}
