//! libFuzzer's entry to the target `packages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::packages::run(data));
