//! The table of contents, `SUMMARY.md`: a list of links, one for each chapter (mdBook, "SUMMARY.md").

/// One chapter.
pub(super) struct Chapter {
    /// Its name in the table of contents.
    pub(super) title: String,
    /// Its file, in the folder of the book's text.
    pub(super) file: String,
    /// What the file holds.
    pub(super) text: String,
}

impl Chapter {
    /// The name of its page.
    pub(super) fn page(&self) -> String {
        format!("{}.html", self.file.trim_end_matches(".md"))
    }
}

/// Title and file of each chapter, in order. Lines that are no link are for readers of the file.
pub(super) fn entries(contents: &str) -> impl Iterator<Item = (&str, &str)> {
    contents.lines().filter_map(|line| {
        let link = line.trim_start().trim_start_matches("- ").strip_prefix('[')?;
        let (title, rest) = link.split_once("](")?;
        Some((title, rest.split_once(')')?.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_chapters_with_and_without_a_list() {
        let contents = "# Summary\n\n[Preface](preface.md)\n\n- [One](one.md)\n  - [Two](two.md)\n\ntext\n";
        let found: Vec<_> = entries(contents).collect();
        assert_eq!(
            found,
            [("Preface", "preface.md"), ("One", "one.md"), ("Two", "two.md")]
        );
    }
}
