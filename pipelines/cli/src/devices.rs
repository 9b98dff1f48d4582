//! `pyrograph devices`.

use pyrograph::DeviceChoice;
use pyrograph::device::{self, Trust, adapters};
use pyrograph_engine::device::{Kernels, find};
use pyrograph_engine::ops::products;
use serde_json::{Map, Value, json};

use crate::common::Common;

pub(crate) fn run(common: &Common) -> anyhow::Result<()> {
    let adapters = {
        let _silence = common.silence();
        adapters()
    };
    Kernels::allowed()?;
    if common.json {
        let products: Map<String, Value> =
            products().into_iter().map(|(name, form)| (name.to_owned(), form.into())).collect();
        let threads = rayon::current_num_threads();
        println!("{}", json!({"device": "cpu", "threads": threads, "products": products}));
        for a in &adapters {
            let line = json!({
                "device": format!("gpu:{}", a.index), "name": a.name, "driver": a.driver,
                "api": a.api, "software": a.software, "f16": a.f16, "subgroups": a.subgroups,
                "max_buffer_bytes": a.max_buffer, "memory_bytes": a.memory,
            });
            println!("{line}");
        }
        return Ok(());
    }
    let products = products().map(|(name, form)| format!("{name} {form}")).join(", ");
    println!("cpu    {} threads, products: {products}", rayon::current_num_threads());
    for a in &adapters {
        let yes = |flag: bool| if flag { "yes" } else { "no" };
        let memory =
            a.memory.map_or(String::new(), |bytes| format!("memory {} MiB, ", bytes >> 20));
        println!(
            "gpu:{}  {}\n       {}, driver {}, f16 {}, subgroups {}, {memory}buffers up to {} MiB{}",
            a.index,
            a.name,
            a.api,
            a.driver,
            yes(a.f16),
            yes(a.subgroups),
            a.max_buffer >> 20,
            if a.software { ", software: used only when named" } else { "" },
        );
    }
    if adapters.is_empty()
        && let Err(reason) = find(DeviceChoice::Gpu(None))
    {
        println!("{reason}");
    }
    Ok(())
}

/// The other side of [`probe`](crate::probe::probe): prints the difference.
pub(crate) fn check(common: &Common, trust: Trust) -> anyhow::Result<()> {
    let choice: DeviceChoice = common.device.parse()?;
    println!("{:e}", device::check(choice, trust)?);
    Ok(())
}
