//! Holds texts to the tree: links lead somewhere, files that are named exist, quotations are verbatim.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use super::parts::{Part, parts};
use super::quote;
use super::summary::Chapter;
use super::{Book, SOURCE};

/// How a chapter ends.
const QUESTIONS: &str = "questions";
/// What each chapter but the preface has: something to type, and how others do it.
const SECTIONS: [&str; 3] = ["experiment", "elsewhere", QUESTIONS];
/// Chapters without them.
const WITHOUT: &str = "preface.md";
/// What names of files in the tree end in.
const ENDINGS: [&str; 7] = [".rs", ".md", ".toml", ".json", ".svg", ".css", ".txt"];

/// What is wrong with the book, one line each.
pub(super) fn book(book: &Book) -> Vec<String> {
    let folder = book.root.join(SOURCE);
    let mut problems: Vec<String> = book
        .chapters
        .iter()
        .flat_map(|chapter| {
            let mut problems = text(&book.root, &folder.join(&chapter.file), &chapter.text);
            problems.extend(sections(chapter));
            problems
        })
        .collect();
    problems.extend(left_out(book, &folder));
    problems
}

/// What is wrong with the documentation besides the book.
pub(super) fn documentation(root: &Path) -> Result<Vec<String>> {
    let mut files = markdown(root)?;
    for folder in ["docs", "docs/benchmarks"] {
        files.extend(markdown(&root.join(folder))?);
    }
    let mut problems = Vec::new();
    for file in files {
        problems.extend(text(root, &file, &super::read(&file)?));
    }
    Ok(problems)
}

fn markdown(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} could not be read", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "md"))
        .collect())
}

/// What is wrong with one text.
fn text(root: &Path, file: &Path, text: &str) -> Vec<String> {
    let name = file.strip_prefix(root).unwrap_or(file).display();
    let problem = |part: &Part| match part {
        Part::Heading(_) => None,
        Part::Link(link) => (!leads(file, link)).then(|| format!("{name}: the link {link} leads nowhere")),
        Part::Code(code) => (!is_there(root, code)).then(|| format!("{name}: there is no {code}")),
        Part::Block(words, code) => {
            let quoted = quote::file(words)?;
            let source = fs::read_to_string(root.join(quoted)).unwrap_or_default();
            let found = quote::line(code, &source).is_some();
            (!found).then(|| format!("{name}: {quoted} has no such lines:\n{code}"))
        }
    };
    parts(text).iter().filter_map(problem).collect()
}

/// Whether a link of the text `file` leads to a file that is there, and to a heading in it.
fn leads(file: &Path, link: &str) -> bool {
    if link.contains("://") || link.starts_with("mailto:") {
        return true;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => file.to_owned(),
        path => file.parent().unwrap_or(file).join(path),
    };
    if anchor.is_empty() {
        return target.exists();
    }
    let text = fs::read_to_string(&target).unwrap_or_default();
    parts(&text).contains(&Part::Heading(anchor.to_owned()))
}

/// Whether code within a sentence names a file of the tree that is there, with what it is said to have
/// (`machine/src/bus.rs::Bus`). What names no file of the tree is always there.
fn is_there(root: &Path, code: &str) -> bool {
    let (path, item) = code
        .split_once("::")
        .map_or((code, None), |(path, item)| (path, Some(item)));
    if !names_a_file(root, path) {
        return true;
    }
    let file = root.join(path);
    match item {
        None => file.exists(),
        Some(item) => {
            let source = fs::read_to_string(file).unwrap_or_default();
            let word = item.rsplit("::").next().unwrap_or(item);
            source
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .any(|found| found == word)
        }
    }
}

/// Whether `path` is meant as the name of a file in the tree: it begins with one of its folders, and has no
/// placeholder.
fn names_a_file(root: &Path, path: &str) -> bool {
    let plain = path
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let ends = path.ends_with('/') || ENDINGS.iter().any(|ending| path.ends_with(ending));
    let first = match Path::new(path).components().next() {
        Some(Component::Normal(first)) => root.join(first),
        _ => return false,
    };
    plain && ends && path.contains('/') && first.is_dir() && !path.starts_with("target/")
}

