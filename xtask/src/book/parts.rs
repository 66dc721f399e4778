//! What a text in Markdown consists of, as far as it can be held to something: headings, links, code.

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The anchor of a heading.
    Heading(String),
    /// The destination of a link or an image.
    Link(String),
    /// Code within a sentence.
    Code(String),
    /// A block of code: the words behind its fence, and the code.
    Block(String, String),
}

/// A parser of what the book is written in.
pub(super) fn parser(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// The parts of `text`, in order.
pub(super) fn parts(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut heading: Option<String> = None;
    let mut block: Option<(String, String)> = None;
    for event in parser(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                parts.extend(heading.take().map(|text| Part::Heading(anchor(&text))));
            }
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                parts.push(Part::Link(dest_url.into_string()));
            }
            Event::Start(Tag::CodeBlock(kind)) => block = Some((words(&kind).to_owned(), String::new())),
            Event::End(TagEnd::CodeBlock) => {
                parts.extend(block.take().map(|(words, code)| Part::Block(words, code)));
            }
            Event::Text(text) => match (&mut heading, &mut block) {
                (_, Some((_, code))) => code.push_str(&text),
                (Some(heading), _) => heading.push_str(&text),
                _ => {}
            },
            Event::Code(code) => match &mut heading {
                Some(heading) => heading.push_str(&code),
                None => parts.push(Part::Code(code.into_string())),
            },
            _ => {}
        }
    }
    parts
}

/// The words behind the fence of a block.
pub(super) fn words<'a>(kind: &'a CodeBlockKind<'_>) -> &'a str {
    match kind {
        CodeBlockKind::Fenced(words) => words,
        CodeBlockKind::Indented => "",
    }
}

/// The anchor of a heading, as mdBook and GitHub make it.
pub(super) fn anchor(heading: &str) -> String {
    let letters = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    letters.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart() {
        let text = "# A `b` c\n\n[link](one.md#two) and `code`, ![figure](f.svg)\n\n```rust,file=x\nfn f() {}\n```\n";
        assert_eq!(
            parts(text),
            [
                Part::Heading("a-b-c".to_owned()),
                Part::Link("one.md#two".to_owned()),
                Part::Code("code".to_owned()),
                Part::Link("f.svg".to_owned()),
                Part::Block("rust,file=x".to_owned(), "fn f() {}\n".to_owned()),
            ]
        );
    }

    #[test]
    fn an_anchor_has_no_punctuation() {
        assert_eq!(anchor("The store, and back: 0x3f8"), "the-store-and-back-0x3f8");
    }
}
