//! Elements of XML, as actions return them.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

/// An element without attributes: text or other elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    name: &'static str,
    content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    Text(String),
    Elements(Vec<Element>),
}

/// `<name>value</name>`.
pub fn text(name: &'static str, value: impl ToString) -> Element {
    Element {
        name,
        content: Content::Text(value.to_string()),
    }
}

/// `<name>…</name>` around `elements`.
pub fn node(name: &'static str, elements: impl IntoIterator<Item = Element>) -> Element {
    Element {
        name,
        content: Content::Elements(elements.into_iter().collect()),
    }
}

/// A list as EC2 writes it: an `item` for each member.
pub fn set<I: IntoIterator<Item = Element>>(
    name: &'static str,
    members: impl IntoIterator<Item = I>,
) -> Element {
    node(name, members.into_iter().map(|member| node("item", member)))
}

/// A list of texts.
pub fn texts(name: &'static str, values: impl IntoIterator<Item = impl ToString>) -> Element {
    node(name, values.into_iter().map(|value| text("item", value)))
}

/// A document: `elements` in an element `root` of the namespace.
pub fn document(root: &str, namespace: Option<&str>, elements: &[Element]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let written = writer
        .write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))
        .and_then(|()| {
            let mut start = writer.create_element(root);
            if let Some(namespace) = namespace {
                start = start.with_attribute(("xmlns", namespace));
            }
            start.write_inner_content(|writer| elements.iter().try_for_each(|element| write(writer, element)))
        });
    // A vector takes everything.
    debug_assert!(written.is_ok());
    writer.into_inner()
}

fn write(writer: &mut Writer<Vec<u8>>, element: &Element) -> io::Result<()> {
    let tag = writer.create_element(element.name);
    match &element.content {
        Content::Text(value) => {
            let value: String = value.chars().filter(|c| may_stand_in_xml(*c)).collect();
            tag.write_text_content(BytesText::new(&value))?;
        }
        Content::Elements(elements) if elements.is_empty() => {
            tag.write_empty()?;
        }
        Content::Elements(elements) => {
            tag.write_inner_content(|writer| elements.iter().try_for_each(|inner| write(writer, inner)))?;
        }
    }
    Ok(())
}

/// XML 1.0 §2.2: other characters cannot stand in a document, not even as references.
fn may_stand_in_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_written_with_what_xml_allows() {
        let elements = [
            text("a", "1 < 2 & \"3\"\u{1}"),
            set("list", [[text("b", true)], [text("b", 5)]]),
            texts("names", ["x"]),
            node("none", []),
        ];
        let written = document("Answer", Some("urn:x"), &elements);
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Answer xmlns=\"urn:x\">\
            <a>1 &lt; 2 &amp; &quot;3&quot;</a>\
            <list><item><b>true</b></item><item><b>5</b></item></list>\
            <names><item>x</item></names><none/></Answer>";
        assert_eq!(String::from_utf8(written).unwrap(), expected);
    }
}
