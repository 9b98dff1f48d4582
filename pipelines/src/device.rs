//! Opening a device, and finding out whether a GPU can be trusted.

use std::fmt;
use std::path::PathBuf;

use pyrograph_engine::device;

pub use pyrograph_engine::device::{Adapter, DeviceChoice, Opened, adapters, is_host};
#[cfg(feature = "gpu")]
pub use pyrograph_engine::device::{WgpuSetup, wait};

use crate::error::Result;
use crate::health;

/// What an application should pass on to its user.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Notice {
    /// [`DeviceChoice::Auto`] found no GPU.
    NoGpu,
    /// A GPU is going to be checked, which can take a minute.
    FirstUse {
        /// The GPU and its graphics API.
        adapter: String,
    },
    /// Kernel fusion, which saves time, is left off.
    FusionOff {
        /// Largest difference from the CPU with it, as a share of the largest value; `None` if the check did not end.
        difference: Option<f64>,
    },
    /// A model has weights that are NaN or infinite.
    NotFinite {
        /// Number of such tensors.
        tensors: usize,
        /// Name of the first.
        first: String,
    },
    /// A LoRA says nowhere what its alpha is, so that it is taken for the rank.
    AlphaAssumed {
        /// File or folder.
        file: PathBuf,
    },
}

impl Notice {
    /// Whether something is wrong.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::FusionOff { .. } | Self::NotFinite { .. } | Self::AlphaAssumed { .. })
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGpu => write!(f, "no GPU found, running on the CPU"),
            Self::FirstUse { adapter } => {
                write!(f, "first use of {adapter}: checking it against the CPU")
            }
            Self::FusionOff { difference: Some(difference) } => {
                write!(f, "kernel fusion is off, it differs from the CPU by {difference:.1e}")
            }
            Self::FusionOff { difference: None } => {
                write!(f, "kernel fusion is off, it differs from the CPU by a crash")
            }
            Self::NotFinite { tensors, first } => {
                write!(f, "{tensors} tensors hold NaN or infinite weights, the first is {first}")
            }
            Self::AlphaAssumed { file } => {
                write!(f, "{}: no alpha is stored, it is taken for the rank", file.display())
            }
        }
    }
}

/// See [`Hooks::probe`].
pub type Probe<'a> = dyn Fn(&Adapter, bool) -> Option<f64> + Sync + 'a;

/// How an application takes part in opening a device or a model; by default, not at all.
#[derive(Clone, Copy, Default)]
pub struct Hooks<'a> {
    /// Hears of every [`Notice`].
    pub notify: Option<&'a (dyn Fn(Notice) + Sync)>,
    /// Checks a GPU with kernel fusion, or without, in a process of its own, whose end is not that of the
    /// application: [`check`]'s result there, `None` if it does not answer.
    pub probe: Option<&'a Probe<'a>>,
}

impl Hooks<'_> {
    pub(crate) fn notify(&self, notice: Notice) {
        if let Some(notify) = self.notify {
            notify(notice);
        }
    }
}

impl fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { notify, probe } = self;
        write!(f, "Hooks {{ notify: {}, probe: {} }}", notify.is_some(), probe.is_some())
    }
}

/// Opens a device.
///
/// A GPU is compared with the CPU at its first use, since kernel fusion has given wrong numbers on some drivers,
/// silently; the result is remembered for its driver and this version in `pyrograph/adapters.json` of the user's
/// cache folder. With [`Hooks::probe`] that happens in another process. Without, it happens in this one: fusion can be
/// switched off only before a process uses the GPU, so if fusion is at fault this call fails, or the process ends with
/// the driver, and the next start is without.
///
/// # Errors
/// A GPU asked for that is not there, that the driver refuses, that crashes or differs from the CPU.
pub fn open(choice: DeviceChoice, hooks: &Hooks<'_>) -> Result<Opened> {
    let Some(adapter) = device::find(choice)? else {
        if choice == DeviceChoice::Auto {
            hooks.notify(Notice::NoGpu);
        }
        return Ok(device::open(None, true)?);
    };
    health::open(adapter, hooks)
}

/// Works on a device that the application has opened itself, sharing its queue and buffers; checks it as [`open`] does
/// without a probe. See the example `own_device`.
///
/// # Errors
/// A device without the features that the shaders of this build need, one that differs from the CPU.
#[cfg(feature = "gpu")]
pub fn share(setup: WgpuSetup, hooks: &Hooks<'_>) -> Result<Opened> {
    health::share(setup, hooks)
}

/// How far a GPU is from the CPU on a small network, as a share of the largest value: what [`Hooks::probe`] has to
/// measure.
///
/// # Errors
/// A GPU that is not there, or that the driver refuses.
pub fn check(choice: DeviceChoice, fusion: bool) -> Result<f64> {
    let opened = device::open(device::find(choice)?, fusion)?;
    Ok(pyrograph_engine::selfcheck::difference(&opened.device))
}
