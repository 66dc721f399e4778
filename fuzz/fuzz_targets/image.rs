//! libFuzzer's entry to the target `image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::image::run(data));
