//! The description of a set of trajectories, then after a NUL its first shard.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyrograph::trajectories::Trajectories;
use pyrograph_fuzz::folder;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |byte| *byte == 0);
    let spec = ("trajectories.json", parts.next().unwrap_or_default());
    let shard = ("000000.safetensors", parts.next().unwrap_or_default());
    if let Ok(set) = Trajectories::open(&folder(&[spec, shard])) {
        let _ = (set.spec().bytes(), set.spec().picks(2));
    }
});
