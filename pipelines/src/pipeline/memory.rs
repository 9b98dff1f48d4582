//! What a request takes in memory.

use pyrograph_engine::device::is_host;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::memory::{self, VALUE, product};
use crate::request::{MAX_IMAGES, Request};
use crate::settings::Settings;
use crate::task::Task;

/// Values per token and hidden channel that a block holds at once: the stream, three projections, the wider layer twice.
const BLOCK: u64 = 12;
/// Values per pixel and channel of the autoencoder's widest level that it holds at once.
const LEVEL: u64 = 3;
/// Values per channel of a pixel from the end of the network to the file.
const PIXEL: u64 = 4;

impl<T: Task> Pipeline<T> {
    /// Bytes of the CPU's memory that a request takes, beside the weights: about what was measured. It does not grow
    /// with the number of images, as [`Pipeline::each`] holds none.
    fn memory(&self, request: &Request<T::Prompt>, settings: &Settings) -> Result<u64> {
        let net = self.trunk();
        let batch = settings.batch.min(request.prompts.len());
        let [_, channels, height, width] = self.shape(batch, settings)?;
        let calls = match (&self.guide, settings.guidance.scale == 1.0) {
            (None, false) => 2,
            _ => 1,
        };
        let tokens = product(&[calls * batch, height / net.patch, width / net.patch]);
        let network = tokens.saturating_mul(BLOCK * VALUE * net.hidden as u64);
        let latents = product(&[batch, channels, height, width]).saturating_mul(PIXEL * VALUE);
        let Some(vae) = self.vae.as_ref().map(|vae| vae.config()) else {
            return Ok(network.saturating_add(latents));
        };
        let [high, wide] = [height, width].map(|side| side * self.factor());
        let tile = |side: usize| side.min(settings.vae_tile.saturating_mul(self.factor()));
        let level = |pixels: u64| pixels.saturating_mul(LEVEL * VALUE * vae.widths[0] as u64);
        let decoding = level(product(&[tile(high), tile(wide)]));
        let encoding = request.picture.as_ref().map_or(0, |_| level(product(&[high, wide])));
        let picture = product(&[3, high, wide]).saturating_mul(PIXEL * VALUE);
        // One after the other.
        let most = encoding.max(network).max(decoding.saturating_add(picture));
        Ok(most.saturating_add(latents))
    }

    /// Refuses a request that is plainly too large for this machine.
    pub(super) fn check_memory(
        &self,
        request: &Request<T::Prompt>,
        settings: &Settings,
    ) -> Result<()> {
        let images = request.prompts.len();
        if images > MAX_IMAGES {
            let (found, expected) = (images.to_string(), format!("up to {MAX_IMAGES}"));
            return Err(Error::Setting { what: "number of images", found, expected });
        }
        if !is_host(&self.device) {
            return Ok(());
        }
        let need = self.memory(request, settings)?;
        let [batch, _, height, width] = self.shape(settings.batch.min(images), settings)?;
        let [height, width] = [height, width].map(|side| side * self.factor());
        let what = match batch {
            1 => format!("an image of {width}x{height} takes"),
            batch => format!("{batch} images of {width}x{height} at once take"),
        };
        memory::check(what, need)
    }
}
