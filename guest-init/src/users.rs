//! Users and groups by the image's own files. A static program cannot rely on the image's name services.

use std::fs;
use std::path::Path;

/// Who a program runs as.
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
    fn an_image_without_users_has_root() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(User::find(empty.path(), "root"), Some(User::root()));
        assert_eq!(User::find(empty.path(), "ann"), None);
    }
}
