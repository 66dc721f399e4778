//! Public keys as OpenSSH writes them, one a line (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The keys in `text`, a line each; empty lines and comments are left out. A line may begin with options.
///
/// # Errors
/// The number of the first line, from 1, that holds no key.
pub fn public_keys(text: &str) -> Result<Vec<String>, usize> {
    let mut keys = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !holds_key(line) {
            return Err(number);
        }
        keys.push(line.to_owned());
    }
    Ok(keys)
}

/// Whether two words next to each other are a type and a key of that type.
fn holds_key(line: &str) -> bool {
    let words: Vec<_> = line.split_ascii_whitespace().collect();
    words.windows(2).any(|pair| is_key(pair[0], pair[1]))
}

/// A key begins with the name of its type and the length of that name, four bytes (RFC 4253 §6.6), so the two
/// vouch for each other.
fn is_key(kind: &str, key: &str) -> bool {
    let Ok(key) = STANDARD.decode(key) else {
        return false;
    };
    let Some((length, rest)) = key.split_first_chunk() else {
        return false;
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    length == kind.len() && rest.len() > length && rest.starts_with(kind.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBqZ2yUu4pD2gk4jQbqz5v8m0yQKxQ4n0B1kq1rj8w3X";

    #[test]
    fn keys_are_found_with_and_without_options_and_comments() {
        let restricted = format!("restrict,command=\"echo a b\" {KEY} me@here");
        let text = format!("# mine\n\n{KEY}\r\n  {KEY} me@here\n{restricted}\n");
        let keys = [KEY.to_owned(), format!("{KEY} me@here"), restricted];
        assert_eq!(public_keys(&text), Ok(keys.to_vec()));
        assert_eq!(public_keys(""), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_key_is_refused_with_its_line() {
        let cut = &KEY[..KEY.len() - 50];
        for (text, line) in [
            ("root:x:0:0:root:/root:/bin/bash", 1),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", 1),
            ("ssh-ed25519 not-base64", 1),
            (&format!("{KEY}\nssh-rsa {}", &KEY["ssh-ed25519 ".len()..]), 2),
            (cut, 1),
            ("ssh-ed25519", 1),
            ("ssh-ed25519 AAAA", 1),
        ] {
            assert_eq!(public_keys(text), Err(line), "{text}");
        }
    }
}
