//! Boot events T0 to T10.
