//! libFuzzer's entry to the target `softcpu`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::softcpu::run(data));
