//! The check of a GPU at its first use, and the memory of its result.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyrograph_engine::device::{self, Adapter, Opened, Trust};
use pyrograph_engine::selfcheck::{TOLERANCE, difference};
use pyrograph_weights::write_whole;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hooks::{Hooks, Notice};

/// What was found out about an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Health {
    /// With what it gives right numbers.
    #[serde(flatten)]
    trust: Trust,
    /// A check with this has begun; it still is so if the check ended badly.
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

/// Opens an adapter with all that gives right numbers; checks it first if it, its driver or this library is new here.
pub(crate) fn open(adapter: Adapter, hooks: &Hooks<'_>) -> Result<Opened> {
    let (key, name) = (key(&adapter), adapter.to_string());
    let mut memory = Memory::read();
    if let Some(probe) = hooks.probe
        && !matches!(memory.known.get(&key), Some(Health { pending: false, .. }))
    {
        hooks.notify(Notice::FirstUse { adapter: name.clone() });
        let trust = probed(&name, hooks, |trust| probe(&adapter, trust))?;
        memory.write(&key, Health { trust, pending: false });
    }
    let open = |trust| Ok(device::open(Some(adapter), trust)?);
    tried(&name, &key, &mut memory, hooks, open)
}

/// Shares a device of the application, with all that gives right numbers.
#[cfg(feature = "gpu")]
pub(crate) fn share(setup: device::WgpuSetup, hooks: &Hooks<'_>) -> Result<Opened> {
    let adapter = Adapter::of(&setup);
    let key = key(&adapter);
    let open = |trust| Ok(device::share(setup, trust)?);
    tried(&adapter.to_string(), &key, &mut Memory::read(), hooks, open)
}

fn key(adapter: &Adapter) -> String {
    format!("{} | {} | {}", adapter.name, adapter.driver, env!("CARGO_PKG_VERSION"))
}

/// What to use, by measurements in another process.
fn probed(
    adapter: &str,
    hooks: &Hooks<'_>,
    measure: impl Fn(Trust) -> Option<f64>,
) -> Result<Trust> {
    let mut first = None;
    for trust in Trust::LADDER {
        let difference = measure(trust);
        if difference.is_some_and(is_right) {
            if let Some(difference) = first {
                hooks.notify(Notice::LeftOff { trust, difference });
            }
            return Ok(trust);
        }
        first.get_or_insert(difference);
    }
    Err(Error::Gpu { adapter: adapter.to_owned(), difference: first.flatten() })
}

/// Opens a device, and checks it in this process if nothing else has. That a check has begun is written down before, so
/// that the next start knows how far this one came.
fn tried(
    adapter: &str,
    key: &str,
    memory: &mut Memory,
    hooks: &Hooks<'_>,
    open: impl FnOnce(Trust) -> Result<Opened>,
) -> Result<Opened> {
    let fault = |difference| Err(Error::Gpu { adapter: adapter.to_owned(), difference });
    // What has not ended badly yet, from the most trust on.
    let rungs = match memory.known.get(key) {
        Some(Health { trust, pending: false }) => return open(*trust),
        None => {
            hooks.notify(Notice::FirstUse { adapter: adapter.to_owned() });
            &Trust::LADDER[..]
        }
        Some(Health { trust, .. }) => {
            let failed = Trust::LADDER.iter().position(|rung| rung == trust);
            &Trust::LADDER[failed.map_or(0, |failed| failed + 1)..]
        }
    };
    let Some(&first) = rungs.first() else { return fault(None) };
    let opened = open(first)?;
    let mut found = None;
    // Fusion cannot be switched off any more.
    for &trust in rungs.iter().take_while(|rung| rung.fusion == first.fusion) {
        if !trust.kernels {
            device::leave_kernels();
        }
        memory.write(key, Health { trust, pending: true });
        let own = difference(&opened.device);
        if is_right(own) {
            if trust != Trust::FULL {
                hooks.notify(Notice::LeftOff { trust, difference: found });
            }
            memory.write(key, Health { trust, pending: false });
            return Ok(opened);
        }
        found.get_or_insert(own);
    }
    fault(found)
}

fn is_right(difference: f64) -> bool {
    difference <= TOLERANCE
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Mutex;

    use burn::tensor::Device;

    #[test]
    fn what_is_wrong_is_left_off_and_no_more() {
        let heard = Mutex::new(Vec::new());
        let notify = |notice| heard.lock().expect("no panic").push(notice);
        let hooks = Hooks { notify: Some(&notify), ..Hooks::default() };
        let [right, wrong] = [Some(1e-6), Some(0.1)];
        for (i, expected) in Trust::LADDER.into_iter().enumerate() {
            for bad in [wrong, Some(f64::NAN), Some(f64::INFINITY), None] {
                let at =
                    |trust| Trust::LADDER.iter().position(|rung| *rung == trust).expect("a rung");
                let found = probed("a", &hooks, |trust| if at(trust) < i { bad } else { right });
                assert_eq!(found.expect("right in the end"), expected);
                let told = std::mem::take(&mut *heard.lock().expect("no panic"));
                assert_eq!(told.is_empty(), i == 0);
                if let [Notice::LeftOff { trust, difference }] = told.as_slice() {
                    assert_eq!((*trust, difference.is_none()), (expected, bad.is_none()));
                }
                assert!(matches!(probed("a", &hooks, |_| bad), Err(Error::Gpu { .. })));
            }
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
            let result = tried("a", "key", &mut memory(), &Hooks::default(), |trust| {
                *opened.borrow_mut() = Some(trust);
                match crash {
                    true => Err(Error::Cancelled),
                    false => Ok(Opened { device: Device::flex(), adapter: None }),
                }
            });
            heard.borrow_mut().push(opened.into_inner());
            result
        };
        // A driver that refuses says nothing of the rest.
        assert!(start(true).is_err() && memory().known.is_empty());
        assert!(start(false).is_ok());
        let [full, unfused] = [Trust::FULL, Trust::LADDER[2]];
        assert_eq!(memory().known["key"], Health { trust: full, pending: false });
        // As crashes in the check leave it: less and less is used, and then not the GPU.
        memory().write("key", Health { trust: Trust::LADDER[1], pending: true });
        assert!(start(false).is_ok());
        assert_eq!(memory().known["key"], Health { trust: unfused, pending: false });
        assert!(start(false).is_ok());
        memory().write("key", Health { trust: Trust::LADDER[3], pending: true });
        assert!(matches!(start(false), Err(Error::Gpu { difference: None, .. })));
        let (full, unfused) = (Some(full), Some(unfused));
        assert_eq!(heard.into_inner(), [full, full, unfused, unfused, None]);
    }
}
