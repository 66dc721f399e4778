//! The book in `docs/book`, in mdBook's layout: what it and the rest of the documentation name is held to exist,
//! and it becomes pages in `target/book` without any other program.

mod check;
mod experiment;
mod page;
mod parts;
mod quote;
mod summary;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kiln_tests::dist::workspace;

use self::summary::Chapter;

/// Where its text is, in the workspace.
const SOURCE: &str = "docs/book/src";
/// Where its pages go, in the workspace. Links from a page to the workspace lead two folders up.
const PAGES: &str = "target/book";

/// The book as it was read.
struct Book {
    /// The workspace.
    root: PathBuf,
    chapters: Vec<Chapter>,
}

impl Book {
    /// Reads table of contents and chapters.
    fn read(root: &Path) -> Result<Book> {
        let folder = root.join(SOURCE);
        let contents = read(&folder.join("SUMMARY.md"))?;
        let chapters = summary::entries(&contents)
            .map(|(title, file)| {
                Ok(Chapter {
                    title: title.to_owned(),
                    file: file.to_owned(),
                    text: read(&folder.join(file))?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Book {
            root: root.to_owned(),
            chapters,
        })
    }

    /// Writes one page for each chapter, the figures, and `index.html`, which is the first chapter.
    fn write(&self, folder: &Path) -> Result<()> {
        let figures = folder.join("figures");
        fs::create_dir_all(&figures).with_context(|| format!("{} could not be made", figures.display()))?;
        for entry in fs::read_dir(self.root.join(SOURCE).join("figures")).context("the figures")? {
            let path = entry.context("the figures")?.path();
            let name = path.file_name().context("a figure without a name")?;
            fs::copy(&path, figures.join(name)).with_context(|| format!("{}", path.display()))?;
        }
        for at in 0..self.chapters.len() {
            let html = page::page(self, at)?;
            let names = [
                Some(self.chapters[at].page()),
                (at == 0).then(|| "index.html".to_owned()),
            ];
            for name in names.into_iter().flatten() {
                fs::write(folder.join(&name), &html)
                    .with_context(|| format!("{name} could not be written"))?;
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} could not be read", path.display()))
}

/// `cargo xtask book`; `run` is a part of the names of chapters whose commands are to be run, too.
pub fn book(run: Option<&str>) -> Result<u8> {
    let book = Book::read(workspace())?;
    let mut problems = check::book(&book);
    problems.extend(check::documentation(workspace())?);
    ensure!(problems.is_empty(), "this is not right:\n{}", problems.join("\n"));
    if let Some(filter) = run {
        experiment::run(&book.chapters, filter)?;
    }
    let pages = workspace().join(PAGES);
    book.write(&pages)?;
    println!("{}", pages.join("index.html").display());
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_book_names_exists() {
        let book = Book::read(workspace()).unwrap();
        let problems = check::book(&book);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn all_that_the_documentation_names_exists() {
        let problems = check::documentation(workspace()).unwrap();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn each_chapter_becomes_a_page_that_loads_nothing_from_elsewhere() {
        let book = Book::read(workspace()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        book.write(folder.path()).unwrap();
        for chapter in &book.chapters {
            let html = fs::read_to_string(folder.path().join(chapter.page())).unwrap();
            assert!(html.contains("<h1"), "{}", chapter.file);
            assert!(
                !html.contains("<script") && !html.contains("src=\"http"),
                "{}",
                chapter.file
            );
        }
        assert!(folder.path().join("index.html").exists());
    }
}
