use super::*;
use crate::recipe::Recipe;
use crate::tree::{Kind, Meta, Tree};

const EPOCH: i64 = 86_400 * 20_000;

fn recipe(text: &str) -> Recipe {
    toml::from_str(&format!("name = 'x'\n{text}")).unwrap()
}

fn root() -> Tree {
    let mut tree = Tree::new();
    for (path, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nold:x:1000:1000::/home/old:/bin/sh\n",
        ),
        (
            "etc/group",
            "root:x:0:\nadm:x:4:syslog\nold:x:1000:\nshadow:x:42:\n",
        ),
        (
            "etc/shadow",
            "root:*:1:0:99999:7:::\nold:$6$hash:1:0:99999:7:::\n",
        ),
        ("etc/hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tformer\n"),
        ("etc/skel/.profile", "# profile\n"),
    ] {
        edit::make_parents(&mut tree, path, EPOCH).unwrap();
        // As passwd leaves it: who edits the file keeps that.
        let meta = match path {
            "etc/shadow" => Meta::new(0o640, 0, 42, 1),
            _ => Meta::new(0o644, 0, 0, 1),
        };
        edit::write_text(&mut tree, path, text.into(), meta).unwrap();
    }
    tree
}

fn text(tree: &Tree, path: &str) -> String {
    edit::read_text(tree, path).unwrap()
}

/// Kind, mode and owner.
fn what(tree: &Tree, path: &str) -> (char, u16, u32, u32) {
    let id = tree
        .find(path.as_bytes())
        .unwrap()
        .unwrap_or_else(|| panic!("{path}"));
    let node = tree.node(id);
    (node.kind.letter(), node.meta.mode, node.meta.uid, node.meta.gid)
}

#[test]
fn a_user_has_a_number_a_home_keys_groups_and_no_password() {
    let mut tree = root();
    edit::write_text(&mut tree, "bin/bash", String::new(), Meta::new(0o755, 0, 0, 1)).unwrap();
    let users = "users = [{ name = 'ada', comment = 'Ada', groups = ['adm'], sudo = true, ssh-keys = ['ssh-ed25519 A a@b'] }]";
    add_users(&mut tree, &recipe(users), EPOCH).unwrap();
    assert!(text(&tree, "etc/passwd").ends_with("ada:x:1001:1001:Ada:/home/ada:/bin/bash\n"));
    assert!(text(&tree, "etc/group").contains("adm:x:4:syslog,ada\n"));
    assert!(text(&tree, "etc/group").ends_with("ada:x:1001:\n"));
    assert!(text(&tree, "etc/shadow").ends_with("ada:!:20000:0:99999:7:::\n"));
    assert_eq!(what(&tree, "etc/shadow"), ('-', 0o640, 0, 42));
    assert_eq!(what(&tree, "home/ada"), ('d', 0o700, 1001, 1001));
    assert_eq!(what(&tree, "home/ada/.profile"), ('-', 0o644, 1001, 1001));
    assert_eq!(what(&tree, "home/ada/.ssh"), ('d', 0o700, 1001, 1001));
    assert_eq!(
        what(&tree, "home/ada/.ssh/authorized_keys"),
        ('-', 0o600, 1001, 1001)
    );
    assert_eq!(
        text(&tree, "home/ada/.ssh/authorized_keys"),
        "ssh-ed25519 A a@b\n"
    );
    assert_eq!(what(&tree, "etc/sudoers.d/ada"), ('-', 0o440, 0, 0));
    assert_eq!(
        text(&tree, "etc/sudoers.d/ada"),
        "ada ALL=(ALL:ALL) NOPASSWD: ALL\n"
    );
}

#[test]
fn a_user_that_exists_keeps_number_and_password() {
    let mut tree = root();
    let users =
        "users = [{ name = 'old', shell = '/bin/bash' }, { name = 'root', password-hash = '$6$new' }]";
    add_users(&mut tree, &recipe(users), EPOCH).unwrap();
    assert!(text(&tree, "etc/passwd").contains("old:x:1000:1000::/home/old:/bin/bash\n"));
    assert!(text(&tree, "etc/shadow").contains("old:$6$hash:1:0:99999:7:::\n"));
    assert!(text(&tree, "etc/shadow").contains("root:$6$new:20000:0:99999:7:::\n"));
    assert_eq!(text(&tree, "etc/passwd").lines().count(), 2);
}

