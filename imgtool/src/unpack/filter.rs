//! Which paths of a package are unpacked: dpkg's `path-exclude` and `path-include`.

/// Patterns that leave paths out and bring some of them back. `*` and `?` match `/`, as in dpkg.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    exclude: Vec<Vec<u8>>,
    include: Vec<Vec<u8>>,
}

impl Filter {
    /// Patterns match absolute paths, such as `/usr/share/man/*`.
    pub fn new(exclude: &[String], include: &[String]) -> Self {
        let bytes = |patterns: &[String]| patterns.iter().map(|p| p.clone().into_bytes()).collect();
        Self {
            exclude: bytes(exclude),
            include: bytes(include),
        }
    }

    /// Whether the absolute path is unpacked. A directory above an included path always is, and so is a
    /// symbolic link, which may stand for such a directory.
    pub fn keeps(&self, path: &[u8], is_dir_or_symlink: bool) -> bool {
        let matches = |patterns: &[Vec<u8>]| patterns.iter().any(|pattern| glob(pattern, path));
        !matches(&self.exclude)
            || matches(&self.include)
            || is_dir_or_symlink && self.include.iter().any(|pattern| leads_to(path, pattern))
    }

    /// The lines of a dpkg configuration file that says the same.
    pub fn dpkg_options(&self) -> String {
        let lines = |option: &str, patterns: &[Vec<u8>]| {
            let line = |p: &Vec<u8>| format!("{option}={}\n", String::from_utf8_lossy(p));
            patterns.iter().map(line).collect::<String>()
        };
        lines("path-exclude", &self.exclude) + &lines("path-include", &self.include)
    }
}

/// Whether a path that the pattern matches can lie below `path`.
fn leads_to(path: &[u8], pattern: &[u8]) -> bool {
    let fixed = pattern
        .iter()
        .position(|c| b"*?[\\".contains(c))
        .unwrap_or(pattern.len());
    let fixed = &pattern[..fixed];
    match fixed.len() > path.len() {
        true => fixed.starts_with(path) && fixed[path.len()] == b'/',
        false => path.starts_with(fixed),
    }
}

/// Shell patterns: `*`, `?`, `[a-z]`, `[!a]` and `\` before a literal character. Linear in memory and, by
/// keeping one place to return to, quadratic at worst in time.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if let Some(length) = match_one(&pattern[p..], text[t]) {
            p += length;
            t += 1;
        } else if let Some((star_p, star_t)) = star {
            star = Some((star_p, star_t + 1));
            (p, t) = (star_p + 1, star_t + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

/// The length of the pattern's first element if it matches the character.
fn match_one(pattern: &[u8], c: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == c).then_some(2),
        [b'[', rest @ ..] => match_set(rest, c).map(|length| length + 1),
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

fn match_set(set: &[u8], c: u8) -> Option<usize> {
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    let start = usize::from(negated);
    // A bracket that comes first is a member.
    let end = start + 1 + set.get(start + 1..)?.iter().position(|x| *x == b']')?;
    let members = &set[start..end];
    let mut found = false;
    let mut i = 0;
    while i < members.len() {
        let is_range = i + 2 < members.len() && members[i + 1] == b'-';
        let last = if is_range { members[i + 2] } else { members[i] };
        found |= (members[i]..=last).contains(&c);
        i += if is_range { 3 } else { 1 };
    }
    (found != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, text, matches) in [
            ("/usr/share/man/*", "/usr/share/man/de/man1/ls.1.gz", true),
            ("/usr/share/man/*", "/usr/share/man", false),
            ("*.mo", "/a/b.mo", true),
            ("/a/[b-d]?", "/a/cx", true),
            ("/a/[!b-d]", "/a/c", false),
            ("/a/[]x]", "/a/]", true),
            ("/a/\\*", "/a/*", true),
            ("/a/\\*", "/a/b", false),
            ("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
            ("[", "[", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                matches,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn directories_above_an_included_path_stay() {
        let list = |patterns: &[&str]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>();
        let filter = Filter::new(
            &list(&["/usr/share/locale/*"]),
            &list(&["/usr/share/locale/de/*"]),
        );
        assert!(filter.keeps(b"/usr/share/locale/de", true));
        assert!(filter.keeps(b"/usr/share/locale/de/x.mo", false));
        assert!(!filter.keeps(b"/usr/share/locale/fr", true));
        assert!(!filter.keeps(b"/usr/share/locale/fr/x.mo", false));
        assert!(filter.keeps(b"/usr/bin/ls", false));
        let options = "path-exclude=/usr/share/locale/*\npath-include=/usr/share/locale/de/*\n";
        assert_eq!(filter.dpkg_options(), options);
    }
}
