//! Choosing and opening a device: the only file that names wgpu.

use std::fmt;
use std::str::FromStr;

use burn::tensor::wgpu::wgpu::{self, Backends, DeviceType, Features};
use burn::tensor::wgpu::{WgpuBackend, WgpuSetup};
use burn::tensor::{Device, DeviceKind};
use burn_std::config::{BurnConfig, RuntimeConfig};

use crate::error::{Error, Result};

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
    /// Largest buffer in bytes; graphics APIs do not tell the memory.
    pub max_buffer: u64,
    kind: DeviceKind,
    backend: WgpuBackend,
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let software = if self.software { ", software" } else { "" };
        write!(f, "{} ({}{software})", self.name, self.api)
    }
}

/// The adapters of this machine, on the first graphics API that has a real GPU, or failing that any.
pub fn adapters() -> Vec<Adapter> {
    let apis = [
        (wgpu::Backend::Vulkan, WgpuBackend::Vulkan, "Vulkan"),
        (wgpu::Backend::Metal, WgpuBackend::Metal, "Metal"),
        (wgpu::Backend::Dx12, WgpuBackend::Dx12, "DirectX 12"),
    ];
    let mut found = Vec::new();
    for (backend, choice, api) in apis {
        let adapters = adapters_on(backend, choice, api);
        let real = adapters.iter().any(|adapter| !adapter.software);
        if real || found.is_empty() {
            found = adapters;
        }
        if real {
            break;
        }
    }
    found
}

fn adapters_on(backend: wgpu::Backend, choice: WgpuBackend, api: &'static str) -> Vec<Adapter> {
    let backends = Backends::from(backend);
    if !wgpu::Instance::enabled_backend_features().contains(backends) {
        return Vec::new();
    }
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut count = [0; 3];
    let mut next = |kind: usize| {
        count[kind] += 1;
        count[kind] - 1
    };
    let adapters = wait(instance.enumerate_adapters(backends));
    let describe = |(index, adapter): (usize, wgpu::Adapter)| {
        let (info, features) = (adapter.get_info(), adapter.features());
        Adapter {
            index,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            api,
            software: info.device_type == DeviceType::Cpu,
            f16: features.contains(Features::SHADER_F16),
            subgroups: features.contains(Features::SUBGROUP),
            max_buffer: adapter.limits().max_buffer_size,
            kind: match info.device_type {
                DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(next(0)),
                DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(next(1)),
                DeviceType::VirtualGpu => DeviceKind::VirtualGpu(next(2)),
                DeviceType::Cpu => DeviceKind::Cpu,
                DeviceType::Other => DeviceKind::DefaultDevice,
            },
            name: info.name,
            backend: choice,
        }
    };
    adapters.into_iter().enumerate().map(describe).collect()
}

/// Waits for one of wgpu's futures, which on native targets are ready at once.
pub fn wait<F: Future>(future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::yield_now();
    }
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

/// A device on an adapter that the application has opened itself, sharing its queue and buffers.
///
/// See the example `own_device` of the `pyrograph` crate.
///
/// # Errors
/// A device without the features that the shaders of this build need.
pub fn share(setup: WgpuSetup) -> Result<Device> {
    let name = setup.adapter.get_info().name;
    let shared = Device::wgpu_options().setup(setup).init();
    shared.map_err(|reason| Error::Adapter { name, reason: reason.to_string() })
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
        DeviceChoice::Auto => adapters().into_iter().find(|adapter| !adapter.software),
        DeviceChoice::Gpu(index) => Some(choose(adapters(), index)?),
    };
    match adapter {
        Some(adapter) if adapter.software && cfg!(feature = "vulkan") => {
            Err(Error::SoftwareWithSpirv { name: adapter.name })
        }
        adapter => Ok(adapter),
    }
}

/// Opens what [`find`] found; `fusion` joins element-wise GPU operations into one kernel.
///
/// `fusion` can be set once per process, before the first GPU device.
///
/// # Errors
/// A driver that refuses.
pub fn open(adapter: Option<Adapter>, fusion: bool) -> Result<Opened> {
    let Some(adapter) = adapter else {
        return Ok(Opened { device: Device::flex(), adapter: None });
    };
    if !fusion {
        disable_fusion();
    }
    let kind = adapter.kind.clone();
    match Device::wgpu_options().device_kind(kind).graphics_api(adapter.backend).init() {
        Ok(device) => Ok(Opened { device, adapter: Some(adapter) }),
        Err(reason) => Err(Error::Adapter { name: adapter.name, reason: reason.to_string() }),
    }
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

/// Keeps burn's fusion from looking for kernels to join, which leaves every operation on its own.
fn disable_fusion() {
    let settings = serde_json::json!({ "fusion": { "beam_search": { "max_explorations": 0 } } });
    let config: BurnConfig = serde_json::from_value(settings).expect("burn's own field names");
    // Ignored when the process has set its own configuration, or has used the GPU before.
    BurnConfig::try_set(config);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, software: bool) -> Adapter {
        Adapter {
            index,
            name: format!("adapter {index}"),
            driver: String::new(),
            api: "Vulkan",
            software,
            f16: false,
            subgroups: false,
            max_buffer: 0,
            kind: DeviceKind::Cpu,
            backend: WgpuBackend::Vulkan,
        }
    }

    #[test]
    fn spellings() {
        assert_eq!("gpu:2".parse::<DeviceChoice>().expect("known"), DeviceChoice::Gpu(Some(2)));
        assert_eq!("auto".parse::<DeviceChoice>().expect("known"), DeviceChoice::Auto);
        let error = "cuda".parse::<DeviceChoice>().expect_err("unknown");
        assert!(error.to_string().contains("`cuda`"));
    }

    #[test]
    fn software_is_used_only_when_named() {
        let both = || vec![adapter(0, true), adapter(1, false)];
        assert_eq!(choose(both(), None).expect("the real one").index, 1);
        assert_eq!(choose(both(), Some(0)).expect("the named one").index, 0);
        assert!(matches!(choose(vec![adapter(0, true)], None), Err(Error::OnlySoftware { .. })));
        assert!(matches!(choose(vec![], None), Err(Error::NoAdapter)));
        assert!(matches!(choose(both(), Some(5)), Err(Error::NoSuchAdapter { count: 2, .. })));
    }
}