#[test]
fn a_number_in_use_is_not_given_twice() {
    for (users, words) in [
        (
            "users = [{ name = 'new', uid = 1000 }]",
            "uid 1000 is that of user `old`",
        ),
        ("users = [{ name = 'old', uid = 7 }]", "exists with 1000"),
        (
            "users = [{ name = 'toor', uid = 0 }]",
            "uid 0 is that of user `root`",
        ),
    ] {
        let error = add_users(&mut root(), &recipe(users), EPOCH)
            .unwrap_err()
            .report();
        assert!(
            error.contains(words) && error.contains("try:"),
            "{users}: {error}"
        );
    }
    let mut tree = root();
    add_users(
        &mut tree,
        &recipe("users = [{ name = 'new', uid = 42, sudo = true }, { name = 'a.b', sudo = true }]"),
        EPOCH,
    )
    .unwrap();
    assert!(
        text(&tree, "etc/passwd").contains("\nnew:x:42:1001:"),
        "42 is the number of group shadow"
    );
    assert_eq!(what(&tree, "etc/sudoers.d/a%2eb"), ('-', 0o440, 0, 0));
}

#[test]
fn an_existing_user_keeps_its_shell_and_a_new_one_gets_a_shell_that_exists() {
    let mut tree = root();
    let users = "users = [{ name = 'old', comment = 'Old' }, { name = 'root' }, { name = 'new' }]";
    add_users(&mut tree, &recipe(users), EPOCH).unwrap();
    let passwd = text(&tree, "etc/passwd");
    assert!(
        passwd.contains("old:x:1000:1000:Old:/home/old:/bin/sh\n"),
        "{passwd}"
    );
    assert!(passwd.contains("root:x:0:0:root:/root:/bin/bash\n"), "{passwd}");
    assert!(passwd.contains("/home/new:/bin/sh\n"), "{passwd}");
}

#[test]
fn an_unknown_group_is_refused_with_advice() {
    let error = add_users(
        &mut root(),
        &recipe("users = [{ name = 'a', groups = ['none'] }]"),
        EPOCH,
    )
    .unwrap_err()
    .report();
    assert!(
        error.contains("group `none`") && error.contains("try:"),
        "{error}"
    );
    let files = "files = [{ path = '/a', content = '', owner = 'nobody-here' }]";
    let error = add_files(&mut root(), &recipe(files), EPOCH)
        .unwrap_err()
        .report();
    assert!(
        error.contains("user `nobody-here`") && error.contains("try:"),
        "{error}"
    );
}

#[test]
fn files_of_every_kind_have_the_mode_owner_and_time_that_they_should() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("site/sub")).unwrap();
    std::fs::write(dir.path().join("site/sub/page"), "page").unwrap();
    let script = dir.path().join("site/run");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut recipe = recipe(
        "files = [
            { path = '/etc/{one,two}', content = 'text', owner = 'old', group = '7' },
            { path = '/srv/deep/link', link = '../x' },
            { path = '/srv/empty', directory = true, mode = '1777' },
            { path = '/srv/site', source = 'site' },
            { path = '/srv/secret', source = 'site/sub/page', mode = '0600' },
        ]",
    );
    recipe.directory = dir.path().into();
    let mut tree = root();
    add_files(&mut tree, &recipe, EPOCH).unwrap();
    assert_eq!(what(&tree, "etc/one"), ('-', 0o644, 1000, 7));
    assert_eq!(text(&tree, "etc/two"), "text");
    assert_eq!(what(&tree, "srv/deep/link"), ('l', 0o777, 0, 0));
    assert_eq!(what(&tree, "srv/empty"), ('d', 0o1777, 0, 0));
    assert_eq!(what(&tree, "srv/site/sub"), ('d', 0o755, 0, 0));
    assert_eq!(text(&tree, "srv/site/sub/page"), "page");
    // Of a source's mode only "executable" counts: a checkout has its user's umask.
    assert_eq!(what(&tree, "srv/site/run"), ('-', 0o755, 0, 0));
    assert_eq!(what(&tree, "srv/secret"), ('-', 0o600, 0, 0));
    let id = tree.find(b"srv/site/sub/page").unwrap().unwrap();
    assert_eq!(tree.node(id).meta.mtime, EPOCH);
    let missing = "files = [{ path = '/a', source = 'none' }]";
    let error = add_files(&mut tree, &self::recipe(missing), EPOCH)
        .unwrap_err()
        .report();
    assert!(error.contains("none") && error.contains("try:"), "{error}");
}

