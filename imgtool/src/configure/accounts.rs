//! The recipe's `users`: passwd, shadow, group, home directories, keys and sudo.

use super::Error;
use super::edit::{make_parents, read_text, write_text};
use super::secrets::OwnFiles;
use crate::recipe::{Recipe, User};
use crate::tree::{Meta, Tree};

/// The first number for people, as adduser has it, and the first that it does not give.
const FIRST_UID: u32 = 1000;
const LAST_UID: u32 = 60_000;

/// Writes `passwd` and `group` with root alone, where no package brought them: programs look their user up.
pub fn basic_accounts(tree: &mut Tree, epoch: i64) -> Result<(), Error> {
    let meta = Meta::new(0o644, 0, 0, epoch);
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
    ] {
        if tree.find(path.as_bytes()).map_err(Error::tree(path))?.is_none() {
            write_text(tree, path, text.into(), meta.clone())?;
        }
    }
    Ok(())
}

/// Creates the recipe's users, and sets what it says of users that exist.
pub fn add_users(tree: &mut Tree, recipe: &Recipe, epoch: i64) -> Result<(), Error> {
    for user in &recipe.users {
        let account = match find(tree, "etc/passwd", &user.name)? {
            Some(fields) => change(tree, user, fields, epoch)?,
            None => create(tree, user, &default_shell(tree, recipe)?, epoch)?,
        };
        set_password(tree, user, epoch)?;
        user.groups
            .iter()
            .try_for_each(|group| join(tree, group, &user.name, epoch))?;
        write_keys(tree, user, &account, epoch)?;
        if user.sudo {
            let text = format!("{} ALL=(ALL:ALL) NOPASSWD: ALL\n", user.name);
            // sudo does not read files with a dot in their name.
            let path = format!("etc/sudoers.d/{}", user.name.replace('.', "%2e"));
            write_text(tree, &path, text, Meta::new(0o440, 0, 0, epoch))?;
        }
    }
    Ok(())
}

struct Account {
    uid: u32,
    gid: u32,
    home: String,
}

/// What a new user gets: bash where the packages or the recipe bring it.
fn default_shell(tree: &Tree, recipe: &Recipe) -> Result<String, Error> {
    let own = OwnFiles::of(recipe);
    let path = "/bin/bash";
    let found = tree.find_followed(path.as_bytes()).map_err(Error::tree(path))?;
    let there = found.is_some() || own.contain("bin/bash") || own.contain("usr/bin/bash");
    Ok(if there { path } else { "/bin/sh" }.to_owned())
}

fn create(tree: &mut Tree, user: &User, shell: &str, epoch: i64) -> Result<Account, Error> {
    let uid = match user.uid {
        Some(uid) => match name_of(tree, "etc/passwd", uid)? {
            None => uid,
            Some(owner) => {
                return Err(Error::Taken {
                    name: user.name.clone(),
                    uid,
                    owner: format!("user `{owner}`"),
                });
            }
        },
        None => free_id(tree)?,
    };
    let home = user
        .home
        .clone()
        .unwrap_or_else(|| format!("/home/{}", user.name));
    let gid = match find(tree, "etc/group", &user.name)? {
        Some(fields) => number(&fields, 2).unwrap_or(uid),
        None => {
            // A group of another name may have the number, as `users` has 100.
            let gid = match name_of(tree, "etc/group", uid)? {
                None => uid,
                Some(_) => free_id(tree)?,
            };
            append(tree, "etc/group", &format!("{}:x:{gid}:", user.name), epoch)?;
            if tree
                .find(b"etc/gshadow")
                .map_err(Error::tree("etc/gshadow"))?
                .is_some()
            {
                append(tree, "etc/gshadow", &format!("{}:!::", user.name), epoch)?;
            }
            gid
        }
    };
    let shell = user.shell.as_deref().unwrap_or(shell);
    let line = format!("{}:x:{uid}:{gid}:{}:{home}:{shell}", user.name, user.comment);
    append(tree, "etc/passwd", &line, epoch)?;
    make_home(tree, &home, uid, gid, epoch)?;
    Ok(Account { uid, gid, home })
}

