//! How good pictures are: distances between two sets of images in the features of a network.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::module::interpolate;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, TensorData};
use image::RgbImage;
use pyrograph_engine::metrics::{self, Coverage, Estimate, Features};
use pyrograph_engine::nets::{
    EfficientNetLite0, FoldedEfficientNet, FoldedInception, INCEPTION_SIDE, Inception,
};
use pyrograph_engine::read;
use pyrograph_weights::{
    Checkpoint, FloatDtype, Layout, Rule, Transform, convert, write_safetensors,
};
use rayon::prelude::*;
use serde::Serialize;

use crate::data::Dataset;
use crate::error::words::counted;
use crate::error::{Error, Result};
use crate::image::{rgb_tensor, stretched, to_images};
use crate::memory::{self, product};

/// Side to which images are resized for EfficientNet-Lite0.
const SIDE: u32 = 128;
/// Bytes per pixel of an image on its way to the network: three values twice, and three bytes.
const PIXEL: u64 = 27;
/// Neighbours that make a neighbourhood for precision and recall.
const NEIGHBOURS: usize = 3;
/// A generated image nearer to the reference than all but this share of the reference's own different images are
/// to each other counts as a copy.
const COPY_QUANTILE: f64 = 0.01;

/// A network that turns images into features.
#[derive(Debug)]
pub struct FeatureNet {
    net: Net,
    fingerprint: String,
    device: Device,
}

#[derive(Debug)]
enum Net {
    EfficientNetLite0(Box<FoldedEfficientNet>),
    Inception(FoldedInception),
}

/// What two sets of images are compared by.
#[derive(Debug, Clone, Serialize)]
pub struct Scores {
    /// Generated images.
    pub images: usize,
    /// Reference images.
    pub reference: usize,
    /// Fréchet distance, with the half-width of its 95 % interval.
    #[serde(skip)]
    pub frechet: Estimate,
    /// Kernel distance (squared MMD).
    #[serde(skip)]
    pub kernel: Estimate,
    /// Precision, recall, density, coverage.
    #[serde(flatten)]
    pub coverage: Coverage,
    /// Share of images that are the same as one of the reference, or nearer to it than its own images are to
    /// each other, but for duplicates and the nearest 1 % of the others.
    pub copies: f64,
}

impl FeatureNet {
    /// Opens the weights of EfficientNet-Lite0, or those of Inception-v3 that PyTorch's measures of the
    /// Fréchet inception distance share (`pt_inception-2015-12-05`).
    ///
    /// # Errors
    /// A file of anything else.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let is_inception = checkpoint.tensors().keys().any(|name| name.starts_with("Mixed_"));
        let net = match is_inception {
            true => {
                let fresh = Inception::new(device);
                Net::Inception(load(fresh, &checkpoint, &inception_layout(), device)?.folded())
            }
            false => Net::EfficientNetLite0(Box::new(efficient_net(&checkpoint, device)?)),
        };
        Ok(Self { net, fingerprint: checkpoint.fingerprint(), device: device.clone() })
    }

    /// Of its weights, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What the Fréchet and the kernel distance in its features are called.
    pub fn distances(&self) -> [&'static str; 2] {
        match self.net {
            Net::EfficientNetLite0(_) => ["fd_efflite0", "kid_efflite0"],
            Net::Inception(_) => ["fid", "kid"],
        }
    }

    /// Images per call of the network, and calls side by side.
    fn batch(&self) -> usize {
        match self.net {
            Net::EfficientNetLite0(_) => 16,
            Net::Inception(_) => 4,
        }
    }

    /// Features of images of one size, one row each.
    ///
    /// # Errors
    /// A GPU that failed.
    pub fn rows(&self, images: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        let of = |images: &[RgbImage]| -> Result<Vec<Vec<f32>>> {
            let features = match &self.net {
                Net::EfficientNetLite0(net) => {
                    let resized = |image: &RgbImage| stretched(image, SIDE, SIDE);
                    let resized: Vec<RgbImage> = images.iter().map(resized).collect();
                    net.forward(rgb_tensor(&resized, &self.device))
                }
                Net::Inception(net) => {
                    // Between the four nearest pixels, as the published numbers were made.
                    let options = InterpolateOptions::new(InterpolateMode::Bilinear)
                        .with_align_corners(false)
                        .with_output_size([INCEPTION_SIDE; 2]);
                    net.forward(interpolate(rgb_tensor(images, &self.device), options))
                }
            };
            let features = read::numbers(features)?;
            Ok(features.chunks(features.len() / images.len()).map(<[f32]>::to_vec).collect())
        };
        let parts: Result<Vec<_>> = match pyrograph_engine::device::is_host(&self.device) {
            true => images.par_chunks(self.batch()).map(of).collect(),
            false => images.chunks(self.batch()).map(of).collect(),
        };
        Ok(parts?.into_iter().flatten().collect())
    }

    /// Features of a dataset; kept in a file of `cache`, if there is one, for the next time. `on_image` hears of the
    /// number of images done.
    ///
    /// # Errors
    /// A cache that cannot be read or written; more memory than there is; [`Error::Cancelled`] if `on_image` breaks.
    pub fn dataset(
        &self,
        data: &Dataset,
        cache: Option<&Path>,
        on_image: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let name = |folder: &Path| -> PathBuf {
            let net: String = self.fingerprint.chars().take(12).collect();
            folder.join(format!("{net}-{}.safetensors", data.fingerprint()))
        };
        if let Some(path) = cache.map(name).filter(|path| path.is_file()) {
            let (values, shape) = Checkpoint::open(&path)?.read_f32("features")?;
            return match shape[..] {
                [count, width] if count == data.len() && width > 0 => {
                    Ok(values.chunks(width).map(<[f32]>::to_vec).collect())
                }
                _ => {
                    let (path, count) = (path.display(), data.len());
                    let reason = format!("{path}: features of shape {shape:?} for {count} images");
                    Err(Error::Eval { reason })
                }
            };
        }
        let at_once = (self.batch() * rayon::current_num_threads()).min(data.len());
        let [height, width] = data.size();
        let what =
            format!("judging {} of {width}x{height} at once takes", counted(at_once, "image"));
        memory::check(what, product(&[at_once, height, width]).saturating_mul(PIXEL))?;
        let mut rows = Vec::with_capacity(data.len());
        let indices: Vec<usize> = (0..data.len()).collect();
        for indices in indices.chunks(at_once) {
            rows.extend(self.rows(&pictures(data, indices, &self.device)?)?);
            if on_image(rows.len()).is_break() {
                return Err(Error::Cancelled);
            }
        }
        if let Some(folder) = cache {
            std::fs::create_dir_all(folder)
                .map_err(|source| Error::File { path: folder.to_owned(), source })?;
            let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
            let tensor = TensorData::new(rows.concat(), shape);
            let tensors = [("features".to_owned(), tensor)];
            write_safetensors(&name(folder), &tensors, &Default::default())?;
        }
        Ok(rows)
    }
}

