//! The TOML text of a training run, then overrides, with a NUL between each and the next.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph::train::TrainConfig;

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let text = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    if let Ok(config) = TrainConfig::parse(text, &overrides)
        && let Ok(net) = config.net(3, [64, 64], 10)
    {
        config.trainer(&net);
    }
});
