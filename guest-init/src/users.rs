//! Users and groups by the image's own files. A static program cannot rely on the image's name services.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::SigSet;

/// The user that a program runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
    /// Login shell.
    pub shell: String,
}

impl User {
    /// Looks up `name`, a login name or a user id, below `root` (`/` for the running system).
    pub fn find(root: &Path, name: &str) -> Option<User> {
        let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap_or_default();
        let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
        User::parse(&passwd, &groups, name).or_else(|| (name == "root" || name == "0").then(User::root))
    }

    /// The user of a service: a name or a number, and maybe `:` and a group of either kind, as container
    /// images have it. A number needs no entry in the image's files.
    pub fn find_for_service(root: &Path, text: &str) -> Option<User> {
        let (name, group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let name = if name.is_empty() { "root" } else { name };
        let mut user = User::find(root, name).or_else(|| User::nameless(name.parse().ok()?))?;
        if let Some(group) = group.filter(|group| !group.is_empty()) {
            let groups = fs::read_to_string(root.join("etc/group")).unwrap_or_default();
            user.gid = group_id(&groups, group)?;
            user.groups = vec![user.gid];
        }
        Some(user)
    }

    /// A user that the image does not know: in root's group, as container engines have it.
    fn nameless(uid: u32) -> Option<User> {
        Some(User {
            name: uid.to_string(),
            uid,
            gid: 0,
            groups: vec![0],
            home: "/".to_owned(),
            shell: "/bin/sh".to_owned(),
        })
    }

    /// The superuser of an image that names none.
    pub fn root() -> User {
        let text = |text: &str| text.to_owned();
        User {
            name: text("root"),
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: text("/root"),
            shell: text("/bin/sh"),
        }
    }

    /// Makes `command` run as this user, in a session of its own and with no signal blocked. With `terminal`,
    /// its standard input is a terminal, which becomes the session's.
    #[allow(unsafe_code)]
    pub fn run(&self, command: &mut Command, terminal: bool) {
        let (uid, gid, groups) = (self.uid, self.gid, self.groups.clone());
        let setup = move || -> io::Result<()> {
            // What PID 1 and the agent block is theirs.
            SigSet::empty().thread_set_mask()?;
            nix::unistd::setsid()?;
            if terminal {
                // SAFETY: TIOCSCTTY takes an integer; descriptor 0 is the terminal by now.
                Errno::result(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 1) })?;
            }
            // SAFETY: `groups` is a live array of as many group ids as its length says. The raw calls affect
            // this process only.
            unsafe {
                Errno::result(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
                Errno::result(libc::syscall(libc::SYS_setgid, gid))?;
                Errno::result(libc::syscall(libc::SYS_setuid, uid))?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only makes system calls; it allocates nothing and takes
        // no lock.
        unsafe {
            command.pre_exec(setup);
        }
    }

    fn parse(passwd: &str, groups: &str, wanted: &str) -> Option<User> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, shell] = fields[..] else {
                return None;
            };
            if name != wanted && uid != wanted {
                return None;
            }
            let gid = gid.parse().ok()?;
            let member = |line: &str| {
                let fields: Vec<&str> = line.split(':').collect();
                let [_, _, id, members] = fields[..] else {
                    return None;
                };
                members
                    .split(',')
                    .any(|member| member == name)
                    .then(|| id.parse().ok())?
            };
            let supplementary = groups
                .lines()
                .filter_map(member)
                .filter(|&group: &u32| group != gid);
            Some(User {
                name: name.to_owned(),
                uid: uid.parse().ok()?,
                gid,
                groups: std::iter::once(gid).chain(supplementary).collect(),
                home: home.to_owned(),
                shell: if shell.is_empty() {
                    "/bin/sh".to_owned()
                } else {
                    shell.to_owned()
                },
            })
        })
    }

    /// The environment that a login gives.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned();
        [
            ("PATH", path),
            ("HOME", self.home.clone()),
            ("USER", self.name.clone()),
            ("SHELL", self.shell.clone()),
        ]
    }
}

/// The id of a group by its name or number; a number needs no entry.
fn group_id(groups: &str, wanted: &str) -> Option<u32> {
    let id = |line: &str| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, id, _] = fields[..] else { return None };
        (name == wanted).then(|| id.parse().ok())?
    };
    groups.lines().find_map(id).or_else(|| wanted.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:1000:Ann,,,:/home/ann:\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:bob,ann\nann:x:1000:ann\nbad:x:y:ann\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let ann = User::parse(PASSWD, GROUP, "ann").unwrap();
        assert_eq!(
            (ann.uid, ann.groups.as_slice(), ann.shell.as_str()),
            (1000, [1000, 27].as_slice(), "/bin/sh")
        );
        assert_eq!(User::parse(PASSWD, GROUP, "1000"), Some(ann));
        assert_eq!(User::parse(PASSWD, GROUP, "nobody"), None);
        assert_eq!(User::parse(PASSWD, GROUP, "broken"), None);
    }

    #[test]
    fn a_service_runs_as_container_images_say() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/passwd"), PASSWD).unwrap();
        fs::write(root.path().join("etc/group"), GROUP).unwrap();
        let ids = |text: &str| {
            let user = User::find_for_service(root.path(), text)?;
            Some((user.uid, user.gid, user.groups))
        };
        for (text, expected) in [
            ("ann", Some((1000, 1000, vec![1000, 27]))),
            ("ann:sudo", Some((1000, 27, vec![27]))),
            ("1000:5", Some((1000, 5, vec![5]))),
            ("1234", Some((1234, 0, vec![0]))),
            ("1234:1234", Some((1234, 1234, vec![1234]))),
            ("", Some((0, 0, vec![0]))),
            (":27", Some((0, 27, vec![27]))),
            ("bob", None),
            ("ann:nogroup", None),
        ] {
            assert_eq!(ids(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_image_without_users_has_root() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(User::find(empty.path(), "root"), Some(User::root()));
        assert_eq!(User::find(empty.path(), "ann"), None);
    }
}