/// A root with a merged /usr and directories of their own kind.
fn merged_root() -> Tree {
    let mut tree = root();
    for (path, mode, uid) in [
        ("usr/lib", 0o755, 0),
        ("run", 0o755, 0),
        ("tmp", 0o1777, 0),
        ("var", 0o755, 0),
    ] {
        tree.create_dirs(path.as_bytes(), &Meta::new(mode, uid, 0, 1))
            .unwrap();
    }
    tree.create_dirs(b"srv/www", &Meta::new(0o2770, 33, 33, 1))
        .unwrap();
    for (path, target) in [
        ("lib", "usr/lib"),
        ("var/run", "/run"),
        ("var/mail", "spool/mail"),
    ] {
        let link = Kind::Symlink(target.as_bytes().to_vec());
        tree.insert(path.as_bytes(), link, Meta::new(0o777, 0, 0, 1))
            .unwrap();
    }
    edit::write_text(
        &mut tree,
        "usr/lib/libc.so",
        "ELF".into(),
        Meta::new(0o644, 0, 0, 1),
    )
    .unwrap();
    tree
}

#[test]
fn a_source_merges_into_the_directories_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["lib/own", "var/run/own", "var/mail", "tmp", "srv/www/sub"] {
        std::fs::create_dir_all(dir.path().join("over").join(path)).unwrap();
        std::fs::write(dir.path().join("over").join(path).join("file"), path).unwrap();
    }
    let lay = |files: &str| {
        let mut recipe = recipe(files);
        recipe.directory = dir.path().into();
        let mut tree = merged_root();
        add_files(&mut tree, &recipe, EPOCH).unwrap();
        tree
    };
    let mut tree = lay("files = [{ path = '/', source = 'over' }]");
    // Links stay, and what was there is still found by way of them.
    for path in ["lib", "var/run", "var/mail"] {
        assert_eq!(what(&tree, path).0, 'l', "{path}");
    }
    for path in [
        "lib/libc.so",
        "usr/lib/own/file",
        "run/own/file",
        "var/spool/mail/file",
        "tmp/file",
    ] {
        assert_ne!(text(&tree, path), "", "{path}");
    }
    // Owner and permissions of directories stay, too; what is new is root's.
    assert_eq!(what(&tree, "tmp"), ('d', 0o1777, 0, 0));
    assert_eq!(what(&tree, "srv/www"), ('d', 0o2770, 33, 33));
    assert_eq!(what(&tree, "srv/www/sub"), ('d', 0o755, 0, 0));
    // Where an entry names an owner, its directory is that owner's.
    tree = lay("files = [{ path = '/srv/www', source = 'over/srv/www', owner = 'old' }]");
    assert_eq!(what(&tree, "srv/www"), ('d', 0o2770, 1000, 33));
    assert_eq!(what(&tree, "srv/www/sub"), ('d', 0o755, 1000, 0));
    tree = lay(
        "files = [{ path = '/lib', directory = true }, { path = '/tmp', directory = true, mode = '0700' }]",
    );
    assert_eq!((what(&tree, "lib").0, what(&tree, "tmp").1), ('l', 0o700));
}

#[test]
fn a_directory_that_exists_is_not_replaced_by_a_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("over/lib")).unwrap();
    std::fs::create_dir_all(dir.path().join("over/etc/passwd")).unwrap();
    std::fs::write(dir.path().join("over/lib/x"), "x").unwrap();
    std::fs::write(dir.path().join("file"), "x").unwrap();
    std::fs::create_dir_all(dir.path().join("links")).unwrap();
    std::os::unix::fs::symlink("x", dir.path().join("links/usr")).unwrap();
    for (entry, words) in [
        (
            "path = '/usr/lib', content = 'x'",
            "/usr/lib into the image: a directory has",
        ),
        (
            "path = '/tmp', content = 'x'",
            "/tmp into the image: a directory has",
        ),
        (
            "path = '/lib', content = 'x'",
            "/lib into the image: a link to a directory has",
        ),
        (
            "path = '/var/run', source = 'file'",
            "/var/run into the image: a link to a directory has",
        ),
        (
            "path = '/usr', link = 'x'",
            "/usr into the image: a directory with files has",
        ),
        (
            "path = '/', source = 'links'",
            "/usr into the image: a directory with files has",
        ),
        (
            "path = '/', source = 'over'",
            "/etc/passwd into the image: something that is no directory has",
        ),
        ("path = '/', content = 'x'", "/ into the image: a directory has"),
        (
            "path = '/etc/passwd/x', content = 'x'",
            "/etc/passwd: not a directory",
        ),
    ] {
        let mut recipe = recipe(&format!("files = [{{ {entry} }}]"));
        recipe.directory = dir.path().into();
        let error = add_files(&mut merged_root(), &recipe, EPOCH)
            .unwrap_err()
            .report();
        assert!(
            error.contains(words) && error.contains("try:"),
            "{entry}: {error}"
        );
    }
    // Links to files and links that lead nowhere are replaced themselves, and a link by another.
    let mut tree = merged_root();
    let files = "files = [{ path = '/var/mail', content = 'text' }, { path = '/lib', link = '/opt/lib' }]";
    add_files(&mut tree, &recipe(files), EPOCH).unwrap();
    assert_eq!((what(&tree, "var/mail").0, what(&tree, "lib").0), ('-', 'l'));
    assert!(tree.find(b"usr/lib/libc.so").unwrap().is_some());
}

