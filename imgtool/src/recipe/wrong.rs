//! What the checks of a recipe report.

/// A wrong value: key, what is wrong, what would be right.
pub(super) type Wrong = (String, String, &'static str);

/// A name: letters, digits and a few signs.
pub(super) fn check_word(key: &str, word: &str) -> Result<(), Wrong> {
    let sound = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    match word.bytes().all(sound)
        && word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && word.len() <= 128
    {
        true => Ok(()),
        false => wrong(
            key,
            &format!("`{word}` cannot be a name"),
            "letters, digits, `.`, `_` and `-`, at most 128",
        ),
    }
}

/// A wrong value.
pub(super) fn wrong(key: &str, message: &str, advice: &'static str) -> Result<(), Wrong> {
    Err((key.to_owned(), message.to_owned(), advice))
}
