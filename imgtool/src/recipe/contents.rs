//! What is checked of users, services, files and names before anything is fetched. The composed root is
//! checked against the same entries later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::wrong::{Wrong, check_word, wrong};
use super::{FileEntry, Recipe, Service, User, expand_braces};

/// A name of Linux has at most 64 bytes, a label of DNS 63.
const MAX_HOSTNAME: usize = 63;
/// Login records hold this many bytes of a name (utmp(5), `UT_NAMESIZE`).
const MAX_LOGIN: usize = 32;
/// Numbers that mean "none" to system calls, with 32 bits and with 16.
const NO_IDS: [u32; 2] = [u32::MAX, 65_535];

/// Where every boot mounts a file system of the kernel's.
const MOUNTED_OVER: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Where every boot has an empty directory.
pub const EMPTY_AT_BOOT: [&str; 2] = ["/run", "/tmp"];

/// Whether a path is a directory or in it.
pub fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn check(recipe: &Recipe) -> Result<(), Wrong> {
    if let Some(hostname) = &recipe.hostname {
        check_hostname(hostname)?;
    }
    check_users(&recipe.users)?;
    check_services(&recipe.services)?;
    recipe.files.iter().try_for_each(check_file)?;
    check_places(recipe)
}

fn check_hostname(name: &str) -> Result<(), Wrong> {
    let label = |label: &str| {
        let sound = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        !label.is_empty() && label.bytes().all(sound) && !label.starts_with('-') && !label.ends_with('-')
    };
    match name.len() <= MAX_HOSTNAME && name.split('.').all(label) {
        true => Ok(()),
        false => wrong(
            "hostname",
            &format!("`{name}` is not a host name"),
            "letters, digits and `-` in the middle, at most 63: \"web-1\" or \"web-1.example.org\"",
        ),
    }
}

/// Texts that become lines of passwd, unit files and authorized_keys.
fn one_line(text: &str) -> bool {
    !text.contains(['\n', '\r', '\0'])
}

fn check_users(users: &[User]) -> Result<(), Wrong> {
    let mut names = BTreeSet::new();
    let mut numbers: BTreeMap<u32, &str> = BTreeMap::new();
    for user in users {
        let key = || format!("users, {}", user.name);
        check_word("users", &user.name)?;
        check_login(&user.name)?;
        if !names.insert(&user.name) {
            return wrong(
                "users",
                &format!("`{}` is there twice", user.name),
                "one entry for each user",
            );
        }
        if let Some(uid) = user.uid {
            if NO_IDS.contains(&uid) {
                return Err((
                    key(),
                    format!("{uid} is the number of nobody: system calls take it for none"),
                    "another uid, or none: the next free one from 1000",
                ));
            }
            if let Some(other) = numbers.insert(uid, &user.name) {
                return Err((
                    key(),
                    format!("uid {uid} is that of `{other}`, too"),
                    "a uid of its own, or none: the next free one from 1000",
                ));
            }
        }
        check_user(user)?;
    }
    Ok(())
}

/// systemd, sudo and `chown` take a name of digits for a number, and sudo `ALL` for everybody.
fn check_login(name: &str) -> Result<(), Wrong> {
    let digits = name.bytes().all(|c| c.is_ascii_digit());
    match name.len() <= MAX_LOGIN && !digits && name != "ALL" {
        true => Ok(()),
        false => wrong(
            "users",
            &format!("`{name}` cannot be the name of a user"),
            "at most 32 letters, digits, `.`, `_` and `-`, not only digits, and not `ALL`",
        ),
    }
}

fn check_user(user: &User) -> Result<(), Wrong> {
    let key = || format!("users, {}", user.name);
    let fields = [
        Some(user.comment.as_str()),
        user.home.as_deref(),
        user.shell.as_deref(),
        user.password_hash.as_deref(),
    ];
    let sound = |text: &str| one_line(text) && !text.contains(':');
    if !fields.into_iter().flatten().all(sound) || !user.ssh_keys.iter().all(|line| one_line(line)) {
        let advice = "one line, without colons outside of ssh-keys";
        return Err((key(), "a value contains a line end or a colon".into(), advice));
    }
    for (name, path) in [("home", &user.home), ("shell", &user.shell)] {
        if path.as_ref().is_some_and(|path| !is_plain_path(path)) {
            let advice = "an absolute path, such as \"/home/ada\" or \"/bin/bash\"";
            return Err((key(), format!("its {name} is not an absolute path"), advice));
        }
    }
    if user.password_hash.as_deref().is_some_and(|hash| !is_hash(hash)) {
        let message = "password-hash is not a hash: nobody could log in with it";
        return Err((
            key(),
            message.into(),
            "what `openssl passwd -6` prints, or \"!\" for no password",
        ));
    }
    if let Some(line) = user.ssh_keys.iter().find(|line| !is_key_line(line)) {
        let shown: String = line.trim().chars().take(24).collect();
        let message = format!("`{shown}…` in ssh-keys is not a public key");
        return Err((
            key(),
            message,
            "a line as in a .pub file: \"ssh-ed25519 AAAAC3Nz… ada@host\"",
        ));
    }
    user.groups
        .iter()
        .try_for_each(|group| check_word("users", group))
}

