//! The `config` in the `model.json` of a model whose parts are there.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph_fuzz::{folder, no_tensors, place_steps};

fuzz_target!(|config: &str| {
    let empty = no_tensors();
    let part = |name| {
        format!(
            r#""{name}": {{"file": "{name}.safetensors", "bytes": {}, "sha256": "", "dtype": "f32"}}"#,
            empty.len()
        )
    };
    let manifest = format!(
        r#"{{"format": "pyrograph", "version": 1, "family": "class", "config": {config}, "parts": {{{}, {}}}}}"#,
        part("dit"),
        part("vae")
    );
    let files = [
        ("model.json", manifest.as_bytes()),
        ("dit.safetensors", &empty),
        ("vae.safetensors", &empty),
    ];
    if let Ok(model) = pyrograph::model::recognise(&folder(&files)) {
        place_steps(&model);
    }
});
