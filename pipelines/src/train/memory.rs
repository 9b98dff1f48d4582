//! What training takes in memory.

use burn::tensor::Device;
use pyrograph_engine::device::is_host;
use pyrograph_engine::nets::DitConfig;

use super::TrainConfig;
use crate::error::Result;
use crate::memory::{self, VALUE, product};

/// Copies of the weights: themselves, their gradients and two moments.
const COPIES: u64 = 4;
/// Values per token, hidden channel and block that wait for the backward pass, at the least: the stream, three
/// projections, the wider layer twice.
const WAITING: u64 = 12;
/// Values per channel of a pixel: the image, its noise, their mixture and the output.
const PIXEL: u64 = 4;

impl TrainConfig {
    /// Refuses, before anything is taken, a network or a batch that is plainly too large for the CPU's memory.
    ///
    /// # Errors
    /// [`Error::TooMuch`](crate::Error::TooMuch).
    pub fn check_memory(&self, net: &DitConfig, device: &Device) -> Result<()> {
        if !is_host(device) {
            return Ok(());
        }
        let bytes = |factors: &[usize]| product(factors).saturating_mul(VALUE);
        let [height, width] = net.size;
        let images = self.batch / self.micro_batches;
        let tokens = [height / net.patch, width / net.patch, net.hidden];
        let averages = self.averages.len() as u64;
        let weights = bytes(&[net.parameters()]).saturating_mul(COPIES + averages);
        let positions = bytes(&tokens);
        let waiting = bytes(&[&tokens[..], &[images, net.depth]].concat()).saturating_mul(WAITING);
        let pixels = bytes(&[images, net.channels, height, width]).saturating_mul(PIXEL);
        let need = [positions, waiting, pixels]
            .iter()
            .fold(weights, |sum, part| sum.saturating_add(*part));
        let what = format!(
            "training of width {} and depth {} on {images} images of {width}x{height} at once takes",
            net.hidden, net.depth
        );
        memory::check(what, need)
    }
}
