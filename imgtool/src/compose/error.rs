//! Why an image cannot be composed.

use std::io;
use std::path::PathBuf;

use crate::tree::TreeError;

/// What is wrong with the ingredients, or with the disk that the image is written to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel tree holds no kernel.
    #[error(
        "the kernel packages hold no kernel: neither /boot/vmlinuz-* nor /usr/lib/modules/*/vmlinuz\n  try: name a `linux-image-*` package as kernel.package"
    )]
    NoKernel,
    /// The kernel tree holds several.
    #[error("the kernel packages hold more than one kernel: {0}\n  try: name one kernel package")]
    SeveralKernels(String),
    /// The image is in no form that can be booted directly.
    #[error("cannot extract the kernel {name}: {why}\n  try: another kernel package or kernel.path")]
    Kernel {
        /// Its file name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A module that the recipe wants does not exist.
    #[error("kernel {release} has no module `{name}`{near}\n  try: correct `modules` in the recipe")]
    NoModule {
        /// The module.
        name: String,
        /// The kernel's release.
        release: String,
        /// `, the nearest is …`.
        near: String,
    },
    /// A module file cannot be read.
    #[error(
        "kernel module {path} is damaged: {why}\n  try: remove it from the cache, or use another kernel package"
    )]
    Module {
        /// Its path in the kernel tree.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// No guest-init was found.
    #[error(
        "there is no guest-init for {architecture}: looked for {looked}\n  try: `cargo xtask cross {machine}` where Kiln was built, or name the file with --guest-init or KILN_GUEST_INIT"
    )]
    NoGuestInit {
        /// The image's architecture.
        architecture: ami::Architecture,
        /// The paths tried.
        looked: String,
        /// The kernel's name of the architecture.
        machine: &'static str,
    },
    /// The guest-init file is not a program for the image's architecture.
    #[error("{} cannot be guest-init: {why}\n  try: build it static for {architecture}", path.display())]
    GuestInit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
        /// The image's architecture.
        architecture: ami::Architecture,
    },
    /// The tree cannot be an ext4.
    #[error(
        "{path} cannot be stored in ext4: {why}\n  try: rename the file where it comes from, or leave it out"
    )]
    Unstorable {
        /// The path in the image.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The tree does not fit.
    #[error(
        "the root file system of {size} bytes is too small: {why}\n  try: a larger root-size in the recipe, or `auto`"
    )]
    TooSmall {
        /// The size that was asked for.
        size: u64,
        /// What did not fit.
        why: String,
    },
    /// The size is more than an image can have.
    #[error(
        "the root file system of {size} bytes is too large: an image holds at most {largest}\n  try: a smaller root-size, or `auto`; volumes besides the root may be larger"
    )]
    TooLarge {
        /// The size that was asked for.
        size: u64,
        /// The largest.
        largest: u64,
    },
    /// The ext4 writer failed.
    #[error("cannot write the root file system: {0}\n  try: `imgtool build` again; report it if it stays")]
    Ext4(String),
    /// Bytes of a file could not be read.
    #[error(
        "cannot read {what}: {source}\n  try: build again; the cache or the source may have changed meanwhile"
    )]
    Read {
        /// Which.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The tree refuses.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The AMI cannot be written.
    #[error("{0}\n  try: {hint}", hint = .0.hint())]
    Ami(#[from] ami::Error),
}
