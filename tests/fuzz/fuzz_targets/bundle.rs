//! The manifest of a bundle, then after a NUL the part `net.safetensors`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph::weights::Bundle;
use pyrograph_fuzz::{folder, read_all};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let manifest = ("model.json", parts.next().unwrap_or_default());
    let part = ("net.safetensors", parts.next().unwrap_or_default());
    let Ok(bundle) = Bundle::open(folder(&[manifest, part])) else { return };
    for name in bundle.manifest().parts.keys() {
        let _ = bundle.verify(name);
        if let Ok(checkpoint) = bundle.checkpoint(name) {
            read_all(checkpoint.path());
        }
    }
});
