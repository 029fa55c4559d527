#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| advdmd_fuzz::pickle(bytes));
