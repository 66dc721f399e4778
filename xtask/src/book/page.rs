//! A chapter as a page of HTML.

use std::fs;

use anyhow::{Context, Result};
use pulldown_cmark::{CowStr, Event, Tag, TagEnd, html};

use super::parts::{anchor, parser, words};
use super::summary::Chapter;
use super::{Book, quote};

const STYLE: &str = include_str!("style.css");

/// The page of chapter number `at`.
pub(super) fn page(book: &Book, at: usize) -> Result<String> {
    let chapter = &book.chapters[at];
    let mut body = String::new();
    let events = with_anchors(with_sources(book, chapter)?);
    html::push_html(&mut body, events.into_iter());
    let beside = |word, other: Option<&Chapter>| {
        other.map_or(String::new(), |other| {
            format!(
                "<a class=\"{word}\" href=\"{}\">{}</a>",
                other.page(),
                escape(&other.title)
            )
        })
    };
    let before = at.checked_sub(1).map(|before| &book.chapters[before]);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{} – Kiln</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <nav><p>Kiln: a hypervisor to learn from</p><ol>\n{}</ol></nav>\n\
         <main>\n{body}<footer>{}{}</footer>\n</main>\n</body>\n</html>\n",
        escape(&chapter.title),
        contents(book, at),
        beside("before", before),
        beside("next", book.chapters.get(at + 1)),
    ))
}

/// The table of contents beside a page.
fn contents(book: &Book, here: usize) -> String {
    let entry = |(at, chapter): (usize, &Chapter)| {
        let class = if at == here { " class=\"here\"" } else { "" };
        format!(
            "<li><a{class} href=\"{}\">{}</a></li>\n",
            chapter.page(),
            escape(&chapter.title)
        )
    };
    book.chapters.iter().enumerate().map(entry).collect()
}

/// The chapter's text, with links that work from its page, and a line above each quotation that says where it
/// is from.
fn with_sources<'a>(book: &Book, chapter: &'a Chapter) -> Result<Vec<Event<'a>>> {
    let mut events = Vec::new();
    let mut quoted = None;
    for event in parser(&chapter.text) {
        match event {
            Event::Start(Tag::Link {
                link_type,
                dest_url,
                title,
                id,
            }) => events.push(Event::Start(Tag::Link {
                link_type,
                dest_url: destination(&dest_url).into(),
                title,
                id,
            })),
            Event::Start(Tag::CodeBlock(kind)) => {
                quoted = quote::file(words(&kind)).map(|file| (file.to_owned(), events.len()));
                events.push(Event::Start(Tag::CodeBlock(kind)));
            }
            Event::Text(code) if quoted.is_some() => {
                let (file, place) = quoted.take().context("a block without a file")?;
                let source = fs::read_to_string(book.root.join(&file)).with_context(|| file.clone())?;
                let line =
                    quote::line(&code, &source).with_context(|| format!("{file} has no such lines"))?;
                events.insert(place, Event::Html(source_line(&file, line).into()));
                events.push(Event::Text(code));
            }
            event => events.push(event),
        }
    }
    Ok(events)
}

fn source_line(file: &str, line: usize) -> String {
    format!(
        "<p class=\"source\"><a href=\"../../{0}\">{0}</a>, line {line}</p>\n",
        escape(file)
    )
}

/// Where a link of the text leads from the page: chapters are pages, and the workspace is one folder nearer.
fn destination(link: &str) -> String {
    if link.contains("://") || link.starts_with('#') {
        return link.to_owned();
    }
    if let Some(workspace) = link.strip_prefix("../../../") {
        return format!("../../{workspace}");
    }
    let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
    let hash = if anchor.is_empty() { "" } else { "#" };
    match file.strip_suffix(".md") {
        Some(name) => format!("{name}.html{hash}{anchor}"),
        None => link.to_owned(),
    }
}

/// Gives each heading its anchor.
fn with_anchors(events: Vec<Event<'_>>) -> Vec<Event<'_>> {
    let mut result: Vec<Event<'_>> = Vec::with_capacity(events.len());
    let mut open: Option<(usize, String)> = None;
    for event in events {
        match (&event, &mut open) {
            (Event::Start(Tag::Heading { .. }), _) => open = Some((result.len(), String::new())),
            (Event::Text(text) | Event::Code(text), Some((_, heading))) => heading.push_str(text),
            (Event::End(TagEnd::Heading(_)), _) => {
                if let Some((place, heading)) = open.take()
                    && let Event::Start(Tag::Heading { id, .. }) = &mut result[place]
                {
                    *id = Some(CowStr::from(anchor(&heading)));
                }
            }
            _ => {}
        }
        result.push(event);
    }
    result
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_pages_and_into_the_workspace() {
        for (from, to) in [
            ("memory.md", "memory.html"),
            ("memory.md#slots", "memory.html#slots"),
            ("#slots", "#slots"),
            ("figures/memory.svg", "figures/memory.svg"),
            ("../../../machine/src/bus.rs", "../../machine/src/bus.rs"),
            ("../../../docs/machine.md", "../../docs/machine.md"),
            ("https://example.org/a.md", "https://example.org/a.md"),
        ] {
            assert_eq!(destination(from), to);
        }
    }
}
