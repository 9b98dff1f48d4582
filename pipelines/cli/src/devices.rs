//! `pyrograph devices`.

use std::process::Command;

use pyrograph::DeviceChoice;
use pyrograph::device::{self, Adapter, adapters};
use pyrograph_engine::device::find;

use crate::common::Common;

pub(crate) fn run(common: &Common) -> anyhow::Result<()> {
    let adapters = adapters();
    if common.json {
        for a in &adapters {
            let line = serde_json::json!({
                "device": format!("gpu:{}", a.index), "name": a.name, "driver": a.driver,
                "api": a.api, "software": a.software, "f16": a.f16, "subgroups": a.subgroups,
                "max_buffer_bytes": a.max_buffer,
            });
            println!("{line}");
        }
        return Ok(());
    }
    println!("cpu    {} threads", rayon::current_num_threads());
    for a in &adapters {
        let yes = |flag: bool| if flag { "yes" } else { "no" };
        println!(
            "gpu:{}  {}\n       {}, driver {}, f16 {}, subgroups {}, buffers up to {} MiB{}",
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

/// Has another process check a GPU; `None` if it does not answer. Kernel fusion can be switched off only before a process
/// uses the GPU, and a driver that crashes takes that process alone.
pub(crate) fn probe(adapter: &Adapter, fusion: bool) -> Option<f64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["devices", "--check", "--device", &format!("gpu:{}", adapter.index)]);
    if !fusion {
        command.arg("--no-fusion");
    }
    let output = command.output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The other side of [`probe`]: prints the difference.
pub(crate) fn check(common: &Common, fusion: bool) -> anyhow::Result<()> {
    let choice: DeviceChoice = common.device.parse()?;
    println!("{:e}", device::check(choice, fusion)?);
    Ok(())
}
