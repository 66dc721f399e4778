//! Checks that the composed root has the programs, users and directories that its recipe uses, so that the
//! build fails instead of the boot.

use std::io::Read;

use ami::Architecture;

use super::Error;
use super::edit::read_text;
use crate::recipe::{EMPTY_AT_BOOT, Recipe, is_below};
use crate::tree::{Content, Kind, NodeId, Tree, show};

/// As much of a program as says what kind it is: its ELF headers, or its first line.
const MAX_HEAD: u64 = 4096;
/// Interpreters of interpreters that Linux follows (`BINPRM_MAX_RECURSION` is near).
const MAX_INTERPRETERS: u32 = 5;

const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// Checks what the recipe starts, and as whom.
pub fn check_root(tree: &Tree, recipe: &Recipe, arch: Architecture) -> Result<(), Error> {
    let ours = recipe.init() == "guest-init";
    if !ours {
        let advice =
            "the package that brings it, such as systemd-sysv for /sbin/init; or init = \"guest-init\"";
        check_program(tree, recipe.init(), arch).map_err(unusable("init", advice))?;
        if !recipe.services.is_empty() && !is_there(tree, SYSTEMD)? {
            let why = format!(
                "{} does not read them: they become units of systemd, which is not in the image",
                recipe.init()
            );
            let advice = "package systemd-sysv, or init = \"guest-init\"";
            return Err(unusable("services", advice)(why));
        }
    }
    for service in &recipe.services {
        let key = format!("services, {}", service.name);
        let program = service.command.first().map_or("", String::as_str);
        let advice =
            "the package that brings it, `files`, or a shell that waits for it: [\"/bin/sh\", \"-c\", …]";
        check_program(tree, program, arch).map_err(unusable(&key, advice))?;
        check_user(tree, &service.user, ours).map_err(unusable(&key, "a user of `users` or of a package"))?;
        let directory = &service.working_directory;
        check_directory(tree, directory).map_err(unusable(
            &key,
            "`files` with directory = true, or another working-directory",
        ))?;
    }
    for user in &recipe.users {
        let key = format!("users, {}", user.name);
        if let Some(shell) = field(tree, "etc/passwd", &user.name, 6)?.filter(|shell| !shell.is_empty()) {
            let advice = "the package that brings it, or another shell, such as \"/bin/sh\"";
            check_program(tree, &shell, arch).map_err(unusable(&key, advice))?;
        }
        if user.sudo && !is_there(tree, "/usr/bin/sudo")? {
            let why = "sudo = true, and there is no sudo in the image".into();
            return Err(unusable(&key, "package sudo")(why));
        }
    }
    Ok(())
}

fn unusable(key: &str, advice: &'static str) -> impl FnOnce(String) -> Error {
    let key = key.to_owned();
    move |why| Error::Unusable { key, why, advice }
}

fn find(tree: &Tree, path: &str) -> Result<Option<NodeId>, Error> {
    tree.find_followed(path.as_bytes()).map_err(Error::tree(path))
}

fn is_there(tree: &Tree, path: &str) -> Result<bool, Error> {
    Ok(find(tree, path)?.is_some())
}

/// A field of an account's line; `None` when nobody has the name.
fn field(tree: &Tree, path: &str, name: &str, index: usize) -> Result<Option<String>, Error> {
    let text = read_text(tree, path)?;
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut found = fields.filter(|fields| fields.first() == Some(&name));
    Ok(found
        .next()
        .and_then(|fields| Some((*fields.get(index)?).to_owned())))
}

/// systemd takes a number that no account has; guest-init looks every user up.
fn check_user(tree: &Tree, name: &str, ours: bool) -> Result<(), String> {
    let text = read_text(tree, "etc/passwd").map_err(|error| error.to_string())?;
    let is = |line: &str| {
        let mut fields = line.split(':');
        fields.next() == Some(name) || fields.nth(1) == Some(name)
    };
    let number = name.parse::<u32>().is_ok();
    match matches!(name, "root" | "0") || text.lines().any(is) || (number && !ours) {
        true => Ok(()),
        false => Err(format!("there is no user `{name}` in the image")),
    }
}

fn check_directory(tree: &Tree, path: &str) -> Result<(), String> {
    let directory = |id: NodeId| tree.node(id).is_dir();
    match tree.find_followed(path.as_bytes()) {
        Ok(Some(id)) if directory(id) => check_kept(path),
        Ok(Some(_)) => Err(format!("{path} is not a directory")),
        Ok(None) => Err(format!("there is no directory {path} in the image")),
        Err(error) => Err(error.to_string()),
    }
}

