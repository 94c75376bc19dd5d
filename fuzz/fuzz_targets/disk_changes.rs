#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| servin_fuzz::disk_changes(data));
