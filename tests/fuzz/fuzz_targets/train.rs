//! The TOML text of a training run, then overrides, with a NUL between each and the next.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph::train::{Condition, TrainConfig};

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let text = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    if let Ok(config) = TrainConfig::parse(text, &overrides) {
        for told in [Condition::Classes(10), Condition::Text(16)] {
            if let Ok(net) = config.net(3, [64, 64], told) {
                config.trainer(&net);
            }
        }
    }
});
