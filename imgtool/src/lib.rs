//! Builds AMIs from recipes, and inspects and converts them.
//!
//! It uses the crates `ami` (the file format) and `guest-init` (one setting of the agent that the first boot
//! of an image needs), and no other of Kiln's. The command line is in [`cli`]; everything below it returns
//! values and errors, and reports its steps to a [`progress::Progress`].
//!
//! A build goes through these stages:
//!
//! ```text
//! recipe ─ lock ─ fetch ─ unpack ─ configure ─▶ root ─ compose ─▶ AMI
//!            └── resolve: only where the lock file does not answer
//! ```
//!
//! Begin with [`build::build`] for a whole build, and with [`tree::Tree`] for the data that the stages
//! exchange.
//!
//! # Layers
//!
//! The lowest layer comes first. A folder imports only the folders that its row names, which are all above
//! it; inside a folder the imports have no cycles. `tests/layers.rs` reads this table and checks the code.
//!
//! | folder | what it is | what it may import |
//! |---|---|---|
//! | [`advice`] | what a person can do about an error | |
//! | [`progress`] | steps that take time, reported to a person or to nobody | |
//! | [`spelling`] | the known word that is nearest to an unknown one | |
//! | [`time`] | calendar times as archives and recipes write them | |
//! | [`target`] | what a kernel is built for | |
//! | [`decompress`] | compressed streams with bounds | |
//! | [`store`] | the cache: files by digest | `advice` |
//! | [`tree`] | a root file system in memory, contents by reference | `advice` |
//! | [`archive`] | tar archives, read without trust and written | `tree` |
//! | [`recipe`] | what a person writes, and its checks | `advice`, `spelling`, `target`, `time` |
//! | [`microvm`] | how the microvm kernel is compiled | |
//! | [`lock`] | which packages exactly | `advice`, `microvm`, `recipe`, `store` |
//! | [`fetch`] | from a mirror to verified bytes | `advice`, `decompress`, `recipe`, `store`, `time` |
//! | [`resolve`] | from names of packages to a set of packages | `advice`, `fetch`, `recipe`, `spelling`, `store` |
//! | [`unpack`] | from `.deb` files to a tree | `advice`, `archive`, `decompress`, `lock`, `progress`, `store`, `tree` |
//! | [`boot`] | what every image boots with | |
//! | [`compose`] | from a tree and a kernel to an AMI | `advice`, `decompress`, `lock`, `progress`, `spelling`, `target`, `time`, `tree` |
//! | [`imagefs`] | the tree in an ext4 image | `advice`, `compose`, `tree` |
//! | [`base`] | an image that another is layered on | `advice`, `boot`, `compose`, `fetch`, `imagefs`, `lock`, `recipe`, `tree` |
//! | [`configure`] | the target's own dpkg and commands in a sandbox, and what the recipe adds | `advice`, `archive`, `lock`, `progress`, `recipe`, `resolve`, `store`, `tree`, `unpack` |
//! | [`root`] | all stages up to a root, with their results in the cache | `advice`, `archive`, `base`, `configure`, `fetch`, `lock`, `microvm`, `progress`, `recipe`, `resolve`, `store`, `time`, `tree`, `unpack` |
//! | [`build`] | from a recipe file to an AMI file | `advice`, `base`, `boot`, `compose`, `fetch`, `lock`, `progress`, `recipe`, `root`, `store` |
//! | [`import`] | from a tar, a container image or an ext4 to an AMI | `advice`, `archive`, `base`, `boot`, `build`, `compose`, `decompress`, `fetch`, `imagefs`, `progress`, `store`, `tree`, `unpack` |
//! | [`diff`] | how two images differ | `compose`, `time`, `tree` |
//! | [`usage`] | what takes the space in an image | `tree` |
//! | [`convert`] | an image's root as a disk of another hypervisor | `progress` |
//! | [`pack`] | an image compressed for transport | `advice`, `progress` |
//! | [`sign`] | keys that sign images | `advice` |
//! | [`cli`] | the command line | `advice`, `archive`, `base`, `build`, `compose`, `convert`, `diff`, `fetch`, `imagefs`, `import`, `lock`, `pack`, `progress`, `recipe`, `root`, `sign`, `store`, `time`, `tree`, `usage` |

pub mod advice;
pub mod archive;
pub mod base;
pub mod boot;
pub mod build;
pub mod cli;
pub mod compose;
pub mod configure;
pub mod convert;
pub mod decompress;
pub mod diff;
pub mod fetch;
pub mod imagefs;
pub mod import;
pub mod lock;
pub mod microvm;
pub mod pack;
pub mod progress;
pub mod recipe;
pub mod resolve;
pub mod root;
pub mod sign;
pub mod spelling;
pub mod store;
pub mod target;
pub mod time;
pub mod tree;
pub mod unpack;
pub mod usage;
