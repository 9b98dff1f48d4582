//! Opening a device, and finding out whether a GPU can be trusted.

use pyrograph_engine::device;

pub use pyrograph_engine::device::{Adapter, DeviceChoice, Opened, Trust, adapters, is_host};
#[cfg(feature = "gpu")]
pub use pyrograph_engine::device::{WgpuSetup, wait};

use crate::error::{Error, Result};
use crate::health;
pub use crate::hooks::{Hooks, Notice, Probe};

/// Opens a device.
///
/// A GPU is compared with the CPU at its first use, since kernel fusion has given wrong numbers on some drivers,
/// silently; what is at fault, of fusion and our own kernels, is left off, and the result remembered for its driver and this
/// version in `pyrograph/adapters.json` of the user's cache folder. With [`Hooks::probe`] that happens in another process.
/// Without, it happens in this one: fusion can be switched off only before a process uses the GPU, so if fusion is at fault
/// this call fails, or the process ends with the driver, and the next start is without. Where nothing helps, and the GPU was
/// not asked for, the CPU is used.
///
/// # Errors
/// A GPU asked for that is not there, that the driver refuses, that crashes or differs from the CPU.
pub fn open(choice: DeviceChoice, hooks: &Hooks<'_>) -> Result<Opened> {
    let Some(adapter) = device::find(choice)? else {
        if choice == DeviceChoice::Auto {
            hooks.notify(Notice::NoGpu);
        }
        return Ok(device::open(None, Trust::FULL)?);
    };
    match health::open(adapter, hooks) {
        Err(error @ Error::Gpu { .. }) if choice == DeviceChoice::Auto => {
            hooks.notify(Notice::WrongGpu { reason: error.to_string() });
            Ok(device::open(None, Trust::FULL)?)
        }
        opened => opened,
    }
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
pub fn check(choice: DeviceChoice, trust: Trust) -> Result<f64> {
    let opened = device::open(device::find(choice)?, trust)?;
    Ok(pyrograph_engine::selfcheck::difference(&opened.device))
}
