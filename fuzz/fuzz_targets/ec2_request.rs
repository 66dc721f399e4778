//! libFuzzer's entry to the target `ec2_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kiln_fuzz::ec2_request::run(data));