/// The sections that a chapter lacks.
fn sections(chapter: &Chapter) -> Vec<String> {
    if chapter.file == WITHOUT {
        return Vec::new();
    }
    let parts = parts(&chapter.text);
    let headings: Vec<&str> = parts
        .iter()
        .filter_map(|part| match part {
            Part::Heading(heading) => Some(heading.as_str()),
            _ => None,
        })
        .collect();
    let missing = SECTIONS.iter().filter(|section| !headings.contains(section));
    let mut problems: Vec<_> = missing
        .map(|section| format!("{}: it has no section \"{section}\"", chapter.file))
        .collect();
    if headings.last() != Some(&QUESTIONS) {
        problems.push(format!("{}: it does not end with questions", chapter.file));
    }
    let typed = |part: &Part| matches!(part, Part::Block(words, code) if words == "console" && code.starts_with("$ "));
    if !parts.iter().any(typed) {
        problems.push(format!("{}: there is nothing to type", chapter.file));
    }
    problems
}

/// Texts and figures of the folder that no chapter is or has.
fn left_out(book: &Book, folder: &Path) -> Vec<String> {
    let all: String = book
        .chapters
        .iter()
        .map(|chapter| chapter.text.as_str())
        .collect();
    let known: BTreeSet<&str> = book
        .chapters
        .iter()
        .map(|chapter| chapter.file.as_str())
        .collect();
    let names = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let texts = names(folder.to_owned()).into_iter();
    let texts =
        texts.filter(|name| name.ends_with(".md") && name != "SUMMARY.md" && !known.contains(name.as_str()));
    let figures = names(folder.join("figures")).into_iter();
    let figures = figures.filter(|name| !all.contains(&format!("](figures/{name})")));
    let message = |name| format!("{name}: no chapter has it");
    texts.chain(figures).map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("machine/src")).unwrap();
        fs::write(
            tree.path().join("machine/src/bus.rs"),
            "/// The bus.\npub struct Bus {\n    a: u8,\n}\n",
        )
        .unwrap();
        fs::write(tree.path().join("other.md"), "# One heading\n").unwrap();
        tree
    }

    fn problems(text_: &str) -> usize {
        let tree = tree();
        text(tree.path(), &tree.path().join("text.md"), text_).len()
    }

    #[test]
    fn what_is_there_is_no_problem() {
        for right in [
            "`machine/src/bus.rs` and `machine/src/bus.rs::Bus`, `machine/src/`",
            "[one](other.md), [two](other.md#one-heading), [three](https://example.org)",
            "```rust,file=machine/src/bus.rs\npub struct Bus {\n```",
            "`/dev/kvm`, `console=ttyS0`, `elsewhere/file.rs`, `machine/src/*.rs`, `Bus::find`",
        ] {
            assert_eq!(problems(right), 0, "{right}");
        }
    }

    #[test]
    fn what_is_not_there_is_a_problem() {
        for wrong in [
            "`machine/src/buses.rs`",
            "`machine/src/bus.rs::Train`",
            "[one](another.md)",
            "[two](other.md#another-heading)",
            "![three](figure.svg)",
            "```rust,file=machine/src/bus.rs\npub struct Train {\n```",
        ] {
            assert_eq!(problems(wrong), 1, "{wrong}");
        }
    }

    #[test]
    fn a_chapter_without_its_sections_is_a_problem() {
        let chapter = |text: &str| Chapter {
            title: "One".to_owned(),
            file: "one.md".to_owned(),
            text: text.to_owned(),
        };
        let whole = "# One\n\n## Experiment\n\n```console\n$ true\n```\n\n## Elsewhere\n\n## Questions\n";
        assert_eq!(sections(&chapter(whole)), [""; 0]);
        assert_eq!(sections(&chapter("# One\n\n## Questions\n")).len(), 3);
        assert_eq!(sections(&chapter(&format!("{whole}\n## More\n"))).len(), 1);
    }
}
