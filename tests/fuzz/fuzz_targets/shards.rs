//! A shard index, then after a NUL the shard `1.safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph_fuzz::{folder, read_all};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let index = ("a.safetensors.index.json", parts.next().unwrap_or_default());
    let shard = ("1.safetensors", parts.next().unwrap_or_default());
    read_all(&folder(&[index, shard]).join(index.0));
});