#[test]
fn a_directory_in_place_of_an_edited_file_is_refused() {
    let mut tree = root();
    tree.create_dirs(b"etc/hostname/x", &Meta::new(0o755, 0, 0, 1))
        .unwrap();
    let error = set_hostname(&mut tree, "kiln", EPOCH).unwrap_err().report();
    assert!(
        error.contains("etc/hostname") && error.contains("not a file"),
        "{error}"
    );
    // A home that a link leads to is made where it leads.
    let link = Kind::Symlink(b"/var/home".to_vec());
    tree.insert(b"home", link, Meta::new(0o777, 0, 0, 1)).unwrap();
    add_users(&mut tree, &recipe("users = [{ name = 'ada' }]"), EPOCH).unwrap();
    assert_eq!(what(&tree, "home").0, 'l');
    assert_eq!(what(&tree, "var/home/ada"), ('d', 0o700, 1001, 1001));
}

#[test]
fn a_service_becomes_a_unit_that_systemd_reads_as_it_was_meant() {
    let mut tree = root();
    let services = "[[services]]
name = 'web'
command = ['/usr/bin/web', '--root=/srv/a b', '$HOME', '100%', 'say \"x\"']
environment = { A = 'b c', P = '50%', V = '$x' }
restart = 'on-failure'
user = 'old'";
    add_units(&mut tree, &recipe(services), EPOCH).unwrap();
    let unit = text(&tree, "etc/systemd/system/web.service");
    for line in [
        r#"ExecStart="/usr/bin/web" "--root=/srv/a b" "$$HOME" "100%%" "say \"x\"""#,
        r#"Environment="A=b c""#,
        r#"Environment="P=50%%""#,
        r#"Environment="V=$x""#,
        "Restart=on-failure",
        "User=old",
        "WorkingDirectory=/",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} is missing in\n{unit}");
    }
    let id = tree
        .find(b"etc/systemd/system/multi-user.target.wants/web.service")
        .unwrap()
        .unwrap();
    assert!(matches!(&tree.node(id).kind, Kind::Symlink(target) if target == b"../web.service"));
}

#[test]
fn the_host_name_is_in_hostname_and_hosts() {
    let mut tree = root();
    set_hostname(&mut tree, "kiln", EPOCH).unwrap();
    assert_eq!(text(&tree, "etc/hostname"), "kiln\n");
    assert_eq!(
        text(&tree, "etc/hosts"),
        "127.0.0.1\tlocalhost\n127.0.1.1\tkiln\n"
    );
}

#[test]
fn a_source_whose_names_no_image_can_have_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("site");
    std::fs::create_dir(&source).unwrap();
    let bad = std::ffi::OsStr::from_bytes(b"caf\xe9");
    let mut recipe = recipe("files = [{ path = '/srv/site', source = 'site' }]");
    recipe.directory = dir.path().into();
    let refused = || add_files(&mut root(), &recipe, EPOCH).unwrap_err().report();
    std::fs::write(source.join(bad), "x").unwrap();
    let error = refused();
    assert!(
        error.contains("site/caf") && error.contains("its name is not UTF-8") && error.contains("try:"),
        "{error}"
    );
    std::fs::remove_file(source.join(bad)).unwrap();
    std::os::unix::fs::symlink(bad, source.join("link")).unwrap();
    let error = refused();
    assert!(error.contains("site/link") && error.contains("target"), "{error}");
}
