//! What the tests share.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::device::{self, DeviceChoice};
use pyrograph_engine::nets::Dit;
use pyrograph_engine::random::Generator;
use pyrograph_weights::Checkpoint;

/// Folder of what the project ships.
pub fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets")
}

/// Folder of the golden cases.
pub fn goldens() -> PathBuf {
    match std::env::var_os("PYROGRAPH_GOLDENS") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/goldens"),
    }
}

/// Folders of the golden cases whose names start with `prefix`; at least one.
pub fn cases(prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(goldens())
        .expect("a folder of golden cases")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "no golden case {prefix}* in {}", goldens().display());
    found
}

/// The device under test and how far it may be from the CPU references, relative to `cpu`.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE
        .get_or_init(|| {
            let choice: DeviceChoice = match std::env::var("PYROGRAPH_TEST_DEVICE") {
                Ok(choice) => choice.parse().expect("a device"),
                Err(_) => DeviceChoice::Cpu,
            };
            let adapter = device::find(choice).expect("the device under test");
            device::open(adapter, true).expect("a driver that works").device
        })
        .clone()
}

/// `cpu` on the CPU, at least 1e-3 on a GPU.
pub fn tolerance(cpu: f64) -> f64 {
    match std::env::var("PYROGRAPH_TEST_DEVICE") {
        Ok(device) if device != "cpu" => cpu.max(1e-3),
        _ => cpu,
    }
}

/// The tensors of a golden case.
pub struct Case(Checkpoint);

impl Case {
    pub fn open(folder: &Path) -> Self {
        Self(Checkpoint::open(folder.join("case.safetensors")).expect("a golden case"))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.tensors().contains_key(name)
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.0.tensors().keys()
    }

    /// Floats or integers, as floats.
    pub fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (values, shape) = self.0.read_f32(name).unwrap_or_else(|error| panic!("{error}"));
        let shape: [usize; D] = shape.as_slice().try_into().unwrap_or_else(|_| {
            panic!("`{name}` has shape {shape:?}, expected {D} dimensions");
        });
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    pub fn scalar(&self, name: &str) -> f32 {
        self.0.read_f32(name).unwrap_or_else(|error| panic!("{error}")).0[0]
    }

    pub fn ids(&self, name: &str) -> Vec<usize> {
        let (values, _) = self.0.read_f32(name).unwrap_or_else(|error| panic!("{error}"));
        values.into_iter().map(|id| id as usize).collect()
    }
}

/// A JSON file of a case.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    // Python writes infinities, which JSON does not have.
    let text = text.replace("-Infinity", "null").replace("Infinity", "null");
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Largest absolute difference, as a share of the largest absolute value expected.
pub fn relative_difference<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let host = Device::flex();
    let (found, expected) = (found.to_device(&host), expected.to_device(&host));
    let scale: f32 = expected.clone().abs().max().into_scalar();
    let difference: f32 = (found - expected).abs().max().into_scalar();
    assert!(difference.is_finite());
    f64::from(difference) / f64::from(scale.max(f32::MIN_POSITIVE))
}

/// Fails with both numbers and the name of what differs; prints the difference for the record.
pub fn assert_close<const D: usize>(
    what: &str,
    found: Tensor<D>,
    expected: Tensor<D>,
    tolerance: f64,
) {
    let difference = relative_difference(found, expected);
    println!("{what}: {difference:.1e} of the maximum");
    assert!(difference <= tolerance, "{what} differs by {difference:.2e}, allowed {tolerance:.0e}");
}

/// With the parameters that start as zero drawn at random.
pub fn opened(net: Dit) -> Dit {
    struct Open(Generator);
    impl ModuleMapper for Open {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|old| {
                let noise = TensorData::new(self.0.normal(old.shape().num_elements()), old.shape());
                old.clone() + Tensor::from_data(noise, &old.device()) * 0.5
            })
        }
    }
    net.map(&mut Open(Generator::new(7)))
}

/// The built `pyrograph`.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_pyrograph"))
}

/// Means of the first five and of the last five losses that a run has logged.
pub fn first_and_last_loss(run: &Path) -> [f64; 2] {
    let log = std::fs::read_to_string(run.join("log.csv")).expect("a log");
    let loss = |line: &str| line.split(',').nth(1).expect("a loss").parse().expect("a number");
    let losses: Vec<f64> = log.lines().skip(1).map(loss).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    [mean(&losses[..5]), mean(&losses[losses.len() - 5..])]
}
