//! The check of a GPU at its first use, and the memory of its result.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyrograph_engine::device::{self, Adapter, Opened};
use pyrograph_engine::selfcheck::{TOLERANCE, difference};
use pyrograph_weights::write_whole;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hooks::{Hooks, Notice};

/// What was found out about an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Health {
    /// Whether fusion gives right numbers.
    fusion: bool,
    /// A check with this fusion has begun; it still is so if the check ended badly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pending: bool,
}

/// Results by adapter, driver and version of this library.
struct Memory {
    /// None without a home.
    path: Option<PathBuf>,
    known: BTreeMap<String, Health>,
}

/// Folder of what can be made again, for this user; `None` without a home.
pub(crate) fn cache_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.filter(|cache| cache.is_absolute());
    Some(cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("pyrograph"))
}

impl Memory {
    fn read() -> Self {
        Self::read_from(cache_folder().map(|cache| cache.join("adapters.json")))
    }

    fn read_from(path: Option<PathBuf>) -> Self {
        let text = path.as_ref().and_then(|path| std::fs::read(path).ok());
        let known = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { path, known }
    }

    /// Without a file the check runs again next time.
    fn write(&mut self, key: &str, health: Health) {
        self.known.insert(key.to_owned(), health);
        if let Some(path) = &self.path
            && let Ok(text) = serde_json::to_vec_pretty(&self.known)
        {
            let _ = path.parent().map(std::fs::create_dir_all);
            let _ = write_whole(path, &text);
        }
    }
}

/// Opens an adapter with fusion, if that gives right numbers; checks it first if it, its driver or this library is new
/// here.
pub(crate) fn open(adapter: Adapter, hooks: &Hooks<'_>) -> Result<Opened> {
    let (key, name) = (key(&adapter), adapter.to_string());
    let mut memory = Memory::read();
    if let Some(probe) = hooks.probe
        && !matches!(memory.known.get(&key), Some(Health { pending: false, .. }))
    {
        hooks.notify(Notice::FirstUse { adapter: name.clone() });
        let fusion = probed(&name, hooks, |fusion| probe(&adapter, fusion))?;
        memory.write(&key, Health { fusion, pending: false });
    }
    let open = |fusion| Ok(device::open(Some(adapter), fusion)?);
    tried(&name, &key, &mut memory, hooks, open)
}

/// Shares a device of the application, with fusion if that gives right numbers.
#[cfg(feature = "gpu")]
pub(crate) fn share(setup: device::WgpuSetup, hooks: &Hooks<'_>) -> Result<Opened> {
    let adapter = Adapter::of(&setup);
    let key = key(&adapter);
    let open = |fusion| Ok(device::share(setup, fusion)?);
    tried(&adapter.to_string(), &key, &mut Memory::read(), hooks, open)
}

fn key(adapter: &Adapter) -> String {
    format!("{} | {} | {}", adapter.name, adapter.driver, env!("CARGO_PKG_VERSION"))
}

/// Whether to use fusion, by a measurement in another process.
fn probed(adapter: &str, hooks: &Hooks<'_>, measure: impl Fn(bool) -> Option<f64>) -> Result<bool> {
    let difference = measure(true);
    if difference.is_some_and(is_right) {
        return Ok(true);
    }
    hooks.notify(Notice::FusionOff { difference });
    match measure(false) {
        Some(difference) if is_right(difference) => Ok(false),
        difference => Err(Error::Gpu { adapter: adapter.to_owned(), difference }),
    }
}

/// Opens a device, and checks it in this process if nothing else has. That a check has begun is written down before, so
/// that the next start knows how far this one came.
fn tried(
    adapter: &str,
    key: &str,
    memory: &mut Memory,
    hooks: &Hooks<'_>,
    open: impl FnOnce(bool) -> Result<Opened>,
) -> Result<Opened> {
    let fault = |difference| Err(Error::Gpu { adapter: adapter.to_owned(), difference });
    let fusion = match memory.known.get(key) {
        Some(Health { fusion, pending: false }) => return open(*fusion),
        None => {
            hooks.notify(Notice::FirstUse { adapter: adapter.to_owned() });
            true
        }
        Some(Health { fusion: true, .. }) => {
            hooks.notify(Notice::FusionOff { difference: None });
            false
        }
        Some(Health { fusion: false, .. }) => return fault(None),
    };
    let opened = open(fusion)?;
    memory.write(key, Health { fusion, pending: true });
    let found = difference(&opened.device);
    if !is_right(found) {
        return fault(Some(found));
    }
    memory.write(key, Health { fusion, pending: false });
    Ok(opened)
}

fn is_right(difference: f64) -> bool {
    difference <= TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    use burn::tensor::Device;

    #[test]
    fn fusion_is_used_only_where_it_is_right() {
        let hooks = Hooks::default();
        let decide = |with: Option<f64>, without: Option<f64>| {
            probed("a", &hooks, |fusion| if fusion { with } else { without })
        };
        assert!(decide(Some(1e-6), None).expect("right with fusion"));
        for wrong in [Some(0.1), Some(f64::NAN), Some(f64::INFINITY), None] {
            assert!(!decide(wrong, Some(1e-6)).expect("right without"));
            assert!(matches!(decide(wrong, wrong), Err(Error::Gpu { .. })));
        }
    }

    /// The CPU stands for a GPU that is right.
    #[test]
    fn a_check_that_did_not_end_is_remembered() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("cache/adapters.json");
        let memory = || Memory::read_from(Some(path.clone()));
        let heard = RefCell::new(Vec::new());
        let start = |crash: bool| {
            let opened = RefCell::new(None);
            let result = tried("a", "key", &mut memory(), &Hooks::default(), |fusion| {
                *opened.borrow_mut() = Some(fusion);
                match crash {
                    true => Err(Error::Cancelled),
                    false => Ok(Opened { device: Device::flex(), adapter: None }),
                }
            });
            heard.borrow_mut().push(opened.into_inner());
            result
        };
        // A driver that refuses says nothing of fusion.
        assert!(start(true).is_err() && memory().known.is_empty());
        assert!(start(false).is_ok());
        assert_eq!(memory().known["key"], Health { fusion: true, pending: false });
        // As a crash in the check leaves it: fusion is left off, and then the GPU.
        memory().write("key", Health { fusion: true, pending: true });
        assert!(start(false).is_ok());
        assert_eq!(memory().known["key"], Health { fusion: false, pending: false });
        memory().write("key", Health { fusion: false, pending: true });
        assert!(matches!(start(false), Err(Error::Gpu { difference: None, .. })));
        assert_eq!(heard.into_inner(), [Some(true), Some(true), Some(false), None]);
    }
}
