//! What the tests share.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use image::{RgbImage, Rgba, RgbaImage};
use pyrograph::model::{self, Model, ModelConfig};
use pyrograph::train::{Event, Run};
use pyrograph_engine::device::{self, DeviceChoice, Trust};
use pyrograph_engine::nets::Net;
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::params;
use pyrograph_weights::{Checkpoint, FloatDtype};

/// Folder of the project.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Folder of what the project ships.
pub fn assets() -> PathBuf {
    root().join("assets")
}

/// Folder of small inputs.
pub fn fixtures() -> PathBuf {
    root().join("tests/fixtures")
}

/// Equal bit for bit, or neither a number.
pub fn is_same(a: &[f32], b: &[f32]) -> bool {
    let same = |(a, b): (&f32, &f32)| a == b || (a.is_nan() && b.is_nan());
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// A file of the cases that once failed, of those about pictures.
pub fn case_file(name: &str) -> PathBuf {
    root().join("tests/fixtures/cases/pictures").join(name)
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Folder of our golden cases.
fn own_goldens() -> PathBuf {
    root().join("tests/fixtures/goldens")
}

/// Folder of the golden cases.
pub fn goldens() -> PathBuf {
    std::env::var_os("PYROGRAPH_GOLDENS").map_or_else(own_goldens, PathBuf::from)
}

/// Folders of the golden cases whose names start with `prefix`; at least one. Of a kind that is not among others, they are ours.
pub fn cases(prefix: &str) -> Vec<PathBuf> {
    let within = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("a folder of golden cases");
        let paths = entries.map(|entry| entry.expect("a readable folder").path());
        let is_one = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        };
        paths.filter(is_one).collect()
    };
    let mut found = within(goldens());
    if found.is_empty() {
        found = within(own_goldens());
    }
    found.sort();
    assert!(!found.is_empty(), "no golden case {prefix}* in {}", goldens().display());
    found
}

/// What the command line calls the device under test.
pub fn device_name() -> String {
    std::env::var("PYROGRAPH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// The device under test.
pub fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE
        .get_or_init(|| {
            let choice: DeviceChoice = device_name().parse().expect("a device");
            let adapter = device::find(choice).expect("the device under test");
            device::open(adapter, Trust::FULL).expect("a driver that works").device
        })
        .clone()
}

/// How far the device under test may be from the references: `cpu` on the CPU, at least 1e-3 on a GPU.
pub fn tolerance(cpu: f64) -> f64 {
    match device_name().as_str() {
        "cpu" => cpu,
        _ => cpu.max(1e-3),
    }
}

/// What a folder holds; nothing where there is none yet.
pub fn files(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.expect("an entry").path())
}

/// The temporary, hidden name of a file that is being written, or was when its program was killed.
pub fn is_unfinished(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".writing-"))
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

    /// Dimensions of a tensor.
    pub fn rank(&self, name: &str) -> usize {
        self.0.tensors()[name].shape.len()
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

/// A model in a file or folder, with some of its settings changed.
pub fn open_changed(path: &Path, change: impl FnOnce(&mut ModelConfig)) -> Model {
    let mut recognised =
        model::recognise(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    change(&mut recognised.config);
    recognised.load(FloatDtype::F32, &device(), &mut |_| ()).expect("all tensors used")
}

/// The same bits.
pub fn identical<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> bool {
    a.into_data() == b.into_data()
}

/// The same pixels on the CPU. On a GPU the kernels chosen may differ from call to call, and so the
/// rounding.
pub fn assert_same_pixels(what: &str, a: &RgbImage, b: &RgbImage) {
    assert_eq!(a.dimensions(), b.dimensions(), "{what}");
    let allowed = if tolerance(0.0) == 0.0 { 0 } else { 2 };
    let apart = a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(apart.expect("pixels") <= allowed, "{what} differ by {apart:?}");
}

/// Fails where two networks differ in a bit of a parameter.
pub fn assert_same_parameters(what: &str, a: &Net, b: &Net) {
    let (a, b) = (params::values(a), params::values(b));
    assert!(!a.is_empty() && a.len() == b.len(), "{what}: {} and {} parameters", a.len(), b.len());
    assert!(a.into_iter().zip(b).all(|(a, b)| identical(a, b)), "{what}");
}

/// Writes five pictures of 8 x 8 for each of some classes, in a folder of each.
pub fn write_pictures(
    folder: &Path,
    classes: &[&str],
    pixel: impl Fn(usize, u32, [u32; 2]) -> [u8; 4],
) {
    for (class, name) in classes.iter().enumerate() {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).expect("created");
        for i in 0..5 {
            let picture = RgbaImage::from_fn(8, 8, |x, y| Rgba(pixel(class, i, [x, y])));
            picture.save(folder.join(format!("{i}.png"))).expect("written");
        }
    }
}

/// Trains until after a step, or to the end.
pub fn train_until(run: &mut Run, stop: Option<u64>) -> ControlFlow<()> {
    let flow = run.train(&mut |event| match event {
        Event::Step { step, .. } if Some(step) == stop => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    flow.expect("trains")
}

/// With the parameters that start as zero drawn at random.
pub fn opened<M: Module>(net: M) -> M {
    stirred(net, 0.5)
}

/// With random numbers of this standard deviation added to all parameters.
pub fn stirred<M: Module>(net: M, std: f32) -> M {
    struct Stir(Generator, f32);
    impl ModuleMapper for Stir {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|old| {
                let noise = TensorData::new(self.0.normal(old.shape().num_elements()), old.shape());
                old.clone() + Tensor::from_data(noise, &old.device()) * self.1
            })
        }
    }
    net.map(&mut Stir(Generator::new(7), std))
}

/// Means of the first five and of the last five losses that a run has logged.
pub fn first_and_last_loss(run: &Path) -> [f64; 2] {
    let log = std::fs::read_to_string(run.join("log.csv")).expect("a log");
    let loss = |line: &str| line.split(',').nth(1).expect("a loss").parse().expect("a number");
    let losses: Vec<f64> = log.lines().skip(1).map(loss).collect();
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    [mean(&losses[..5]), mean(&losses[losses.len() - 5..])]
}

/// Copies a folder with all that it holds.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("created");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let target = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy_folder(&path, &target),
            false => drop(std::fs::copy(path, target).expect("copied")),
        }
    }
}
