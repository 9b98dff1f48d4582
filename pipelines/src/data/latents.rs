//! Latents of the training images, encoded once and kept on disk.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pyrograph_engine::nets::Vae;
use pyrograph_engine::random::Generator;
use pyrograph_engine::read;
use pyrograph_weights::{Checkpoint, write_safetensors};

use super::pixels::Pixels;
use crate::error::{Error, Result};
use crate::model::open_autoencoder;

/// Images encoded at a time.
const BATCH: usize = 8;
/// Name of the file in the folder of a run.
const FILE: &str = "latents.safetensors";
/// Key of what the latents were made from.
const ORIGIN_KEY: &str = "origin";

/// An autoencoder that makes latents.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    pub(crate) vae: Vae,
    /// Of its weights, or of a model that it is part of.
    pub(crate) fingerprint: String,
}

impl Encoder {
    /// The autoencoder of a model.
    ///
    /// # Errors
    /// No model, or one without an autoencoder.
    pub(crate) fn open(path: &Path, device: &Device) -> Result<Self> {
        let (vae, fingerprint) = open_autoencoder(path, device)?;
        Ok(Self { vae, fingerprint })
    }
}

/// Posteriors of all images, and behind them those of the mirrored images if the run mirrors.
#[derive(Debug, Clone)]
pub(super) struct Latents {
    vae: Vae,
    /// `[channels, height, width]`.
    shape: [usize; 3],
    mean: Vec<f32>,
    deviation: Vec<f32>,
    /// Distance from an image to its mirrored copy; 0 without.
    mirrored: usize,
}

impl Latents {
    /// Reads the latents of a run, or encodes them if there are none of these images and this autoencoder.
    ///
    /// # Errors
    /// Latents of another shape, or a file that cannot be read or written.
    pub(super) fn open(
        folder: &Path,
        images: &Pixels,
        encoder: Encoder,
        flip: bool,
        device: &Device,
    ) -> Result<Self> {
        let Encoder { vae, fingerprint } = encoder;
        let path = folder.join(FILE);
        let origin = format!("{fingerprint} {} {flip}", images.fingerprint());
        let known = path.is_file().then(|| Checkpoint::open(&path)).transpose();
        // A file that cannot be read is as good as none: it is made again.
        let known = known.ok().flatten().filter(|file| file.verify().is_ok());
        if let Some(file) = known.filter(|file| file.metadata().get(ORIGIN_KEY) == Some(&origin)) {
            return Self::read(vae, &file, images.len(), flip);
        }
        let (mut mean, mut deviation) = (Vec::new(), Vec::new());
        let all: Vec<usize> = (0..images.len()).collect();
        for flipped in [false, true].into_iter().take(1 + usize::from(flip)) {
            for indices in all.chunks(BATCH) {
                let (flips, colours) = (vec![flipped; indices.len()], vec![0; indices.len()]);
                let pixels = images.batch(indices, &flips, &colours, device);
                let posterior = vae.encode(pixels);
                mean.push(posterior.mean.clone());
                deviation.push(posterior.deviation());
            }
        }
        let half = |parts| {
            read::data(Tensor::cat(parts, 0)).map(|values| values.convert_dtype(DType::F16))
        };
        let tensors: [(String, TensorData); 2] =
            [("mean".into(), half(mean)?), ("deviation".into(), half(deviation)?)];
        let metadata = BTreeMap::from([(ORIGIN_KEY.to_owned(), origin)]);
        write_safetensors(&path, &tensors, &metadata)?;
        Self::read(vae, &Checkpoint::open(&path)?, images.len(), flip)
    }

    fn read(vae: Vae, file: &Checkpoint, images: usize, flip: bool) -> Result<Self> {
        let (mean, shape) = file.read_f32("mean")?;
        let (deviation, other) = file.read_f32("deviation")?;
        let rows = images * (1 + usize::from(flip));
        match shape.as_slice() {
            &[found, channels, height, width] if found == rows && shape == other => Ok(Self {
                vae,
                shape: [channels, height, width],
                mean,
                deviation,
                mirrored: if flip { images } else { 0 },
            }),
            _ => Err(Error::Dataset {
                path: file.path().to_owned(),
                reason: format!("latents of shape {shape:?} and {other:?}, expected {rows} rows"),
            }),
        }
    }

    /// Samples of the posteriors of a batch, scaled for the network, `[batch, channels, height, width]`.
    pub(super) fn batch(
        &self,
        indices: &[usize],
        flips: &[bool],
        random: &mut Generator,
        device: &Device,
    ) -> Tensor<4> {
        let size: usize = self.shape.iter().product();
        let mut values = Vec::with_capacity(indices.len() * size);
        for (&index, &flip) in indices.iter().zip(flips) {
            let start = (index + if flip { self.mirrored } else { 0 }) * size;
            let z = random.normal(size);
            let parts = self.mean[start..].iter().zip(&self.deviation[start..]).zip(z);
            values.extend(parts.map(|((mean, deviation), z)| mean + deviation * z));
        }
        let [channels, height, width] = self.shape;
        let shape = [indices.len(), channels, height, width];
        self.vae.scale(Tensor::from_data(TensorData::new(values, shape), device))
    }
}
