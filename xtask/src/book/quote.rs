//! Quotations of the source: a block of code whose fence says `file=PATH` is in that file, line by line.

/// A line of a quotation that stands for lines that were left out.
const LEFT_OUT: &str = "// …";

/// The file that a block quotes, from the words behind its fence.
pub(super) fn file(words: &str) -> Option<&str> {
    words
        .split([',', ' '])
        .find_map(|word| word.strip_prefix("file="))
}

/// The number of the line (from 1) at which the quotation begins in `source`. `None` where it is not there:
/// its lines follow each other but where [`LEFT_OUT`] stands, and the first one that fits is taken. Indentation does not count,
/// so that a quotation can begin at the margin.
pub(super) fn line(code: &str, source: &str) -> Option<usize> {
    let wanted: Vec<&str> = code
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let lines: Vec<(usize, &str)> = source
        .lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let pieces: Vec<&[&str]> = wanted
        .split(|line| *line == LEFT_OUT)
        .filter(|piece| !piece.is_empty())
        .collect();
    let mut first = None;
    let mut from = 0;
    for piece in pieces {
        let at = lines[from..].windows(piece.len()).position(|window| {
            let pairs = window.iter().zip(piece);
            pairs.into_iter().all(|((_, line), wanted)| line == wanted)
        })?;
        first.get_or_insert(lines[from + at].0 + 1);
        from += at + piece.len();
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "fn one() {\n    1\n}\n\nfn two() {\n    2;\n    3\n}\n";

    #[test]
    fn a_quotation_is_found_at_its_line() {
        assert_eq!(line("fn two() {\n    2;\n", SOURCE), Some(5));
        assert_eq!(line("2;\n3\n", SOURCE), Some(6), "without its indentation");
        assert_eq!(
            line("fn one() {\n    // …\n    3\n", SOURCE),
            Some(1),
            "with lines left out"
        );
    }

    #[test]
    fn what_the_source_does_not_say_is_not_found() {
        assert_eq!(line("fn two() {\n    3\n", SOURCE), None, "a line is missing");
        assert_eq!(
            line("3\n// …\nfn one() {\n", SOURCE),
            None,
            "the order is another"
        );
        assert_eq!(line("", SOURCE), None);
    }

    #[test]
    fn the_file_is_one_of_the_words() {
        assert_eq!(file("rust,ignore,file=a/b.rs"), Some("a/b.rs"));
        assert_eq!(file("console"), None);
    }
}
