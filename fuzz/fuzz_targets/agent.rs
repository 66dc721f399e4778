//! libFuzzer's entry to the target `agent`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::agent::run(data));
