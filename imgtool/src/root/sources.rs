//! Where apt finds packages in the running system.

use crate::fetch;
use crate::recipe::Recipe;

/// Debian's own keys as package debian-archive-keyring installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The text of a `.sources` file, deb822 style, for the repositories that Debian's own keys sign. A
/// repository with another keyring needs that keyring in the image: the recipe's `files` can bring both.
pub fn for_apt(recipe: &Recipe) -> String {
    let mut text = String::new();
    for repository in fetch::repositories(recipe).iter().filter(|r| r.keyring.is_none()) {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nSigned-By: {KEYRING}\n",
            repository.url,
            repository.suite,
            repository.components.join(" "),
        );
        if repository.pinned.is_some() {
            text += "Check-Valid-Until: no\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_finds_the_recipe_s_repositories() {
        let recipe: Recipe = toml::from_str("name = 'x'\ndistribution.suite = 'sid'").unwrap();
        assert_eq!(
            for_apt(&recipe),
            "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: sid\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }
}
