//! Keys and databases that packages' scripts have made: removed from the image, made by each instance at its
//! first boot. The table is guest-init's, which makes them.

use std::collections::BTreeSet;

use guest_init::secrets::{PENDING, Secret, TABLE, is_star};

use super::edit::{read_text, write_text};
use super::{Error, keystore};
use crate::recipe::{FileEntry, Recipe, expand_braces};
use crate::tree::{Content, Kind, Meta, NodeId, Tree, show};

/// The Java virtual machine's list of certificate authorities: no secret, but it holds the time of its
/// making.
const CACERTS: &str = "etc/ssl/certs/java/cacerts";
/// Largest keystore that is read: the one of all authorities has 150 kB.
const MAX_KEYSTORE: u64 = 64 << 20;

/// What a package's script has made and others may change afterwards.
#[derive(Debug)]
pub struct Made {
    secret: &'static Secret,
    star: String,
    content: blake3::Hash,
}

/// What is in a root just after its packages were configured, and is not the base's.
pub fn made_by_packages(tree: &Tree, base: Option<&Tree>) -> Result<Vec<Made>, Error> {
    let mut found = Vec::new();
    for secret in TABLE.iter().filter(|secret| !secret.throwaway) {
        for star in stars(tree, secret)? {
            let of_base = base.map_or(Ok(None), |base| content(base, secret, &star))?;
            if of_base.is_none()
                && has_program(tree, secret, &star)?
                && let Some(content) = content(tree, secret, &star)?
            {
                found.push(Made {
                    secret,
                    star,
                    content,
                });
            }
        }
    }
    Ok(found)
}

/// Removes what each instance makes for itself, and lists it for the first boot. Returns what a person should
/// know: what stays, because the recipe has changed it.
pub fn remove(tree: &mut Tree, made: &[Made], recipe: &Recipe, epoch: i64) -> Result<Vec<String>, Error> {
    let own = OwnFiles::of(recipe);
    let mut pending: BTreeSet<String> = read_text(tree, PENDING)?.lines().map(str::to_owned).collect();
    let mut warnings = Vec::new();
    for secret in TABLE.iter().filter(|secret| secret.throwaway) {
        for star in stars(tree, secret)? {
            if has_program(tree, secret, &star)?
                && !own.contain(&secret.entry(&star))
                && content(tree, secret, &star)?.is_some()
            {
                remove_one(tree, secret, &star)?;
                pending.insert(secret.entry(&star));
            }
        }
    }
    for Made {
        secret,
        star,
        content: before,
    } in made
    {
        let entry = secret.entry(star);
        match content(tree, secret, star)? {
            None => {}
            Some(now) if now == *before => {
                remove_one(tree, secret, star)?;
                pending.insert(entry);
            }
            Some(_) => warnings.push(format!(
                "/{entry} was made by package {} and changed by the recipe, so it stays: every instance has the same, and no two builds\n  \
                 try: let the first boot fill it, from user data or a service",
                secret.package
            )),
        }
    }
    if !own.contain(CACERTS) {
        settle_keystore(tree, CACERTS, epoch)?;
    }
    if !pending.is_empty() {
        let text = pending.iter().flat_map(|entry| [entry, "\n"]).collect();
        write_text(tree, PENDING, text, Meta::new(0o644, 0, 0, epoch))?;
    }
    Ok(warnings)
}

/// Room that the root needs for what its first boot makes, in bytes.
pub fn first_boot_room(tree: &Tree) -> Result<u64, Error> {
    let pending = read_text(tree, PENDING)?;
    let found = pending.lines().filter_map(Secret::of_entry);
    Ok(found.map(|(secret, _)| secret.room).sum())
}

/// The paths that a recipe's `files` write.
pub struct OwnFiles(Vec<String>);

impl OwnFiles {
    /// Those of a recipe.
    pub fn of(recipe: &Recipe) -> Self {
        let paths = |entry: &FileEntry| expand_braces(&entry.path).unwrap_or_default();
        Self(recipe.files.iter().flat_map(paths).collect())
    }

