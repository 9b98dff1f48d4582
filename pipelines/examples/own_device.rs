//! An application that owns its wgpu device and lets pyrograph use it.
//!
//!     cargo run --release --example own_device -- MODEL

use std::ops::ControlFlow;

use burn::tensor::wgpu::{WgpuSetup, wgpu};
use pyrograph::pipeline::{ClassPipeline, Progress};
use pyrograph_engine::device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = std::env::args().nth(1).ok_or("the path of a model is missing")?;

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

    let device = device::share(WgpuSetup { instance, adapter, device: gpu, queue, backend })?;
    let model = pyrograph::model::open(model.as_ref(), &device)?;
    let pipeline = ClassPipeline::new(model, &device);
    let settings = pipeline.config().defaults.settings(7);
    let go_on = &mut |progress: Progress<'_>| {
        eprintln!("step {} of {}", progress.step + 1, progress.steps);
        ControlFlow::Continue(())
    };
    pipeline.generate(&[0], &settings, None, go_on)?.images[0].save("own_device.png")?;
    Ok(())
}
