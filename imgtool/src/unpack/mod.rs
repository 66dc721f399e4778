//! From `.deb` files to a tree.
