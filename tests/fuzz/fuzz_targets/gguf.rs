//! GGUF files, also as models by themselves.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph_fuzz::{folder, place_steps, read_all};

fuzz_target!(|data: &[u8]| {
    let path = folder(&[("a.gguf", data)]).join("a.gguf");
    read_all(&path);
    if let Ok(model) = pyrograph::model::recognise(&path) {
        place_steps(&model);
    }
});
