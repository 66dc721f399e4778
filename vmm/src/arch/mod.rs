//! Architectures: the same few free functions in each.
