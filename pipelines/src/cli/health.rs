//! The check of a GPU at its first use, and the memory of its result.
//!
//! The check runs in a process of its own: kernel fusion can be switched off only before a process uses
//! the GPU, and a driver that crashes takes that process alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use pyrograph_engine::device::{self, Adapter, DeviceChoice};
use pyrograph_engine::selfcheck::{TOLERANCE, difference};
use serde::{Deserialize, Serialize};

use super::Common;

/// What was found out about an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Health {
    /// Whether fusion gives right numbers.
    fusion: bool,
}

/// Whether to use fusion on an adapter; checks it first if it, its driver or this program is new here.
pub(super) fn use_fusion(adapter: &Adapter, common: &Common) -> anyhow::Result<bool> {
    let key = format!("{} | {} | {}", adapter.name, adapter.driver, env!("CARGO_PKG_VERSION"));
    let path = memory();
    let mut known: BTreeMap<String, Health> = path
        .as_ref()
        .and_then(|path| std::fs::read(path).ok())
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    if let Some(health) = known.get(&key) {
        return Ok(health.fusion);
    }
    common.say(&format!("first use of {adapter}: checking it against the CPU"));
    let fusion = match measure(adapter, true) {
        Some(found) if found <= TOLERANCE => true,
        found => {
            let found = found.map_or("a crash".to_owned(), |found| format!("{found:.1e}"));
            common
                .say(&format!("warning: kernel fusion is off, it differs from the CPU by {found}"));
            match measure(adapter, false) {
                Some(found) if found <= TOLERANCE => false,
                Some(found) => anyhow::bail!(
                    "{adapter} differs from the CPU by {found:.1e}, allowed {TOLERANCE:.0e}: use \
                     --device cpu"
                ),
                None => anyhow::bail!("{adapter} crashes: use --device cpu"),
            }
        }
    };
    known.insert(key, Health { fusion });
    if let Some(path) = path {
        // Without it the check runs again next time.
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(path, serde_json::to_vec_pretty(&known)?);
    }
    Ok(fusion)
}

/// Where results are kept; none without a home.
fn memory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Some(cache?.join("pyrograph").join("adapters.json"))
}

/// Runs `pyrograph devices --check` on an adapter; `None` if it does not answer.
fn measure(adapter: &Adapter, fusion: bool) -> Option<f64> {
    let mut command = Command::new(std::env::current_exe().ok()?);
    command.args(["devices", "--check", "--device", &format!("gpu:{}", adapter.index)]);
    if !fusion {
        command.arg("--no-fusion");
    }
    let output = command.output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// The other side of [`measure`]: prints the difference.
pub(super) fn check(common: &Common, fusion: bool) -> anyhow::Result<()> {
    let choice: DeviceChoice = common.device.parse()?;
    let opened = device::open(device::find(choice)?, fusion)?;
    println!("{:e}", difference(&opened.device));
    Ok(())
}
