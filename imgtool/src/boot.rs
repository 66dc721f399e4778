//! What every image boots with, before what its recipe adds.

use ami::INIT_GUEST;
use ami::boot::BootConfig;

/// What every image's kernel gets on its command line. Messages on a console cost a quarter of the boot, and
/// each character of one two exits: only what is worse than an error is printed (a panic prints all there
/// is). The kernel's self-tests of its own cryptography are half the instructions of a boot; a recipe asks
/// for them with `cryptomgr.notests=0`.
const COMMAND_LINE: &str = "quiet loglevel=3 cryptomgr.notests";

/// Leaves the kernel's jitter entropy generator out, whose tests of itself at boot are a fifth of the rest. It
/// would serve one user, the kernel's DRBG, beside the kernel's own random numbers, and these have the
/// processor's and the machine's entropy device. With `fips=1` the DRBG insists on it.
const WITHOUT_JITTER: &str = "initcall_blacklist=jent_mod_init";

/// The command line of an image whose recipe has `words`.
pub fn command_line(words: &str) -> String {
    let fips = words.split_ascii_whitespace().any(|word| word == "fips=1");
    let jitter = if fips { "" } else { WITHOUT_JITTER };
    ami::command_line::join([COMMAND_LINE, jitter, words])
}

/// What a recipe has added to the command line of an image.
pub fn own_words(command_line: &str) -> &str {
    let Some(rest) = command_line.strip_prefix(COMMAND_LINE) else {
        return command_line;
    };
    let rest = rest.trim_start();
    rest.strip_prefix(WITHOUT_JITTER).unwrap_or(rest).trim_start()
}

/// The configuration that every guest-init gets: a writable root that grows, and a shell where PID 1 stays
/// ours.
pub fn defaults(init: &str) -> BootConfig {
    BootConfig {
        schema: BootConfig::SCHEMA,
        modules: Vec::new(),
        root_device: "/dev/vda".into(),
        root_filesystem: "ext4".into(),
        root_writable: true,
        grow_root: true,
        init: init.to_owned(),
        console: "hvc0".into(),
        console_shell: init == INIT_GUEST,
        hostname: None,
        services: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipes_words_come_last_and_are_found_again() {
        let line = command_line("nokaslr panic=5");
        assert_eq!(
            line,
            "quiet loglevel=3 cryptomgr.notests initcall_blacklist=jent_mod_init nokaslr panic=5"
        );
        assert_eq!(own_words(&line), "nokaslr panic=5");
        assert_eq!(own_words("quiet loglevel=3 cryptomgr.notests nokaslr"), "nokaslr");
        assert_eq!(own_words("console=x"), "console=x");
        let fips = command_line("fips=1");
        assert!(!fips.contains("jent") && own_words(&fips) == "fips=1", "{fips}");
    }
}
