//! `{a,b}` in paths: one entry for many links.

/// The paths that a pattern stands for, in the order of writing: `/usr/bin/{sh,ls}` is `/usr/bin/sh` and `/usr/bin/ls`.
/// Braces that are not closed or hold no comma are themselves; they do not nest.
pub fn expand_braces(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let Some((list, tail)) = rest.split_once('}').filter(|(list, _)| list.contains(',')) else {
        let tails = expand_braces(rest).into_iter();
        return tails.map(|tail| format!("{head}{{{tail}")).collect();
    };
    let tails = expand_braces(tail);
    let words = list.split(',').map(str::trim);
    words
        .flat_map(|word| tails.iter().map(move |tail| format!("{head}{word}{tail}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_multiply() {
        assert_eq!(expand_braces("/a"), ["/a"]);
        assert_eq!(expand_braces("/{a, b}/{c,d}"), ["/a/c", "/a/d", "/b/c", "/b/d"]);
        assert_eq!(expand_braces("/{a}/{b,c}"), ["/{a}/b", "/{a}/c"]);
        assert_eq!(expand_braces("/{a"), ["/{a"]);
    }
}
