#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| servin_fuzz::image_tar(data));
