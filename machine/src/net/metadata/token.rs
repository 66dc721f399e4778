//! Session tokens of IMDSv2: stateless, so that no number of requests fills a table.

use crate::net::clock::Clock;

/// Longest lifetime of a token in seconds: six hours.
pub const TTL_MAX: u64 = 21_600;

/// Hexadecimal digits of the expiry and of its keyed digest.
const EXPIRY_DIGITS: usize = 16;
const DIGEST_DIGITS: usize = 40;

/// Makes and checks tokens: an expiry on this service's clock, and a digest of it under a key that lives as
/// long as the service.
pub struct Tokens {
    key: [u8; 32],
    clock: Clock,
}

impl Tokens {
    /// With a fresh key.
    pub fn new(clock: Clock) -> Tokens {
        Tokens {
            key: crate::entropy::bytes(),
            clock,
        }
    }

    /// A token for `ttl` seconds, 1 to [`TTL_MAX`].
    pub fn issue(&self, ttl: u64) -> String {
        self.sign(self.clock.now().as_secs() + ttl)
    }

    /// Whether `token` is ours and has not expired.
    pub fn accepts(&self, token: &str) -> bool {
        let expiry = token
            .get(..EXPIRY_DIGITS)
            .and_then(|digits| u64::from_str_radix(digits, 16).ok());
        expiry.is_some_and(|expiry| same(token, &self.sign(expiry)) && self.clock.now().as_secs() < expiry)
    }

    fn sign(&self, expiry: u64) -> String {
        let digest = blake3::keyed_hash(&self.key, &expiry.to_le_bytes()).to_hex();
        format!(
            "{expiry:0width$x}{}",
            &digest[..DIGEST_DIGITS],
            width = EXPIRY_DIGITS
        )
    }
}

/// Compares in a time that does not depend on where the difference is.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_unexpired_tokens_are_accepted() {
        let tokens = Tokens::new(Clock::monotonic());
        let token = tokens.issue(60);
        assert!(tokens.accepts(&token));
        assert!(!tokens.accepts(&tokens.issue(0)), "expired");
        assert!(
            !Tokens::new(Clock::monotonic()).accepts(&token),
            "another instance's"
        );
        let mut longer = token.clone();
        longer.replace_range(..1, "1");
        for forged in ["", "zz", "ééééééééé", &token[1..], &longer, &format!("{token}0")] {
            assert!(!tokens.accepts(forged), "{forged}");
        }
    }
}
