//! A flame graph as one SVG file that needs nothing else: width is instructions, callers are below what they
//! call.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::Report;

/// Width of the picture and of one frame's row, in pixels.
const WIDTH: f64 = 1200.0;
const ROW: f64 = 17.0;
/// Margins, with room for the title above.
const SIDE: f64 = 10.0;
const ABOVE: f64 = 40.0;
const BELOW: f64 = 30.0;
/// Frames narrower than this are left out.
const NARROWEST: f64 = 0.25;
/// Width of a letter, for cutting names to their frames.
const LETTER: f64 = 6.6;

/// A function in one place of the call tree.
#[derive(Debug, Default)]
struct Node {
    instructions: u64,
    callees: BTreeMap<String, Node>,
}

impl Node {
    fn of(report: &Report) -> Node {
        let mut root = Node::default();
        for (names, count) in report.stacks() {
            root.instructions += count;
            let mut at = &mut root;
            for name in names {
                at = at.callees.entry(name.clone()).or_default();
                at.instructions += count;
            }
        }
        root
    }

    /// Rows above this one in which something is wide enough to be seen.
    fn rows(&self, scale: f64) -> usize {
        let seen = |node: &&Node| node.instructions as f64 * scale >= NARROWEST;
        let above = self
            .callees
            .values()
            .filter(seen)
            .map(|node| 1 + node.rows(scale));
        above.max().unwrap_or(0)
    }
}

/// Draws `report`.
pub fn draw(report: &Report, title: &str) -> String {
    let root = Node::of(report);
    let scale = (WIDTH - 2.0 * SIDE) / root.instructions.max(1) as f64;
    let height = ABOVE + BELOW + ROW * (root.rows(scale) + 1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\">\n\
         <style>\n\
         text {{ font: 11px monospace; pointer-events: none }}\n\
         .title {{ font: bold 15px sans-serif; text-anchor: middle }}\n\
         g.frame:hover rect {{ stroke: #000; stroke-width: 1 }}\n\
         </style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fffdf7\"/>\n\
         <text class=\"title\" x=\"{}\" y=\"24\">{}</text>\n",
        WIDTH / 2.0,
        escape(title)
    );
    let mut picture = Picture {
        svg: &mut svg,
        scale,
        total: root.instructions.max(1),
        bottom: height - BELOW,
    };
    picture.frame("all", &root, SIDE, 0);
    svg.push_str("</svg>\n");
    svg
}

struct Picture<'a> {
    svg: &'a mut String,
    scale: f64,
    total: u64,
    bottom: f64,
}

impl Picture<'_> {
    fn frame(&mut self, name: &str, node: &Node, x: f64, depth: usize) {
        let width = node.instructions as f64 * self.scale;
        if width < NARROWEST {
            return;
        }
        let y = self.bottom - ROW * (depth + 1) as f64;
        let share = node.instructions as f64 * 100.0 / self.total as f64;
        let letters = ((width - 4.0) / LETTER).max(0.0) as usize;
        let label = match name.chars().count() {
            len if len <= letters => name.to_owned(),
            _ if letters < 3 => String::new(),
            _ => name.chars().take(letters - 1).chain(['…']).collect(),
        };
        // Writing to a string cannot fail.
        let _ = write!(
            self.svg,
            "<g class=\"frame\"><title>{}: {} instructions, {share:.2} %</title>\
             <rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{}\" rx=\"1.5\" fill=\"{}\"/>",
            escape(name),
            node.instructions,
            ROW - 1.0,
            colour(name)
        );
        if !label.is_empty() {
            let (x, y) = (x + 2.0, y + ROW - 5.0);
            let _ = write!(
                self.svg,
                "<text x=\"{x:.2}\" y=\"{y:.1}\">{}</text>",
                escape(&label)
            );
        }
        self.svg.push_str("</g>\n");
        let mut left = x;
        for (callee, node) in &node.callees {
            self.frame(callee, node, left, depth + 1);
            left += node.instructions as f64 * self.scale;
        }
    }
}

/// A warm colour for the kernel's functions, another kind for what is none; the same name always has the same
/// one.
fn colour(name: &str) -> String {
    let hash = name.bytes().fold(5381_u32, |hash, byte| {
        hash.wrapping_mul(33).wrapping_add(byte.into())
    });
    let (hue, light) = (hash % 40, 60 + hash / 64 % 15);
    match name.as_bytes().first() {
        Some(b'[') => format!("hsl({},50%,{light}%)", 90 + hue),
        _ => format!("hsl({},85%,{light}%)", 10 + hue),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn frames_stand_on_their_callers_and_share_their_width() {
        let report = report(&[
            (&["a", "b"], 25),
            (&["a", "c<d>"], 75),
            (&["a", "c<d>", "tiny"], 0),
        ]);
        let svg = draw(&report, "two & two");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("two &amp; two"));
        assert!(
            svg.contains("<title>c&lt;d&gt;: 75 instructions, 75.00 %</title><rect x=\"305.00\""),
            "{svg}"
        );
        assert!(svg.contains("<title>b: 25 instructions, 25.00 %</title><rect x=\"10.00\""));
        assert!(!svg.contains("tiny"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }

    #[test]
    fn an_empty_profile_gives_a_graph() {
        assert!(draw(&Report::default(), "").contains("</svg>"));
    }
}
