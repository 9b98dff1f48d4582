//! The check of a GPU in a process of its own.

use std::process::Command;

use pyrograph::device::{Adapter, Trust};

/// Has another process check a GPU with so much trust; `None` if it does not answer. Kernel fusion can be switched off only
/// before a process uses the GPU, and a driver that crashes takes that process alone.
pub(crate) fn probe(adapter: &Adapter, trust: Trust) -> Option<f64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["devices", "--check", "--device", &format!("gpu:{}", adapter.index)]);
    for (left, option) in [(!trust.fusion, "--no-fusion"), (!trust.kernels, "--no-kernels")] {
        if left {
            command.arg(option);
        }
    }
    let output = command.output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}
