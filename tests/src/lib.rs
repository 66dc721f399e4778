//! End-to-end tests: the lab, life cycles, hostile inputs.
