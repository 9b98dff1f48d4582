//! The configurations of a diffusers folder, with a NUL between each and the next.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph_fuzz::{folder, no_tensors, place_steps};

const CONFIGS: [&str; 4] = [
    "model_index.json",
    "transformer/config.json",
    "scheduler/scheduler_config.json",
    "vae/config.json",
];
const WEIGHTS: [&str; 2] =
    ["transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"];

fuzz_target!(|data: &[u8]| {
    let empty = no_tensors();
    let mut parts = data.splitn(CONFIGS.len(), |byte| *byte == 0);
    let configs = CONFIGS.map(|name| (name, parts.next().unwrap_or_default()));
    let weights = WEIGHTS.map(|name| (name, empty.as_slice()));
    let files = [&configs[..], &weights].concat();
    if let Ok(model) = pyrograph::model::recognise(&folder(&files)) {
        place_steps(&model);
    }
});
