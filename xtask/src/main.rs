//! The commands a person types: `cargo demo`, `cargo xtask test|lab|cross`.

fn main() {}
