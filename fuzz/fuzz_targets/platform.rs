//! libFuzzer's entry to the target `platform`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::platform::run(data));