/// What is in the image below a directory that is empty at boot is not seen.
fn check_kept(path: &str) -> Result<(), String> {
    let hidden = EMPTY_AT_BOOT
        .iter()
        .find(|directory| is_below(path, directory) && path != **directory);
    match hidden {
        Some(directory) => Err(format!(
            "{path} is not there in an instance: {directory} is empty at boot"
        )),
        None => Ok(()),
    }
}

/// Whether the kernel can start a program: it is there, executable, for the architecture, and so is its
/// interpreter.
fn check_program(tree: &Tree, path: &str, arch: Architecture) -> Result<(), String> {
    let mut path = path.to_owned();
    for _ in 0..MAX_INTERPRETERS {
        match interpreter(tree, &path, arch)? {
            Some(next) => path = next,
            None => return Ok(()),
        }
    }
    Err(format!("{path} is an interpreter's interpreter's interpreter"))
}

/// Checks a program; gives its interpreter if it has one.
fn interpreter(tree: &Tree, path: &str, arch: Architecture) -> Result<Option<String>, String> {
    check_kept(path)?;
    let id = tree
        .find_followed(path.as_bytes())
        .map_err(|error| error.to_string())?;
    let Some(id) = id else {
        return Err(format!("{path} is not in the image"));
    };
    let node = tree.node(id);
    let Kind::File(content) = &node.kind else {
        return Err(format!("{path} is not a program"));
    };
    if node.meta.mode & 0o111 == 0 {
        return Err(format!(
            "{path} is not executable: its mode is {:04o}",
            node.meta.mode
        ));
    }
    let head = read_head(content).map_err(|error| format!("{path} cannot be read: {error}"))?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let program = line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty());
        return Ok(Some(
            String::from_utf8_lossy(program.unwrap_or_default()).into_owned(),
        ));
    }
    let Some(elf) = Elf::parse(&head) else {
        return Err(format!(
            "{path} is neither a program nor a script that begins with `#!`"
        ));
    };
    if !elf.runs_on(arch) {
        return Err(format!(
            "{path} is a program for another architecture than {arch}"
        ));
    }
    match elf.interpreter(content) {
        Some(loader) if !is_program(tree, &loader) => Err(format!(
            "{path} needs {}, which is not in the image",
            show(&loader)
        )),
        _ => Ok(None),
    }
}

fn is_program(tree: &Tree, path: &[u8]) -> bool {
    let found = tree.find_followed(path).ok().flatten();
    found.is_some_and(|id| matches!(tree.node(id).kind, Kind::File(_)))
}

fn read_head(content: &Content) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    content.open()?.take(MAX_HEAD).read_to_end(&mut head)?;
    Ok(head)
}

/// The beginning of an ELF file, of 64 or 32 bits, little-endian.
struct Elf<'a> {
    head: &'a [u8],
    wide: bool,
}

impl<'a> Elf<'a> {
    fn parse(head: &'a [u8]) -> Option<Self> {
        let wide = match head.get(..6)? {
            b"\x7fELF\x02\x01" => true,
            b"\x7fELF\x01\x01" => false,
            _ => return None,
        };
        (head.len() >= 64).then_some(Self { head, wide })
    }

