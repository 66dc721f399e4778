//! Reading a recipe, and what cannot be said by its types.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use displaydoc::Display;

use super::wrong::{Wrong, check_word, wrong};
use super::{Kernel, Recipe, Variant, contents};
use crate::advice::Advice;
use crate::spelling::nearest;
use crate::time::parse_timestamp;

/// A recipe is read whole; one that is longer than this is something else.
const MAX_RECIPE: u64 = 1 << 20;

/// Why a recipe is not usable.
#[derive(Debug, Display, thiserror::Error)]
pub enum Error {
    /// cannot read recipe {path}: {source}
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// recipe {path} is invalid: {message}
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
        /// The nearest key, or where to read.
        advice: String,
    },
    /// recipe {path}: {key}: {message}
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

impl Advice for Error {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Read { .. } => "check the path; examples/hello.toml is the shortest recipe".into(),
            Self::Syntax { advice, .. } => advice.clone().into(),
            Self::Value { advice, .. } => (*advice).into(),
        })
    }
}

/// The least that any machine of `vmm` has, in bytes.
const MIN_MEMORY: u64 = 32 << 20;
/// x86 takes 2047 characters; what the image and the launcher say themselves comes before.
const MAX_COMMAND_LINE: usize = 1900;

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

/// Files have times from 1970 on.
fn is_time(text: &str) -> bool {
    parse_timestamp(text).is_some_and(|time| time >= std::time::UNIX_EPOCH)
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
        if let Some(text) = time.as_deref().filter(|text| !is_time(text)) {
            return wrong(
                key,
                &format!("`{text}` is no time of 1970 or later"),
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
    if let Some(package) = recipe.kernel.package.as_deref().filter(|name| name.contains(':'))
        && (!package.ends_with(Kernel::OF_32_BITS) || recipe.arch != [ami::Architecture::I386])
    {
        return wrong(
            "kernel.package",
            &format!("`{package}` is a kernel of another architecture than the images'"),
            "the name alone; NAME:i386 where arch = [\"i386\"]",
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
    if recipe.cpus.is_some_and(|n| !(1..=254).contains(&n)) {
        return wrong("cpus", "an image can ask for 1 to 254 processors", "cpus = 1");
    }
    check_restrictions(recipe)?;
    check_machine(recipe)?;
    check_volumes(recipe)?;
    contents::check(recipe)
}

/// An entry for an architecture that there is none of is for no image.
fn check_restrictions(recipe: &Recipe) -> Result<(), Wrong> {
    let known = ami::Architecture::ALL.map(ami::Architecture::debian);
    for (key, entries) in [("packages", &recipe.packages), ("modules", &recipe.modules)] {
        for entry in entries {
            let Some((_, restriction)) = entry.split_once('[') else {
                continue;
            };
            let names = restriction.strip_suffix(']').unwrap_or(" ").split_whitespace();
            let mut names = names.peekable();
            if names.peek().is_none() || names.any(|name| !known.contains(&name)) {
                return wrong(
                    key,
                    &format!("`{entry}` is for no architecture"),
                    "`name [amd64]`, `name [arm64]`, `name [i386]`, or the name alone",
                );
            }
        }
    }
    Ok(())
}

/// What an instance would refuse, or not boot with.
fn check_machine(recipe: &Recipe) -> Result<(), Wrong> {
    if let Some(memory) = recipe.memory.and_then(|size| size.0)
        && (memory < MIN_MEMORY || !memory.is_multiple_of(1 << 20))
    {
        return wrong(
            "memory",
            &format!("no machine has {memory} bytes"),
            "whole MiB, at least 32M: memory = \"256M\"",
        );
    }
    if recipe.root_size.0.is_some_and(|size| size > ami::MAX_PART) {
        return wrong(
            "root-size",
            "an image holds a root of at most 1T",
            "a smaller size, or \"auto\"; `block-devices` may be larger",
        );
    }
    let printable = |b: u8| b == b' ' || b.is_ascii_graphic();
    if recipe.command_line.len() > MAX_COMMAND_LINE || !recipe.command_line.bytes().all(printable) {
        return wrong(
            "command-line",
            "the kernel takes only printable ASCII, and not much of it",
            "one line, at most 1900 characters",
        );
    }
    let without_modules = recipe.kernel.build.is_some() || recipe.kernel.path.is_some();
    if without_modules && !recipe.modules.is_empty() {
        return wrong(
            "modules",
            "the kernel of kernel.build or kernel.path has no modules",
            "kernel.package, or leave `modules` out",
        );
    }
    Ok(())
}

fn check_volumes(recipe: &Recipe) -> Result<(), Wrong> {
    let mut seen = BTreeSet::from(["/dev/vda"]);
    for device in &recipe.block_devices {
        let key = format!("block-devices, {}", device.name);
        let sound = |name: &str| !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric());
        if !device.name.strip_prefix("/dev/").is_some_and(sound) {
            return Err((
                key,
                "it is not the name of a device".into(),
                "name = \"/dev/sdb\"",
            ));
        }
        if !seen.insert(&device.name) {
            let message = "that device is there already".into();
            return Err((key, message, "a name of its own; /dev/vda is the root"));
        }
        if device
            .size
            .0
            .is_some_and(|size| size == 0 || !size.is_multiple_of(4096))
        {
            return Err((
                key,
                "no volume has that size".into(),
                "a multiple of 4096 bytes: size = \"1G\"",
            ));
        }
    }
    Ok(())
}
