//! Micro-benchmarks (criterion).