/// Pictures of a dataset, as training sees them, on the first background.
///
/// # Errors
/// None that an opened dataset can cause.
pub fn pictures(data: &Dataset, indices: &[usize], device: &Device) -> Result<Vec<RgbImage>> {
    let count = indices.len();
    to_images(data.pixels(indices, &vec![false; count], &vec![0; count], device))
}

/// EfficientNet-Lite0 with the weights of a file.
///
/// # Errors
/// A file of anything else.
pub(crate) fn efficient_net(file: &Checkpoint, device: &Device) -> Result<FoldedEfficientNet> {
    let (fresh, layout) = (EfficientNetLite0::new(device), convert::efficientnet_lite());
    Ok(load(fresh, file, &layout, device)?.folded())
}

fn load<M: Module>(net: M, file: &Checkpoint, layout: &Layout, device: &Device) -> Result<M> {
    Ok(pyrograph_weights::load(net, file, layout, FloatDtype::F32, device)?.0)
}

/// PyTorch's names; the classifiers are left out.
fn inception_layout() -> Layout {
    let parts = [
        ("conv", "conv.weight"),
        ("gain", "bn.weight"),
        ("bias", "bn.bias"),
        ("mean", "bn.running_mean"),
        ("variance", "bn.running_var"),
    ];
    let rules = Inception::names().into_iter().enumerate().flat_map(|(i, name)| {
        parts.map(|(ours, theirs)| {
            Rule::new(&format!("units.{i}.{ours}"), &format!("{name}.{theirs}"), Transform::Copy)
        })
    });
    let unused = [
        "fc.weight",
        "fc.bias",
        "*.bn.num_batches_tracked",
        "*.*.bn.num_batches_tracked",
        "AuxLogits.*.*",
        "AuxLogits.*.*.*",
    ];
    Layout::new("Inception-v3", rules.collect(), unused.to_vec())
}

/// The reference image nearest to each generated one, and their distance, nearest first.
pub type Nearest = Vec<(usize, usize, f64)>;

/// Compares generated images with reference ones, by their features; intervals are from `resamples` random
/// parts of both.
///
/// # Errors
/// Fewer than two images of either kind, or features of different widths or that are not finite.
pub fn compare(
    reference: &[Vec<f32>],
    generated: &[Vec<f32>],
    resamples: usize,
) -> Result<(Scores, Nearest)> {
    let features = |rows: &[Vec<f32>], what: &str| {
        let reason = match rows.len() {
            count @ ..2 => format!("{count} {what} images, expected at least 2"),
            count => format!("the features of {count} {what} images are not all finite"),
        };
        Features::new(rows).ok_or(Error::Eval { reason })
    };
    let reference = features(reference, "reference")?;
    let generated = features(generated, "generated")?;
    let widths = [reference.width(), generated.width()];
    if widths[0] != widths[1] {
        let [real, made] = widths;
        let reason = format!("{made} features of each generated image, of the reference {real}");
        return Err(Error::Eval { reason });
    }
    let found = metrics::nearest(&generated, &reference);
    let mut own = metrics::nearest_others(&reference);
    own.retain(|distance| *distance > 0.0);
    own.sort_by(f64::total_cmp);
    let close = own.get((own.len() as f64 * COPY_QUANTILE) as usize);
    let is_copy = |distance: f64| distance == 0.0 || close.is_some_and(|close| distance < *close);
    let copies = found.iter().filter(|(_, distance)| is_copy(*distance)).count();
    let scores = Scores {
        images: generated.count(),
        reference: reference.count(),
        frechet: metrics::frechet(&reference, &generated, resamples, 0)?,
        kernel: metrics::kernel(&reference, &generated, resamples, 0),
        coverage: metrics::coverage(&reference, &generated, NEIGHBOURS),
        copies: copies as f64 / generated.count() as f64,
    };
    let mut nearest: Nearest =
        found.into_iter().enumerate().map(|(i, (j, distance))| (i, j, distance)).collect();
    nearest.sort_by(|a, b| a.2.total_cmp(&b.2));
    Ok((scores, nearest))
}
