//! The root of an image in the formats of others: a raw ext4, a qcow2 of it, a tar of its files. And an image
//! without the guest that a warm one holds.

pub mod cold;
pub mod qcow2;
