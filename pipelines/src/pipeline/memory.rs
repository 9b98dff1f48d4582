//! What a request takes in memory.

use pyrograph_engine::device::is_host;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::memory::{self, VALUE, product};
use crate::request::{MAX_IMAGES, Request};
use crate::settings::Settings;
use crate::task::Task;

/// Values per channel of a pixel from the end of the network to the file.
const PIXEL: u64 = 4;

impl<T: Task> Pipeline<T> {
    /// Bytes of the CPU's memory that a request takes, beside the weights: about what was measured. It does not grow
    /// with the number of images, as [`Pipeline::each`] holds none.
    fn memory(&self, request: &Request<T::Prompt>, settings: &Settings) -> Result<u64> {
        let net = self.trunk();
        let batch = settings.batch.min(request.prompts.len());
        let [_, channels, height, width] = self.shape(batch, settings)?;
        let scales = settings.guidance.scales();
        let calls = match (&self.guide, scales == [1.0]) {
            (None, false) => scales.len() + 1,
            _ => 1,
        };
        let network = memory::network(net, calls * batch, [height, width]);
        let latents = product(&[batch, channels, height, width]).saturating_mul(PIXEL * VALUE);
        let Some(vae) = self.vae.as_ref().map(|vae| vae.config()) else {
            return Ok(network.saturating_add(latents));
        };
        let [high, wide] = [height, width].map(|side| side * self.factor());
        let tile = |side: usize| side.min(settings.vae_tile.saturating_mul(self.factor()));
        let decoding = memory::autoencoder(vae, 1, [tile(high), tile(wide)]);
        let picture = request.picture.as_ref();
        let encoding = picture.map_or(0, |_| memory::autoencoder(vae, 1, [high, wide]));
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
        let size = [height, width].map(|side| side * self.factor());
        memory::check(memory::of_images(batch, size), need)
    }
}
