//! libFuzzer's entry to the target `recipe`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::recipe::run(data));
