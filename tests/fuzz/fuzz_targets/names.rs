//! What people type: a patch plan, a sampler, a scheduler, a class.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph::engine::diffusion::{Spacing, parse_sampler};
use pyrograph::engine::nets::DitConfig;
use pyrograph::labels::Labels;
use pyrograph::patches::PatchPlan;

fuzz_target!(|text: &str| {
    let _ = (parse_sampler(text), text.parse::<Spacing>());
    let labels = Labels(vec!["tench, Tinca tinca".into(), "goldfish".into()]);
    let _ = labels.find(text, 2);
    if let Ok(plan) = PatchPlan::parse(text, 20) {
        let _ = plan.phases(&DitConfig::dit(384, 12, 6), [32, 32], 20);
    }
});
