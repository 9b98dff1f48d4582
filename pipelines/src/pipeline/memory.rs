//! What a request takes in memory.

use pyrograph_engine::device::is_host;
use pyrograph_engine::nets::Vae;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::memory::{self, Work};
use crate::request::{MAX_IMAGES, Request};
use crate::settings::Settings;
use crate::task::Task;

impl<T: Task> Pipeline<T> {
    /// Bytes of the device's memory that a request takes, beside the weights. It does not grow with the number of
    /// images, as [`Pipeline::each`] holds none.
    fn memory(&self, request: &Request<T::Prompt>, settings: &Settings) -> Result<u64> {
        let images = settings.batch.min(request.prompts.len());
        let [_, _, height, width] = self.shape(images, settings)?;
        let scales = settings.guidance.scales();
        let calls = match (&self.guide, scales == [1.0]) {
            (None, false) => scales.len() + 1,
            _ => 1,
        };
        let work = Work {
            net: self.trunk(),
            vae: self.vae.as_ref().map(Vae::config),
            images,
            calls,
            size: [height, width].map(|side| side * self.factor()),
            tile: settings.vae_tile,
            picture: request.picture.is_some(),
        };
        Ok(work.bytes())
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
        let need = self.memory(request, settings)?;
        let [batch, _, height, width] = self.shape(settings.batch.min(images), settings)?;
        let size = [height, width].map(|side| side * self.factor());
        let what = memory::of_images(batch, size);
        match self.footprint.left {
            Some((available, limit)) if need > available => {
                Err(Error::TooMuch { what, need, limit, available })
            }
            _ if is_host(&self.device) => memory::check(what, need),
            _ => Ok(()),
        }
    }
}
