//! `{a,b}` in paths: one entry for many links.

/// Bytes of a pattern at most. A multi-call program has some hundred names of some ten bytes.
const MAX_PATTERN: usize = 64 << 10;
/// Bytes of all the paths of one pattern at most: lists multiply, so that a few of them could ask for any
/// amount of memory.
const MAX_PATHS: usize = 1 << 20;

/// The paths that a pattern stands for, in the order of writing: `/usr/bin/{sh,ls}` is `/usr/bin/sh` and
/// `/usr/bin/ls`. Braces that are not closed or hold no comma are themselves; they do not nest. `None` when
/// pattern or paths are too long.
pub fn expand_braces(pattern: &str) -> Option<Vec<String>> {
    if pattern.len() > MAX_PATTERN {
        return None;
    }
    let mut paths = vec![String::new()];
    let mut rest = pattern;
    while let Some((head, after)) = rest.split_once('{') {
        let list = after.split_once('}').filter(|(list, _)| list.contains(','));
        let (list, tail) = list.unwrap_or(("{", after));
        let words: Vec<&str> = list.split(',').map(str::trim).collect();
        paths = multiply(&paths, head, &words)?;
        rest = tail;
    }
    multiply(&paths, rest, &[""])
}

/// Each of `paths` with `head` and each of `words` behind it.
fn multiply(paths: &[String], head: &str, words: &[&str]) -> Option<Vec<String>> {
    let ours: usize = paths.iter().map(String::len).sum();
    let theirs: usize = words.iter().map(|word| word.len()).sum();
    let count = paths.len().checked_mul(words.len())?;
    // An empty path takes memory, too.
    let all = count.checked_mul(head.len() + 1)?
        + ours.checked_mul(words.len())?
        + theirs.checked_mul(paths.len())?;
    let path = |start: &String| {
        let start = format!("{start}{head}");
        words.iter().map(move |word| format!("{start}{word}"))
    };
    (all <= MAX_PATHS).then(|| paths.iter().flat_map(path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(pattern: &str) -> Vec<String> {
        expand_braces(pattern).expect("it is short")
    }

    #[test]
    fn lists_multiply() {
        assert_eq!(expanded("/a"), ["/a"]);
        assert_eq!(expanded("/{a, b}/{c,d}"), ["/a/c", "/a/d", "/b/c", "/b/d"]);
        assert_eq!(expanded("/{a}/{b,c}"), ["/{a}/b", "/{a}/c"]);
        assert_eq!(expanded("/{a"), ["/{a"]);
    }

    #[test]
    fn a_short_pattern_cannot_ask_for_much() {
        assert_eq!(expanded(&"{,}".repeat(16)).len(), 1 << 16);
        for pattern in [
            "{,}".repeat(64),
            "/{a,b,c,d}".repeat(40),
            ",".repeat(MAX_PATTERN + 1),
        ] {
            assert_eq!(expand_braces(&pattern), None);
        }
        assert_eq!(expanded(&"{".repeat(20_000)), ["{".repeat(20_000)]);
    }
}
