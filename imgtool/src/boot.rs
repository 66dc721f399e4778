//! What every image boots with, before what its recipe adds.

use ami::INIT_GUEST;
use ami::boot::BootConfig;

/// What every image's kernel gets on its command line. Messages on a console cost a quarter of the boot, and
/// each character of one two exits: only what is worse than an error is printed (a panic prints all there
/// is). The kernel's self-tests of its own cryptography are half the instructions of a boot; a recipe asks
/// for them with `cryptomgr.notests=0`.
pub const COMMAND_LINE: &str = "quiet loglevel=3 cryptomgr.notests";

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