/// As crypt(5) writes it, empty, or a mark that no password has.
fn is_hash(hash: &str) -> bool {
    let des = |c: u8| c.is_ascii_alphanumeric() || b"./".contains(&c);
    hash.is_empty()
        || hash.starts_with(['!', '*'])
        || (hash.starts_with('$') && hash.matches('$').count() >= 3)
        || (hash.len() == 13 && hash.bytes().all(des))
}

/// A line of authorized_keys: empty, a comment, or somewhere in it a type and a key of that type.
fn is_key_line(line: &str) -> bool {
    let line = line.trim();
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    line.is_empty() || line.starts_with('#') || words.windows(2).any(|pair| is_key(pair[0], pair[1]))
}

fn is_key(kind: &str, key: &str) -> bool {
    let Ok(bytes) = STANDARD.decode(key) else {
        return false;
    };
    let named = bytes
        .split_first_chunk()
        .and_then(|(length, rest)| rest.get(..u32::from_be_bytes(*length) as usize));
    ["ssh-", "ecdsa-", "sk-"]
        .iter()
        .any(|prefix| kind.starts_with(prefix))
        && named == Some(kind.as_bytes())
}

fn check_services(services: &[Service]) -> Result<(), Wrong> {
    let mut names = BTreeSet::new();
    for service in services {
        let key = || format!("services, {}", service.name);
        check_word("services", &service.name)?;
        if !names.insert(&service.name) {
            let message = format!("`{}` is there twice", service.name);
            return wrong("services", &message, "give each a name of its own");
        }
        if !service
            .command
            .first()
            .is_some_and(|program| is_plain_path(program))
        {
            let advice = "command = [\"/usr/bin/program\", \"argument\"]";
            return Err((
                key(),
                "the command does not begin with an absolute path".into(),
                advice,
            ));
        }
        let texts = service.command.iter().chain(service.environment.values());
        if !texts
            .chain([&service.working_directory, &service.user])
            .all(|text| one_line(text))
        {
            return Err((key(), "a value contains a line end".into(), "one line each"));
        }
        if let Some(name) = service.environment.keys().find(|name| !is_variable(name)) {
            let advice = "letters, digits and `_`, not beginning with a digit";
            return Err((
                key(),
                format!("`{name}` cannot be an environment variable"),
                advice,
            ));
        }
        if !is_plain_path(&service.working_directory) {
            return Err((
                key(),
                "working-directory is not an absolute path".into(),
                "a path such as \"/srv\"",
            ));
        }
        check_word("services", &service.user)?;
    }
    Ok(())
}

/// What systemd takes (systemd.exec(5), `Environment=`).
fn is_variable(name: &str) -> bool {
    name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_')
        && name.bytes().next().is_some_and(|c| !c.is_ascii_digit())
}

/// `/`, or absolute, without `.` and `..`.
fn is_plain_path(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains('\0')
        && Path::new(path)
            .components()
            .all(|part| !matches!(part, std::path::Component::ParentDir))
}

fn check_file(file: &FileEntry) -> Result<(), Wrong> {
    let key = || format!("files, {}", file.path);
    let kinds = [
        file.content.is_some(),
        file.source.is_some(),
        file.link.is_some(),
        file.directory,
    ];
    if kinds.iter().filter(|set| **set).count() != 1 {
        let advice = "exactly one of content, source, link and directory";
        return Err((key(), "what it is made of is not clear".into(), advice));
    }
    if file
        .link
        .as_ref()
        .is_some_and(|target| target.is_empty() || target.contains('\0'))
    {
        return Err((key(), "its link leads nowhere".into(), "link = \"/target\""));
    }
    for (name, id) in [("owner", &file.owner), ("group", &file.group)] {
        if id.parse().is_ok_and(|id: u32| NO_IDS.contains(&id)) || check_word("files", id).is_err() {
            return Err((
                key(),
                format!("`{id}` cannot be its {name}"),
                "a name in the image, or a number",
            ));
        }
    }
    let sound = |path: &String| {
        let mut parts = path.split('/');
        parts.next() == Some("") && parts.all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0')
    };
    let Some(paths) = expand_braces(&file.path) else {
        let advice = "several entries; one may stand for 1 MiB of paths";
        return Err((key(), "it stands for too many paths".into(), advice));
    };
    match paths.iter().all(sound) {
        true => Ok(()),
        false => Err((
            key(),
            "the path is not absolute and plain".into(),
            "a path such as \"/etc/motd\"",
        )),
    }
}

