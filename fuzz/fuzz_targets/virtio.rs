//! libFuzzer's entry to the target `virtio`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::virtio::run(data));
