//! Noise for batches of images.

use burn::tensor::{Device, Tensor, TensorData};

use crate::random::Generator;

/// Noise for a batch of images, one stream per image: image `i` has seed `seed + i`, whatever the batch.
#[derive(Debug, Clone)]
pub enum NoiseSource {
    /// A stream per image.
    Streams(Vec<Generator>),
    /// Prescribed draws, in order, each `[images, channels, height, width]`.
    Given(std::collections::VecDeque<Tensor<4>>),
}

impl NoiseSource {
    /// Streams for `images` images.
    pub fn new(seed: u64, images: usize) -> Self {
        let stream = |i: usize| Generator::new(seed.wrapping_add(i as u64));
        Self::Streams((0..images).map(stream).collect())
    }

    /// The next values of each image's stream, `[images, channels, height, width]` for a shape of
    /// `[channels, height, width]`.
    ///
    /// # Panics
    /// If prescribed draws run out or have another shape.
    pub fn draw(&mut self, [channels, height, width]: [usize; 3], device: &Device) -> Tensor<4> {
        match self {
            NoiseSource::Streams(streams) => {
                let shape = [streams.len(), channels, height, width];
                let count = channels * height * width;
                let values: Vec<f32> = streams.iter_mut().flat_map(|s| s.normal(count)).collect();
                Tensor::from_data(TensorData::new(values, shape), device)
            }
            NoiseSource::Given(draws) => {
                let noise = draws.pop_front().expect("one prescribed draw per stochastic step");
                assert_eq!(noise.dims()[1..], [channels, height, width]);
                noise
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        let device = Device::flex();
        let draw = |seed, images| {
            let mut source = NoiseSource::new(seed, images);
            source.draw([3, 4, 4], &device);
            source.draw([3, 4, 4], &device)
        };
        let third = draw(7, 3).narrow(0, 2, 1);
        assert!(third.equal(draw(9, 1)).all().into_scalar::<bool>());
    }
}