    /// Whether a path without a leading slash is one of them, or below one.
    pub fn contain(&self, path: &str) -> bool {
        let is_or_below = |own: &String| {
            let rest = path.strip_prefix(own.trim_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.0.iter().any(is_or_below)
    }
}

/// The same authorities make the same file.
fn settle_keystore(tree: &mut Tree, path: &str, epoch: i64) -> Result<(), Error> {
    let Some(id) = tree.find(path.as_bytes()).map_err(Error::tree(path))? else {
        return Ok(());
    };
    let Kind::File(content) = &tree.node(id).kind else {
        return Ok(());
    };
    if content.len() > MAX_KEYSTORE {
        return Ok(());
    }
    let bytes = content.read(MAX_KEYSTORE).map_err(unreadable(path))?;
    if let Some(settled) = keystore::with_time(&bytes, epoch.saturating_mul(1000)) {
        tree.node_mut(id).kind = Kind::File(Content::bytes(settled));
    }
    Ok(())
}

pub(super) fn unreadable(path: &str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::Edit {
        path,
        reason: error.to_string(),
    }
}

fn find(tree: &Tree, path: &str) -> Result<Option<NodeId>, Error> {
    tree.find(path.as_bytes()).map_err(Error::tree(path))
}

fn has_program(tree: &Tree, secret: &Secret, star: &str) -> Result<bool, Error> {
    let path = secret.program.replace('*', star);
    let found = tree.find_followed(path.as_bytes()).map_err(Error::tree(&path))?;
    Ok(found.is_some())
}

/// What `*` may stand for in a tree; one empty text where an entry has none.
fn stars(tree: &Tree, secret: &Secret) -> Result<Vec<String>, Error> {
    let Some(folder) = secret.star_folder() else {
        return Ok(vec![String::new()]);
    };
    let id = tree
        .find_followed(folder.as_bytes())
        .map_err(Error::tree(folder))?;
    let names = id.into_iter().flat_map(|id| tree.children(id));
    Ok(names
        .filter_map(|(name, _)| String::from_utf8(name.to_vec()).ok())
        .filter(|name| is_star(name))
        .collect())
}

/// The digest of an entry's files; `None` when there are none. Times do not count: a program that only reads
/// may change them.
fn content(tree: &Tree, secret: &Secret, star: &str) -> Result<Option<blake3::Hash>, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut any = false;
    for path in secret.paths {
        let path = path.replace('*', star);
        let mut open = vec![(path.clone().into_bytes(), find(tree, &path)?)];
        while let Some((path, id)) = open.pop() {
            let Some(id) = id else { continue };
            let node = tree.node(id);
            let text = show(&path);
            hasher.update(
                format!("{text} {:o} {} {} ", node.meta.mode, node.meta.uid, node.meta.gid).as_bytes(),
            );
            match &node.kind {
                Kind::File(content) => {
                    let mut reader = content.open().map_err(unreadable(&text))?;
                    hasher.update_reader(&mut reader).map_err(unreadable(&text))?;
                }
                Kind::Dir => {}
                other => {
                    hasher.update(format!("{other:?}").as_bytes());
                }
            }
            any |= !node.is_dir();
            let goes = |name: &[u8]| {
                secret
                    .keeps
                    .is_none_or(|prefix| !name.starts_with(prefix.as_bytes()))
            };
            let below = tree.children(id).filter(|(name, _)| goes(name));
            open.extend(below.map(|(name, id)| ([&path, &b"/"[..], name].concat(), Some(id))));
        }
    }
    Ok(any.then(|| hasher.finalize()))
}

/// Removes an entry's files, the content of its folder, and the links to it.
fn remove_one(tree: &mut Tree, secret: &Secret, star: &str) -> Result<(), Error> {
    for path in secret.paths {
        let path = path.replace('*', star);
        let Some(id) = find(tree, &path)? else { continue };
        if !tree.node(id).is_dir() {
            tree.remove(path.as_bytes()).map_err(Error::tree(&path))?;
            continue;
        }
        let names: Vec<Vec<u8>> = tree.children(id).map(|(name, _)| name.to_vec()).collect();
        for name in names {
            if secret
                .keeps
                .is_none_or(|prefix| !name.starts_with(prefix.as_bytes()))
            {
                let below = [path.as_bytes(), b"/", &name].concat();
                tree.remove(&below).map_err(Error::tree(&path))?;
            }
        }
    }
    let Some((folder, target)) = secret.links else {
        return Ok(());
    };
    let Some(id) = tree
        .find_followed(folder.as_bytes())
        .map_err(Error::tree(folder))?
    else {
        return Ok(());
    };
    let leads = |id: NodeId| matches!(&tree.node(id).kind, Kind::Symlink(to) if to == target.as_bytes());
    let links: Vec<_> = tree
        .children(id)
        .filter(|(_, id)| leads(*id))
        .map(|(name, _)| name.to_vec())
        .collect();
    for name in links {
        let link = [folder.as_bytes(), b"/", &name].concat();
        tree.remove(&link).map_err(Error::tree(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configure::edit::make_parents;

    const EPOCH: i64 = 1000;
    const KEY: &str = "etc/ssl/private/ssl-cert-snakeoil.key";
    const CLUSTER: &str = "var/lib/postgresql/17/main";

    fn put(tree: &mut Tree, path: &str, text: &str) {
        make_parents(tree, path, EPOCH).unwrap();
        let file = Kind::File(Content::bytes(text.as_bytes()));
        tree.insert(path.as_bytes(), file, Meta::new(0o600, 5, 5, EPOCH))
            .unwrap();
    }

    /// A root as packages leave it; what scripts make has `random` in it.
    fn configured(random: &str) -> Tree {
        let mut tree = Tree::new();
        for path in [
            "usr/sbin/make-ssl-cert",
            "usr/lib/postgresql/17/bin/initdb",
            "usr/bin/mariadb-install-db",
            "usr/sbin/rndc-confgen",
            "usr/sbin/slapd",
        ] {
            put(&mut tree, path, "program");
        }
        for path in [
            KEY,
            "etc/ssl/certs/ssl-cert-snakeoil.pem",
            "var/lib/postgresql/17/main/global/pg_control",
            "var/lib/mysql/ibdata1",
            "etc/bind/rndc.key",
            "etc/ldap/slapd.d/cn=config/olcDatabase={1}mdb.ldif",
            "var/lib/ldap/data.mdb",
        ] {
            put(&mut tree, path, random);
        }
        put(&mut tree, "var/lib/mysql/debian-11.8.flag", "");
        // Its package is not there: nothing would make it again.
        put(&mut tree, "etc/xrdp/rsakeys.ini", "kept");
        let link = Kind::Symlink(b"ssl-cert-snakeoil.pem".to_vec());
        tree.insert(
            format!("etc/ssl/certs/{random}.0").as_bytes(),
            link,
            Meta::new(0o777, 0, 0, EPOCH),
        )
        .unwrap();
        tree
    }

    fn recipe(text: &str) -> Recipe {
        toml::from_str(&format!("name = 'x'\n{text}")).unwrap()
    }

    fn names(tree: &Tree) -> Vec<String> {
        tree.walk()
            .filter(|(_, id)| !tree.node(*id).is_dir())
            .map(|(path, _)| show(&path))
            .collect()
    }

    #[test]
    fn two_builds_are_identical_and_list_the_secrets_for_the_first_boot() {
        let build = |random: &str| {
            let mut tree = configured(random);
            let made = made_by_packages(&tree, None).unwrap();
            let warnings = remove(&mut tree, &made, &recipe(""), EPOCH).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            tree
        };
        let (first, second) = (build("1111"), build("2222"));
        assert_eq!(names(&first), names(&second));
        assert!(
            !names(&first)
                .iter()
                .any(|name| name.contains("snakeoil") || name.contains("pg_control"))
        );
        assert_eq!(
            read_text(&first, PENDING).unwrap(),
            format!("etc/bind/rndc.key\netc/ldap/slapd.d\n{KEY}\nvar/lib/mysql\n{CLUSTER}\n")
        );
        assert_eq!(first_boot_room(&first).unwrap(), 384 << 20);
        for kept in ["var/lib/mysql/debian-11.8.flag", "etc/xrdp/rsakeys.ini", CLUSTER] {
            assert!(first.find(kept.as_bytes()).unwrap().is_some(), "{kept}");
        }
    }

    #[test]
    fn secrets_that_the_recipe_changes_stay() {
        let mut tree = configured("1");
        let made = made_by_packages(&tree, None).unwrap();
        put(&mut tree, "var/lib/postgresql/17/main/base/1", "rows");
        put(&mut tree, KEY, "of the recipe");
        let recipe = recipe(&format!(
            "files = [{{ path = '/{KEY}', content = 'of the recipe' }}]"
        ));
        let warnings = remove(&mut tree, &made, &recipe, EPOCH).unwrap();
        assert!(
            warnings.len() == 1 && warnings[0].contains(CLUSTER) && warnings[0].contains("try:"),
            "{warnings:?}"
        );
        assert_eq!(read_text(&tree, KEY).unwrap(), "of the recipe");
        assert_eq!(
            read_text(&tree, PENDING).unwrap(),
            "etc/bind/rndc.key\netc/ldap/slapd.d\nvar/lib/mysql\n"
        );
    }

    #[test]
    fn a_bases_data_stays_and_so_does_its_list() {
        let mut base = configured("1");
        put(&mut base, PENDING, "etc/munge/munge.key\n");
        let mut tree = base.clone();
        let made = made_by_packages(&tree, Some(&base)).unwrap();
        assert!(made.is_empty(), "{made:?}");
        remove(&mut tree, &made, &recipe(""), EPOCH).unwrap();
        assert!(tree.find(b"var/lib/mysql/ibdata1").unwrap().is_some());
        assert_eq!(
            read_text(&tree, PENDING).unwrap(),
            format!("etc/munge/munge.key\n{KEY}\n")
        );
    }
}
