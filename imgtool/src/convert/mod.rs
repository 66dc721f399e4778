//! The root of an image in the formats of others: a raw ext4, a qcow2 of it, a tar of its files.

pub mod qcow2;
