//! From a recipe to an AMI: fetch, resolve, unpack, configure, compose; and the tools that look inside one.

pub mod base;
pub mod build;
pub mod cli;
pub mod compose;
pub mod configure;
pub mod convert;
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
pub mod store;
pub mod tree;
pub mod unpack;
pub mod usage;
