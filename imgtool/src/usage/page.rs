//! A page with a treemap: one file, no network, no library.

use super::Item;

/// The page around the data. The script lays out squarified treemaps (Bruls, Huizing, van Wijk 2000).
const TEMPLATE: &str = include_str!("page.html");

/// The page for an image, with a table of its packages.
pub fn page(title: &str, root: &Item, packages: &[(String, u64)]) -> String {
    // A `<` inside the data could end the script element.
    let plain = |json: serde_json::Result<String>| json.unwrap_or_default().replace('<', "\\u003c");
    TEMPLATE
        .replace("@TITLE@", &escape(title))
        .replace("@PACKAGES@", &plain(serde_json::to_string(packages)))
        .replace("@DATA@", &plain(serde_json::to_string(root)))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        let name = "</script><script>alert(1)</script>";
        let root = Item {
            name: name.into(),
            size: 1,
            files: 1,
            children: Vec::new(),
        };
        let page = page(name, &root, &[]);
        assert!(!page.contains("<script>alert"));
        assert!(!page.contains("@DATA@") && !page.contains("@TITLE@"));
        assert_eq!(page.matches("</script>").count(), 1);
    }
}
