//! An application that owns its wgpu device and lets pyrograph use it.
//!
//!     cargo run --release --example own_device -- MODEL

use std::ops::ControlFlow;

use pyrograph::burn::tensor::wgpu::{WgpuSetup, wgpu};
use pyrograph::{ClassPipeline, Hooks, OpenOptions, Request, device};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).unwrap_or_else(|| "emoji-class".into());

    // What the application does anyway: one instance, adapter, device and queue.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = device::wait(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features(),
        required_limits: adapter.limits(),
        experimental_features: wgpu::ExperimentalFeatures::disabled(),
        ..Default::default()
    };
    let (gpu, queue) = device::wait(adapter.request_device(&descriptor))?;
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device: gpu, queue, backend };

    let hooks = Hooks { notify: Some(&|notice| eprintln!("{notice}")), ..Hooks::default() };
    let shared = device::share(setup, &hooks)?;
    let pipeline = ClassPipeline::open_on(model, &shared, &OpenOptions::default())?;
    let generated = pipeline.generate(&Request::new([0]), &mut |progress| {
        eprintln!("step {} of {}", progress.step + 1, progress.steps);
        ControlFlow::Continue(())
    })?;
    generated.images[0].save("own_device.png")?;
    Ok(())
}