    fn number(&self, at: usize, bytes: usize) -> u64 {
        let field = self.head.get(at..at.saturating_add(bytes)).unwrap_or_default();
        field
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// 64-bit kernels run their 32-bit programs, too, and those of an image with 32-bit programs are 64-bit.
    fn runs_on(&self, arch: Architecture) -> bool {
        let machines = match arch {
            Architecture::X86_64 | Architecture::I386 => [62, 3],
            Architecture::Arm64 => [183, 40],
        };
        machines.contains(&self.number(18, 2))
    }

    /// The path of its loader. Headers that are further inside than any linker puts them are not looked at.
    fn interpreter(&self, content: &Content) -> Option<Vec<u8>> {
        const PT_INTERP: u64 = 3;
        const MAX_PATH: u64 = 4096;
        let (table, entry, count) = match self.wide {
            true => (self.number(32, 8), self.number(54, 2), self.number(56, 2)),
            false => (self.number(28, 4), self.number(42, 2), self.number(44, 2)),
        };
        let headers = (0..count)
            .map(|index| usize::try_from(table.saturating_add(index * entry)).unwrap_or(usize::MAX));
        let at = headers.into_iter().find(|at| self.number(*at, 4) == PT_INTERP)?;
        let (offset, length) = match self.wide {
            true => (self.number(at + 8, 8), self.number(at + 32, 8)),
            false => (self.number(at + 4, 4), self.number(at + 16, 4)),
        };
        let mut path = Vec::new();
        let mut reader = content.open().ok()?;
        std::io::copy(&mut reader.by_ref().take(offset), &mut std::io::sink()).ok()?;
        reader.take(length.min(MAX_PATH)).read_to_end(&mut path).ok()?;
        path.retain(|byte| *byte != 0);
        (!path.is_empty()).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::Advice as _;
    use crate::configure::edit::{make_parents, write_text};
    use crate::tree::Meta;

    /// An ELF program of 64 bits for a machine, with a loader.
    fn elf(machine: u8, loader: &str) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = machine;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::from(!loader.is_empty());
        bytes[64] = 3;
        bytes[72] = 120;
        bytes[96] = loader.len() as u8 + 1;
        bytes.extend(loader.as_bytes());
        bytes.push(0);
        bytes
    }

    fn put(tree: &mut Tree, path: &str, bytes: &[u8], mode: u16) {
        make_parents(tree, path, 0).unwrap();
        let file = Kind::File(Content::bytes(bytes));
        tree.insert(path.as_bytes(), file, Meta::new(mode, 0, 0, 0))
            .unwrap();
    }

    fn root() -> Tree {
        let mut tree = Tree::new();
        let passwd = "root:x:0:0:root:/root:/bin/sh\nada:x:1000:1000::/home/ada:/bin/bash\n";
        write_text(&mut tree, "etc/passwd", passwd.into(), Meta::new(0o644, 0, 0, 0)).unwrap();
        put(&mut tree, "lib64/ld.so", &elf(62, ""), 0o755);
        put(&mut tree, "bin/sh", &elf(62, "/lib64/ld.so"), 0o755);
        put(&mut tree, "bin/foreign", &elf(183, ""), 0o755);
        put(&mut tree, "bin/lonely", &elf(62, "/lib64/gone.so"), 0o755);
        put(&mut tree, "bin/script", b"#! /bin/sh -e\necho\n", 0o755);
        put(&mut tree, "bin/orphan", b"#!/usr/bin/python3\n", 0o755);
        put(&mut tree, "bin/loop", b"#!/bin/loop\n", 0o755);
        put(&mut tree, "bin/text", b"echo\n", 0o755);
        put(&mut tree, "bin/plain", &elf(62, ""), 0o644);
        put(&mut tree, "run/tool", &elf(62, ""), 0o755);
        tree
    }

    fn check(text: &str) -> Result<(), Error> {
        let recipe: Recipe = toml::from_str(&format!("name = 'x'\n{text}")).unwrap();
        check_root(&root(), &recipe, Architecture::X86_64)
    }

    #[test]
    fn what_would_fail_at_boot_fails_the_build() {
        let service = |fields: &str| format!("services = [{{ name = 'web', {fields} }}]");
        for (text, words) in [
            (
                "init = '/sbin/init'".to_owned(),
                "init: /sbin/init is not in the image",
            ),
            ("init = '/bin'".to_owned(), "/bin is not a program"),
            (
                "init = '/bin/sh'\nservices = [{ name = 'web', command = ['/bin/sh'] }]".to_owned(),
                "systemd",
            ),
            (
                service("command = ['/bin/gone']"),
                "services, web: /bin/gone is not in the image",
            ),
            (
                service("command = ['/bin/plain']"),
                "not executable: its mode is 0644",
            ),
            (service("command = ['/bin/foreign']"), "another architecture"),
            (service("command = ['/bin/lonely']"), "/lib64/gone.so"),
            (
                service("command = ['/bin/orphan']"),
                "/usr/bin/python3 is not in the image",
            ),
            (service("command = ['/bin/loop']"), "interpreter"),
            (service("command = ['/bin/text']"), "neither"),
            (service("command = ['/run/tool']"), "empty at boot"),
            (service("command = ['/bin/sh'], user = 'eve'"), "no user `eve`"),
            (service("command = ['/bin/sh'], user = '33'"), "no user `33`"),
            (
                service("command = ['/bin/sh'], working-directory = '/srv'"),
                "no directory /srv",
            ),
            (
                "users = [{ name = 'ada' }]".to_owned(),
                "users, ada: /bin/bash is not in the image",
            ),
            ("users = [{ name = 'root', sudo = true }]".to_owned(), "no sudo"),
        ] {
            let error = check(&text).expect_err(&text).report();
            assert!(error.contains(words) && error.contains("try:"), "{text}: {error}");
        }
    }

    #[test]
    fn a_working_root_is_accepted() {
        for text in [
            "",
            "init = '/bin/script'",
            "services = [{ name = 'web', command = ['/bin/sh', '-c', '/data/app'], user = '1000', working-directory = '/etc' }]",
            "users = [{ name = 'root' }]",
        ] {
            check(text).unwrap();
        }
    }
}
