//! The host name in `/etc/hosts`, on the line of 127.0.1.1, as in Debian. Without it `sudo`,
//! mail servers and Java wait for a DNS server that does not know the name.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The address of the machine's own name (Debian Reference, section 5.1.1).
const OWN: &str = "127.0.1.1";

/// What a file has at first.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// Renames the machine from `old`, if it had a name, to `new` in `etc/hosts` below `root`. All else that the
/// file says is somebody's and stays; so does a file that is a link, which somebody manages.
pub fn rename(root: &Path, old: Option<&str>, new: &str) -> io::Result<()> {
    let path = root.join("etc/hosts");
    let before = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_file() => fs::read(&path)?,
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let after = renamed(&before, old, new);
    if after == before {
        return Ok(());
    }
    // Whole or not at all: a full disk must not cost the administrator's lines.
    let unfinished = root.join("etc/.hosts.kiln");
    let mode = path
        .metadata()
        .map_or(0o644, |metadata| metadata.permissions().mode());
    let written = fs::write(&unfinished, after)
        .and_then(|()| fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&unfinished, &path));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

fn renamed(before: &[u8], old: Option<&str>, new: &str) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = before
        .split_inclusive(|&byte| byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    if before.is_empty() {
        lines = LOCALHOST.split_inclusive('\n').map(|line| line.into()).collect();
    }
    let other = old.filter(|old| *old != new);
    let is_old = |name: &str| {
        other.is_some_and(|old| {
            name == old || name.strip_prefix(old).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    // The first line of ours is renamed in place; others only lose the old name.
    let mut named = lines
        .iter()
        .any(|line| names(line).is_some_and(|names| names.contains(&new)));
    let mut changed: Vec<Vec<u8>> = Vec::new();
    for line in lines {
        let own = names(&line).filter(|names| names.first() == Some(&OWN));
        let Some(own) = own else {
            changed.push(line);
            continue;
        };
        let kept: Vec<&str> = own[1..].iter().copied().filter(|name| !is_old(name)).collect();
        if named && kept.len() + 1 == own.len() {
            changed.push(line);
            continue;
        }
        let ours = match named {
            true => Vec::new(),
            false => own_names(new),
        };
        named = true;
        let all: Vec<&str> = ours.into_iter().chain(kept).collect();
        if !all.is_empty() {
            let comment = line
                .iter()
                .position(|&byte| byte == b'#')
                .map(|at| line[at..].to_vec());
            let end = comment.map_or(b"\n".to_vec(), |comment| [b" ".to_vec(), comment].concat());
            changed.push([format!("{OWN}\t{}", all.join(" ")).into_bytes(), end].concat());
        }
    }
    if !named {
        if let Some(last) = changed.last_mut().filter(|last| last.last() != Some(&b'\n')) {
            last.push(b'\n');
        }
        changed.push(format!("{OWN}\t{}\n", own_names(new).join(" ")).into_bytes());
    }
    changed.concat()
}

/// The full name, and the short one if that is another: what `hostname -f` and `hostname` ask for.
fn own_names(name: &str) -> Vec<&str> {
    let short = name
        .split('.')
        .next()
        .filter(|short| *short != name && !short.is_empty());
    std::iter::once(name).chain(short).collect()
}

/// The words of a line: an address and names. `None` for what is not such a line, or no text.
fn names(line: &[u8]) -> Option<Vec<&str>> {
    let line = line.split(|&byte| byte == b'#').next()?;
    let words: Vec<&str> = str::from_utf8(line).ok()?.split_ascii_whitespace().collect();
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(before: &str, old: Option<&str>, new: &str) -> String {
        String::from_utf8(renamed(before.as_bytes(), old, new)).unwrap()
    }

    #[test]
    fn the_images_name_is_replaced_and_the_administrators_lines_stay() {
        let before = "# ours\n127.0.0.1 localhost\n127.0.1.1\thello.example.org hello db # own\n\
                      10.0.0.7 hello-backup hello\n";
        let after = text(before, Some("hello"), "web");
        assert_eq!(
            after,
            "# ours\n127.0.0.1 localhost\n127.0.1.1\tweb db # own\n10.0.0.7 hello-backup hello\n"
        );
        assert_eq!(text(&after, Some("web"), "web"), after, "another boot");
        assert_eq!(
            text("127.0.1.1 one\n127.0.1.1 one two\n", Some("one"), "three"),
            "127.0.1.1\tthree\n127.0.1.1\ttwo\n"
        );
    }

    #[test]
    fn a_name_that_is_listed_already_is_not_changed() {
        let before = "127.0.0.1 localhost web\n";
        assert_eq!(text(before, None, "web"), before);
        assert_eq!(
            text("10.0.2.15 web\n127.0.1.1 old\n", Some("old"), "web"),
            "10.0.2.15 web\n"
        );
    }

    #[test]
    fn a_file_without_the_name_gets_it() {
        let localhost = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        assert_eq!(text("", None, "web"), format!("{localhost}127.0.1.1\tweb\n"));
        assert_eq!(
            text("127.0.0.1 localhost", Some("x"), "a.b.c"),
            "127.0.0.1 localhost\n127.0.1.1\ta.b.c a\n"
        );
        let odd = [b"# \xff\n".as_slice(), b"127.0.0.1 localhost\n"].concat();
        let expected = [odd.as_slice(), b"127.0.1.1\tweb\n"].concat();
        assert_eq!(renamed(&odd, None, "web"), expected, "not all of it is text");
    }

    #[test]
    fn a_link_is_left_alone_and_a_mode_stays() {
        let root = tempfile::tempdir().unwrap();
        let hosts = root.path().join("etc/hosts");
        fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("managed", &hosts).unwrap();
        rename(root.path(), None, "web").unwrap();
        assert!(hosts.is_symlink());
        fs::remove_file(&hosts).unwrap();
        fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        fs::set_permissions(&hosts, fs::Permissions::from_mode(0o664)).unwrap();
        rename(root.path(), None, "web").unwrap();
        assert_eq!(
            fs::read_to_string(&hosts).unwrap(),
            "127.0.0.1 localhost\n127.0.1.1\tweb\n"
        );
        assert_eq!(fs::metadata(&hosts).unwrap().permissions().mode() & 0o777, 0o664);
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 1);
    }
}