/// A user that exists keeps its numbers; shell, comment and home are the recipe's where it gives them.
fn change(tree: &mut Tree, user: &User, mut fields: Vec<String>, epoch: i64) -> Result<Account, Error> {
    fields.resize(7, String::new());
    if let Some(uid) = user.uid
        && fields[2] != uid.to_string()
    {
        return Err(Error::Unusable {
            key: format!("users, {}", user.name),
            why: format!("uid {uid}, and the user exists with {}", fields[2]),
            advice: "leave uid out: packages' files have the number that it has",
        });
    }
    if !user.comment.is_empty() {
        fields[4].clone_from(&user.comment);
    }
    if let Some(home) = &user.home {
        fields[5].clone_from(home);
    }
    if let Some(shell) = &user.shell {
        fields[6].clone_from(shell);
    }
    let account = Account {
        uid: number(&fields, 2).unwrap_or(0),
        gid: number(&fields, 3).unwrap_or(0),
        home: fields[5].clone(),
    };
    replace(tree, "etc/passwd", &user.name, &fields.join(":"), epoch)?;
    Ok(account)
}

/// Without a hash a new user has no password, and one that exists keeps its own.
fn set_password(tree: &mut Tree, user: &User, epoch: i64) -> Result<(), Error> {
    // Days since 1970: the day of the last change.
    let day = epoch / 86400;
    let old = find(tree, "etc/shadow", &user.name)?;
    let hash = match (&user.password_hash, &old) {
        (Some(hash), _) => hash.as_str(),
        (None, Some(_)) => return Ok(()),
        (None, None) => "!",
    };
    let line = format!("{}:{hash}:{day}:0:99999:7:::", user.name);
    match old {
        Some(_) => replace(tree, "etc/shadow", &user.name, &line, epoch),
        None => append(tree, "etc/shadow", &line, epoch),
    }
}

fn join(tree: &mut Tree, group: &str, user: &str, epoch: i64) -> Result<(), Error> {
    for path in ["etc/group", "etc/gshadow"] {
        let Some(mut fields) = find(tree, path, group)? else {
            if path == "etc/group" {
                return Err(Error::NoAccount {
                    kind: "group",
                    name: group.to_owned(),
                });
            }
            continue;
        };
        fields.resize(4, String::new());
        if !fields[3].split(',').any(|member| member == user) {
            let comma = if fields[3].is_empty() { "" } else { "," };
            fields[3] += &format!("{comma}{user}");
            replace(tree, path, group, &fields.join(":"), epoch)?;
        }
    }
    Ok(())
}

fn write_keys(tree: &mut Tree, user: &User, account: &Account, epoch: i64) -> Result<(), Error> {
    if user.ssh_keys.is_empty() {
        return Ok(());
    }
    let Account { uid, gid, home } = account;
    make_home(tree, home, *uid, *gid, epoch)?;
    let dir = format!("{home}/.ssh");
    tree.create_dirs(dir.as_bytes(), &Meta::new(0o700, *uid, *gid, epoch))
        .map_err(Error::tree(&dir))?;
    let text = user
        .ssh_keys
        .iter()
        .map(|key| format!("{}\n", key.trim()))
        .collect();
    write_text(
        tree,
        &format!("{dir}/authorized_keys"),
        text,
        Meta::new(0o600, *uid, *gid, epoch),
    )
}

