//! Choosing and opening a device.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

mod kernels;
pub(crate) use kernels::on_gpus;
pub use kernels::{Kernels, leave_kernels};

#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "gpu")]
pub use gpu::{WgpuSetup, share, wait};

/// A build without the GPU finds no adapter.
#[cfg(not(feature = "gpu"))]
mod gpu {
    use super::{Adapter, Device, Error, Result, Trust};

    pub(super) type Selector = ();

    pub(super) fn adapters() -> Vec<Adapter> {
        Vec::new()
    }

    pub(super) fn open(_: &Adapter, _: Trust) -> Result<Device> {
        Err(Error::BuiltWithoutGpu)
    }
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A real GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first real GPU, or the adapter of this index, which may be software.
    Gpu(Option<usize>),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(None)),
            _ => text
                .strip_prefix("gpu:")
                .and_then(|index| index.parse().ok())
                .map(|index| Self::Gpu(Some(index)))
                .ok_or_else(|| Error::UnknownDevice { found: text.into() }),
        }
    }
}

/// A GPU, or a program that plays one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Position in the list, as in `gpu:N`.
    pub index: usize,
    /// Name given by the driver.
    pub name: String,
    /// Driver and its version.
    pub driver: String,
    /// Graphics API.
    pub api: &'static str,
    /// Runs on the CPU (llvmpipe, lavapipe, WARP).
    pub software: bool,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Subgroup operations.
    pub subgroups: bool,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Memory of a card in bytes, with what others take of it, where its API tells: Vulkan does.
    pub memory: Option<u64>,
    selector: gpu::Selector,
}

impl Adapter {
    /// Whether its driver takes cubecl's SPIR-V: the software ones of Mesa 22.3 and 25.0 crash on it, that of 26.1 does not.
    fn survives_spirv(&self) -> bool {
        const FIRST: u32 = 26;
        let version = self.driver.split_once("Mesa ").map(|(_, version)| version);
        let major = version.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        !self.software || major.is_some_and(|major| major >= FIRST)
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let software = if self.software { ", software" } else { "" };
        write!(f, "{} ({}{software})", self.name, self.api)
    }
}

/// What works on a GPU beside burn's operations one by one: what is fast, and has been wrong on some drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// burn joins operations into one kernel.
    pub fusion: bool,
    /// Kernels of this library's own.
    pub kernels: bool,
}

impl Trust {
    /// From all of it to none.
    pub const LADDER: [Self; 4] = [
        Self { fusion: true, kernels: true },
        Self { fusion: true, kernels: false },
        Self { fusion: false, kernels: true },
        Self { fusion: false, kernels: false },
    ];
    /// All of it.
    pub const FULL: Self = Self::LADDER[0];
}

/// The adapters of this machine, on the first graphics API that has a real GPU, or failing that any.
///
/// None in a build without the feature `gpu`.
pub fn adapters() -> Vec<Adapter> {
    gpu::adapters()
}

/// An opened device.
#[derive(Debug, Clone)]
pub struct Opened {
    /// To make tensors and modules on.
    pub device: Device,
    /// The adapter behind it; `None` for the CPU.
    pub adapter: Option<Adapter>,
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.adapter {
            None => write!(f, "CPU"),
            Some(adapter) => adapter.fmt(f),
        }
    }
}

/// Whether a device computes on the CPU, in this process.
pub fn is_host(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

/// The adapter that a choice means; `None` for the CPU.
///
/// # Errors
/// A GPU asked for that is not there, or that this build cannot use.
pub fn find(choice: DeviceChoice) -> Result<Option<Adapter>> {
    let adapter = match choice {
        DeviceChoice::Cpu => return Ok(None),
        DeviceChoice::Gpu(_) if !cfg!(feature = "gpu") => return Err(Error::BuiltWithoutGpu),
        DeviceChoice::Auto => adapters().into_iter().find(|adapter| !adapter.software),
        DeviceChoice::Gpu(index) => Some(choose(adapters(), index)?),
    };
    match adapter {
        Some(adapter) if cfg!(feature = "vulkan") && !adapter.survives_spirv() => {
            Err(Error::SoftwareWithSpirv { name: adapter.name, driver: adapter.driver })
        }
        adapter => Ok(adapter),
    }
}

/// Opens what [`find`] found, with so much trust.
///
/// Fusion can be switched off only before the first GPU of a process is opened, and kernels are then off for all of them.
///
/// # Errors
/// A driver that refuses, [`Error::UnknownKernels`].
pub fn open(adapter: Option<Adapter>, trust: Trust) -> Result<Opened> {
    Kernels::allowed()?;
    let device = match &adapter {
        None => Device::flex(),
        Some(adapter) => gpu::open(adapter, trust)?,
    };
    Ok(Opened { device, adapter })
}

fn choose(mut adapters: Vec<Adapter>, index: Option<usize>) -> Result<Adapter> {
    let count = adapters.len();
    match index {
        _ if count == 0 => Err(Error::NoAdapter),
        Some(index) if index < count => Ok(adapters.swap_remove(index)),
        Some(index) => Err(Error::NoSuchAdapter { index, count }),
        None => match adapters.iter().position(|adapter| !adapter.software) {
            Some(real) => Ok(adapters.swap_remove(real)),
            None => Err(Error::OnlySoftware { name: adapters.swap_remove(0).name, index: 0 }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        assert_eq!("gpu:2".parse::<DeviceChoice>().expect("known"), DeviceChoice::Gpu(Some(2)));
        assert_eq!("auto".parse::<DeviceChoice>().expect("known"), DeviceChoice::Auto);
        let error = "cuda".parse::<DeviceChoice>().expect_err("unknown");
        assert!(error.to_string().contains("`cuda`"));
    }

    #[cfg(not(feature = "gpu"))]
    #[test]
    fn a_build_without_gpu_says_so() {
        assert_eq!(find(DeviceChoice::Auto).expect("the CPU"), None);
        for index in [None, Some(0)] {
            assert!(matches!(find(DeviceChoice::Gpu(index)), Err(Error::BuiltWithoutGpu)));
        }
    }
}
