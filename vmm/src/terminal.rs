//! Raw mode that is always undone.