/// A home directory with what `/etc/skel` holds; one that exists is left alone.
fn make_home(tree: &mut Tree, home: &str, uid: u32, gid: u32, epoch: i64) -> Result<(), Error> {
    if tree
        .find_followed(home.as_bytes())
        .map_err(Error::tree(home))?
        .is_some()
    {
        return Ok(());
    }
    make_parents(tree, home, epoch)?;
    // Where a link leads nowhere yet, its target becomes the home.
    tree.create_dirs(home.as_bytes(), &Meta::new(0o700, uid, gid, epoch))
        .map_err(Error::tree(home))?;
    let Some(skel) = tree.find_followed(b"etc/skel").map_err(Error::tree("etc/skel"))? else {
        return Ok(());
    };
    let files: Vec<_> = tree
        .children(skel)
        .map(|(name, id)| (name.to_vec(), tree.node(id).clone()))
        .filter(|(_, node)| !node.is_dir())
        .collect();
    for (name, node) in files {
        let path = [home.as_bytes(), b"/", &name].concat();
        let meta = Meta::new(node.meta.mode, uid, gid, epoch);
        tree.insert(&path, node.kind, meta).map_err(Error::tree(home))?;
    }
    Ok(())
}

/// The number of a user, by name or as written.
pub fn user_id(tree: &Tree, name: &str) -> Result<u32, Error> {
    id(tree, "etc/passwd", "user", name)
}

/// The number of a group, by name or as written.
pub fn group_id(tree: &Tree, name: &str) -> Result<u32, Error> {
    id(tree, "etc/group", "group", name)
}

fn id(tree: &Tree, path: &str, kind: &'static str, name: &str) -> Result<u32, Error> {
    if name == "root" {
        return Ok(0);
    }
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let fields = find(tree, path, name)?;
    let missing = || Error::NoAccount {
        kind,
        name: name.to_owned(),
    };
    fields.and_then(|fields| number(&fields, 2)).ok_or_else(missing)
}

/// The lowest number that neither a user nor a group has.
fn free_id(tree: &Tree) -> Result<u32, Error> {
    let mut taken = Vec::new();
    for path in ["etc/passwd", "etc/group"] {
        let text = read_text(tree, path)?;
        taken.extend(
            text.lines()
                .filter_map(|line| line.split(':').nth(2)?.parse::<u32>().ok()),
        );
    }
    let free = (FIRST_UID..LAST_UID).find(|id| !taken.contains(id));
    free.ok_or_else(|| Error::Edit {
        path: "etc/passwd".into(),
        reason: "no number is free".into(),
    })
}

/// Who has a number.
fn name_of(tree: &Tree, path: &str, id: u32) -> Result<Option<String>, Error> {
    let text = read_text(tree, path)?;
    let lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut owners = lines.filter(|fields| fields.get(2).and_then(|text| text.parse().ok()) == Some(id));
    Ok(owners.next().map(|fields| fields[0].to_owned()))
}

fn find(tree: &Tree, path: &str, name: &str) -> Result<Option<Vec<String>>, Error> {
    let text = read_text(tree, path)?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    Ok(line.map(|line| line.split(':').map(str::to_owned).collect()))
}

fn number(fields: &[String], index: usize) -> Option<u32> {
    fields.get(index)?.parse().ok()
}

fn append(tree: &mut Tree, path: &str, line: &str, epoch: i64) -> Result<(), Error> {
    let mut text = read_text(tree, path)?;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += line;
    text.push('\n');
    write(tree, path, text, epoch)
}

fn replace(tree: &mut Tree, path: &str, name: &str, new: &str, epoch: i64) -> Result<(), Error> {
    let text = read_text(tree, path)?;
    let is_old = |line: &str| line.split(':').next() == Some(name);
    let lines = text.lines().map(|line| if is_old(line) { new } else { line });
    let text = lines.flat_map(|line| [line, "\n"]).collect();
    write(tree, path, text, epoch)
}

/// New shadow files are for root and, where it exists, the group of that name.
fn write(tree: &mut Tree, path: &str, text: String, epoch: i64) -> Result<(), Error> {
    let (mode, gid) = match path.ends_with("shadow") {
        true => (0o640, group_id(tree, "shadow").unwrap_or(0)),
        false => (0o644, 0),
    };
    write_text(tree, path, text, Meta::new(mode, 0, gid, epoch))
}
