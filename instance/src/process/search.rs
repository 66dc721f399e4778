//! The host's search list for names, which a guest gets on its kernel command line, and from the DHCP server.
//! Its resolver is the host's, so short names mean there what they mean here.

use machine::net::user::RESOLVERS;

/// Domains at most, and bytes of all of them: glibc's limits before 2.26, and the command line has room for
/// them.
const DOMAINS: usize = 6;
const BYTES: usize = 256;

/// The host's list as it is now.
pub fn domains() -> Vec<String> {
    let text = machine::sandbox::read_file(RESOLVERS.as_ref()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    parse(&text).into_iter().map(str::to_owned).collect()
}

/// `kiln.search=DOMAIN,…`; `None` without domains.
pub fn word(domains: &[String]) -> Option<String> {
    (!domains.is_empty()).then(|| format!("kiln.search={}", domains.join(",")))
}

/// The last `search` or `domain` line counts (resolv.conf(5)). The root domain alone, as systemd-resolved
/// writes it, is none.
fn parse(text: &str) -> Vec<&str> {
    let list = text.lines().rev().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        matches!(words.next(), Some("search" | "domain")).then(|| words.collect::<Vec<_>>())
    });
    let mut bytes = 0;
    let fits = |domain: &&str| {
        bytes += domain.len() + 1;
        bytes <= BYTES
    };
    let valid = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    list.unwrap_or_default()
        .into_iter()
        .filter(|domain| *domain != "." && domain.chars().all(valid))
        .take(DOMAINS)
        .take_while(fits)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_search_line_is_used_and_invalid_names_are_left_out() {
        let text = "search old.example\nnameserver 192.0.2.1\n \
                    search a.example. b_c.example x,kiln.main=none \n\
                    # search z\n";
        assert_eq!(parse(text), ["a.example.", "b_c.example"]);
        assert_eq!(parse("domain one.example\n"), ["one.example"]);
        assert!(parse("nameserver 127.0.0.53\nsearch .\n").is_empty());
        assert!(parse("").is_empty());
        let many = format!("search {}", "d.example ".repeat(9));
        assert_eq!(parse(&many).len(), DOMAINS);
        let long = format!("search {} b.example", "a".repeat(255));
        assert_eq!(parse(&long).len(), 1);
    }
}
