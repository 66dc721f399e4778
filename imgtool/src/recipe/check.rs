//! Reading a recipe, and what cannot be said by its types.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{FileEntry, Recipe, Variant, expand_braces, nearest};
use crate::fetch::clock::parse_timestamp;

/// A recipe is read whole; one that is longer than this is something else.
const MAX_RECIPE: u64 = 1 << 20;

/// Why a recipe is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error(
        "cannot read recipe {path}: {source}\n  try: check the path; examples/hello.toml is the shortest recipe"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not TOML, or a key is unknown or of the wrong kind.
    #[error("recipe {path} is not right: {message}\n  try: {advice}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
        /// The nearest key, or where to read.
        advice: String,
    },
    /// A value makes no sense.
    #[error("recipe {path}: {key}: {message}\n  try: {advice}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
        /// What would be right.
        advice: &'static str,
    },
}

/// A wrong value: key, what is wrong, what would be right.
type Wrong = (String, String, &'static str);

pub(super) fn load(path: &Path) -> Result<Recipe, Error> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(read)?.len() > MAX_RECIPE {
        return Err(read(std::io::Error::other("it is longer than 1 MiB")));
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    let mut recipe = parse(&text).map_err(|(message, advice)| Error::Syntax {
        path: path.to_owned(),
        message,
        advice,
    })?;
    check(&recipe).map_err(|(key, message, advice)| Error::Value {
        path: path.to_owned(),
        key,
        message,
        advice,
    })?;
    recipe.directory = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok(recipe)
}

/// Parses the text. The error is a message that shows the place, and an advice.
pub(super) fn parse(text: &str) -> Result<Recipe, (String, String)> {
    toml::from_str(text).map_err(|e| {
        let advice =
            unknown_key_advice(e.message()).unwrap_or_else(|| "docs/recipe.md explains every key".to_owned());
        (e.to_string().trim_end().to_owned(), advice)
    })
}

/// serde words it ``unknown field `packges`, expected one of `name`, `packages`, …``.
fn unknown_key_advice(message: &str) -> Option<String> {
    let rest = message
        .strip_prefix("unknown field `")
        .or(message.strip_prefix("unknown variant `"))?;
    let (unknown, rest) = rest.split_once('`')?;
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    Some(match nearest(unknown, known.iter().copied()) {
        Some(near) => format!("`{near}`, which is the nearest known key"),
        None => format!("one of {}", known.join(", ")),
    })
}

fn check(recipe: &Recipe) -> Result<(), Wrong> {
    check_word("name", &recipe.name)?;
    if recipe.arch.is_empty() {
        return wrong(
            "arch",
            "the list is empty",
            "name an architecture, such as \"x86_64\"",
        );
    }
    for (key, time) in [
        ("created", &recipe.created),
        ("distribution.snapshot", &recipe.distribution.snapshot),
    ] {
        if let Some(text) = time.as_deref().filter(|text| parse_timestamp(text).is_none()) {
            return wrong(
                key,
                &format!("`{text}` is no time"),
                "write \"2026-11-21T00:00:00Z\"",
            );
        }
    }
    let kernels = [
        recipe.kernel.package.is_some(),
        recipe.kernel.build.is_some(),
        recipe.kernel.path.is_some(),
    ];
    if kernels.iter().filter(|set| **set).count() > 1 {
        return wrong(
            "kernel",
            "it has more than one source",
            "keep one of package, build and path",
        );
    }
    if recipe.init() != "guest-init" && !recipe.init().starts_with('/') {
        return wrong(
            "init",
            &format!("`{}` is no path", recipe.init()),
            "\"guest-init\" or a path such as \"/sbin/init\"",
        );
    }
    if recipe.variant == Variant::Extract && !recipe.run.is_empty() {
        return wrong(
            "run",
            "the variant `extract` configures nothing and runs nothing",
            "variant = \"minbase\"",
        );
    }
    if recipe.variant == Variant::Extract && recipe.base.is_none() && recipe.packages.is_empty() {
        return wrong(
            "packages",
            "the variant `extract` has only the packages that the recipe names",
            "name a package",
        );
    }
    if recipe.cpus.is_some_and(|n| !(1..=255).contains(&n)) {
        return wrong("cpus", "an image can ask for 1 to 255 processors", "cpus = 1");
    }
    check_names(recipe)?;
    recipe.files.iter().try_for_each(check_file)
}

fn check_names(recipe: &Recipe) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    let users = recipe.users.iter().map(|user| ("users", &user.name));
    let services = recipe.services.iter().map(|service| ("services", &service.name));
    for (key, name) in users.chain(services) {
        check_word(key, name)?;
        if !seen.insert((key, name)) {
            return wrong(
                key,
                &format!("`{name}` is there twice"),
                "give each a name of its own",
            );
        }
    }
    if let Some(service) = recipe
        .services
        .iter()
        .find(|service| !service.command.first().is_some_and(|c| c.starts_with('/')))
    {
        let message = format!(
            "the command of `{}` does not begin with an absolute path",
            service.name
        );
        return wrong(
            "services",
            &message,
            "command = [\"/usr/bin/program\", \"argument\"]",
        );
    }
    // These become lines of passwd, unit files and authorized_keys.
    let one_line = |text: &str| !text.contains(['\n', '\r', '\0']);
    for user in &recipe.users {
        let fields = [
            Some(user.comment.as_str()),
            user.home.as_deref(),
            Some(&user.shell),
            user.password_hash.as_deref(),
        ];
        let sound = |text: &str| one_line(text) && !text.contains(':');
        if !fields.into_iter().flatten().all(sound) || !user.ssh_keys.iter().all(|key| one_line(key)) {
            let message = format!("a value of `{}` contains a line end or a colon", user.name);
            return wrong("users", &message, "one line, without colons outside of ssh-keys");
        }
    }
    for service in &recipe.services {
        let texts = service
            .command
            .iter()
            .chain(service.environment.values())
            .chain(service.environment.keys());
        if !texts
            .chain([&service.working_directory, &service.user])
            .all(|text| one_line(text))
        {
            let message = format!("a value of `{}` contains a line end", service.name);
            return wrong("services", &message, "one line each");
        }
    }
    Ok(())
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

fn check_word(key: &str, word: &str) -> Result<(), Wrong> {
    let sound = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    match word.bytes().all(sound)
        && word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && word.len() <= 128
    {
        true => Ok(()),
        false => wrong(
            key,
            &format!("`{word}` cannot be a name"),
            "letters, digits, `.`, `_` and `-`, at most 128",
        ),
    }
}

fn wrong(key: &str, message: &str, advice: &'static str) -> Result<(), Wrong> {
    Err((key.to_owned(), message.to_owned(), advice))
}
