//! Running the target's own dpkg.
