//! Adapters of wgpu: the only file that names it.

use burn::tensor::wgpu::WgpuBackend;
use burn::tensor::wgpu::wgpu::{self, Backends, DeviceType, Features};
use burn::tensor::{Device, DeviceKind};
use burn_std::config::{BurnConfig, RuntimeConfig};

pub use burn::tensor::wgpu::WgpuSetup;

use super::{Adapter, Opened, Trust, leave_kernels};
use crate::error::{Error, Result};

/// How burn is told an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Selector {
    kind: DeviceKind,
    backend: WgpuBackend,
}

/// See [`super::adapters`].
pub(super) fn adapters() -> Vec<Adapter> {
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
        let kind = match adapter.get_info().device_type {
            DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu(next(0)),
            DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu(next(1)),
            DeviceType::VirtualGpu => DeviceKind::VirtualGpu(next(2)),
            DeviceType::Cpu => DeviceKind::Cpu,
            DeviceType::Other => DeviceKind::DefaultDevice,
        };
        let selector = Selector { kind, backend: choice };
        Adapter { index, api, selector, ..Adapter::describe(&adapter) }
    };
    adapters.into_iter().enumerate().map(describe).collect()
}

impl Adapter {
    /// What an adapter says of itself.
    fn describe(adapter: &wgpu::Adapter) -> Self {
        let (info, features) = (adapter.get_info(), adapter.features());
        let (kind, backend) = (DeviceKind::DefaultDevice, WgpuBackend::Auto);
        // One that shares the machine's memory may call little of it its own.
        let is_card = matches!(info.device_type, DeviceType::DiscreteGpu | DeviceType::VirtualGpu);
        Self {
            index: 0,
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            api: info.backend.to_str(),
            software: info.device_type == DeviceType::Cpu,
            f16: features.contains(Features::SHADER_F16),
            subgroups: features.contains(Features::SUBGROUP),
            max_buffer: adapter.limits().max_buffer_size,
            memory: memory(adapter).filter(|_| is_card),
            name: info.name,
            selector: Selector { kind, backend },
        }
    }

    /// The adapter of a device that the application has opened itself; its index is 0, wherever it stands in the list.
    pub fn of(setup: &WgpuSetup) -> Self {
        Self::describe(&setup.adapter)
    }
}

/// The largest heap that is the adapter's own.
#[cfg(not(any(target_vendor = "apple", target_family = "wasm")))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    /// `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
    const OWN: u32 = 1;
    // SAFETY: instance and physical device are those of an adapter that is borrowed, and are only asked.
    #[allow(unsafe_code)]
    let told = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = told.memory_heaps_as_slice().iter();
    heaps.filter(|heap| heap.flags.as_raw() & OWN != 0).map(|heap| heap.size).max()
}

/// Vulkan alone is asked.
#[cfg(any(target_vendor = "apple", target_family = "wasm"))]
fn memory(_: &wgpu::Adapter) -> Option<u64> {
    None
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

/// A device on an adapter that the application has opened itself, sharing its queue and buffers; for `trust`, see
/// [`open`](super::open).
///
/// # Errors
/// A device without the features that the shaders of this build need; any on Vulkan if these are SPIR-V, which use what the
/// adapter has, switched on or not; any in a browser, whose GPU nobody may wait for.
pub fn share(setup: WgpuSetup, trust: Trust) -> Result<Opened> {
    let adapter = Adapter::of(&setup);
    if cfg!(feature = "vulkan") && setup.backend == wgpu::Backend::Vulkan {
        let reason = "a device of the application's own may lack what the SPIR-V of this build \
            (feature `vulkan`) uses; open one here, or build without that feature";
        return Err(Error::Adapter { name: adapter.name, reason: reason.into() });
    }
    if cfg!(target_family = "wasm") {
        let reason = "a browser lets nobody wait for the GPU, as every reading of an image or a loss \
            here does; use the CPU";
        return Err(Error::Adapter { name: adapter.name, reason: reason.into() });
    }
    limit(trust);
    match Device::wgpu_options().setup(setup).init() {
        Ok(device) => Ok(Opened { device, adapter: Some(adapter) }),
        Err(reason) => Err(Error::Adapter { name: adapter.name, reason: reason.to_string() }),
    }
}

/// See [`super::open`].
#[cfg(not(target_family = "wasm"))]
pub(super) fn open(adapter: &Adapter, trust: Trust) -> Result<Device> {
    limit(trust);
    let Selector { kind, backend } = adapter.selector.clone();
    let opened = Device::wgpu_options().device_kind(kind).graphics_api(backend).init();
    opened
        .map_err(|reason| Error::Adapter { name: adapter.name.clone(), reason: reason.to_string() })
}

/// In a browser none are found.
#[cfg(target_family = "wasm")]
pub(super) fn open(_: &Adapter, _: Trust) -> Result<Device> {
    Err(Error::NoAdapter)
}

/// Switches off what is not trusted.
fn limit(trust: Trust) {
    if !trust.kernels {
        leave_kernels();
    }
    if !trust.fusion {
        disable_fusion();
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
    use super::super::choose;
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
            memory: None,
            selector: Selector { kind: DeviceKind::Cpu, backend: WgpuBackend::Vulkan },
        }
    }

    #[test]
    fn drivers_that_crash_are_known_by_their_version() {
        let of = |driver: &str, software| {
            Adapter { driver: driver.into(), ..adapter(0, software) }.survives_spirv()
        };
        assert!(!of("llvmpipe Mesa 22.3.6 (LLVM 15.0.6)", true));
        assert!(!of("llvmpipe Mesa 25.0.7-2 (LLVM 19.1.7)", true));
        assert!(of("llvmpipe Mesa 26.1.6-1~bpo13+1 (LLVM 19.1.7)", true));
        assert!(!of("", true) && !of("SwiftShader", true));
        assert!(of("radv Mesa 22.3.6", false) && of("NVIDIA 580.95", false));
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