/// Each path once, and where the running system sees it.
fn check_places(recipe: &Recipe) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for file in &recipe.files {
        let key = || format!("files, {}", file.path);
        for path in expand_braces(&file.path).into_iter().flatten() {
            let hidden = |directories: &[&'static str]| {
                directories
                    .iter()
                    .copied()
                    .find(|directory| is_below(&path, directory) && path != *directory)
            };
            if let Some(directory) = hidden(&MOUNTED_OVER) {
                let message = format!("{path} is not seen: every boot mounts {directory}");
                return Err((
                    key(),
                    message,
                    "another place; a service can make device nodes and settings at boot",
                ));
            }
            // Steps of `run` may use a file there.
            if let Some(directory) = hidden(&EMPTY_AT_BOOT)
                && recipe.run.is_empty()
            {
                let message = format!("{path} is not there in an instance: {directory} is empty at boot");
                return Err((
                    key(),
                    message,
                    "another place, such as /usr/lib/tmpfiles.d or /var",
                ));
            }
            if seen.contains(&path) {
                return Err((key(), format!("{path} is there twice"), "one entry for each path"));
            }
            seen.insert(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an Ed25519 key: type, and 32 bytes.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn refused(text: &str) -> String {
        let recipe: Recipe = toml::from_str(&format!("name = 'x'\n{text}")).unwrap();
        let (key, message, advice) = check(&recipe).expect_err(text);
        assert!(!advice.is_empty());
        format!("{key}: {message}")
    }

    fn user(fields: &str) -> String {
        format!("users = [{{ name = 'ada', {fields} }}]")
    }

    #[test]
    fn invalid_users_are_refused() {
        for (text, words) in [
            (
                "users = [{ name = 'a', uid = 7 }, { name = 'b', uid = 7 }]".to_owned(),
                "uid 7",
            ),
            ("users = [{ name = 'a' }, { name = 'a' }]".to_owned(), "twice"),
            ("users = [{ name = '1000' }]".to_owned(), "`1000`"),
            ("users = [{ name = 'ALL', sudo = true }]".to_owned(), "`ALL`"),
            (
                format!("users = [{{ name = '{}' }}]", "x".repeat(33)),
                "cannot be",
            ),
            (user("uid = 4294967295"), "nobody"),
            (user("home = 'ada'"), "home"),
            (user("shell = 'bash'"), "shell"),
            (user("comment = 'a:b'"), "colon"),
            (user("password-hash = 'secret'"), "password-hash"),
            (user("ssh-keys = ['/home/ada/.ssh/id_ed25519.pub']"), "ssh-keys"),
            (user("ssh-keys = ['ssh-rsa AAAAC3NzaC1lZDI1NTE5']"), "ssh-keys"),
            (user("groups = ['a:b']"), "a:b"),
        ] {
            let message = refused(&text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn names_services_and_files_that_fail_at_boot_are_refused() {
        let service =
            |fields: &str| format!("services = [{{ name = 'web', command = ['/bin/web'], {fields} }}]");
        let files = |fields: &str| format!("files = [{{ content = '', {fields} }}]");
        for (text, words) in [
            ("hostname = 'bad host_name!'".to_owned(), "host name"),
            ("hostname = '-web'".to_owned(), "host name"),
            ("hostname = 'web..example'".to_owned(), "host name"),
            (format!("hostname = '{}'", "x".repeat(64)), "host name"),
            (service("environment = { 'A B' = 'c' }"), "`A B`"),
            (service("environment = { '1A' = 'c' }"), "`1A`"),
            (service("environment = { 'A=B' = 'c' }"), "`A=B`"),
            (service("working-directory = 'srv'"), "working-directory"),
            (service("user = 'a b'"), "a b"),
            (files("path = '/proc/sys/x'"), "/proc"),
            (files("path = '/run/x'"), "/run"),
            (files("path = '/x', owner = '4294967295'"), "owner"),
            ("files = [{ path = '/x', link = '' }]".to_owned(), "leads nowhere"),
            (
                "files = [{ path = '/a', content = '' }, { path = '/{b,a}', link = 'c' }]".to_owned(),
                "/a is there twice",
            ),
        ] {
            let message = refused(&text);
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn valid_entries_are_accepted() {
        let text = format!(
            "hostname = 'web-1.example.org'
             run = ['sh /tmp/setup']
             files = [{{ path = '/tmp/setup', content = '' }}, {{ path = '/dev', directory = true }}]
             services = [{{ name = 'web', command = ['/bin/web'], user = '33', environment = {{ A_1 = '=' }} }}]
             users = [
               {{ name = 'ada', uid = 1000, shell = '/bin/sh', home = '/', password-hash = '$6$salt$hash',
                  ssh-keys = ['{KEY}', 'no-pty,command=\"ls -l\" {KEY} ada@host', '# comment', ''] }},
               {{ name = 'root', password-hash = '*' }},
             ]"
        );
        let recipe: Recipe = toml::from_str(&format!("name = 'x'\n{text}")).unwrap();
        check(&recipe).unwrap();
    }
}
