//! From a recipe to an AMI: fetch, resolve, unpack, configure, compose; and the tools that look inside one.

pub mod progress;
pub mod tree;
