//! Adapters on the network of a pipeline.

use std::path::Path;

use super::Pipeline;
use crate::adapter::{Adapter, AdapterId, PutOn};
use crate::error::Result;
use crate::hooks::Notice;
use crate::task::Task;

/// A pipeline that several threads share cannot change. A clone can, and costs next to nothing, as the two share all
/// weights: one for each set of adapters is the way to serve several at the same time.
///
/// ```no_run
/// use pyrograph::{ClassPipeline, OpenOptions};
///
/// let plain = ClassPipeline::open("emoji-class", &OpenOptions::default())?;
/// let mut styled = plain.clone();
/// let adapter = styled.adapter("ink.safetensors", None, &mut |notice| eprintln!("{notice}"))?;
/// let id = styled.put_on(adapter, 0.8)?;
/// styled.set_weight(id, 0.5)?;
/// styled.take_off(id)?;
/// # Ok::<(), pyrograph::Error>(())
/// ```
impl<T: Task> Pipeline<T> {
    /// Reads a LoRA for the network; see [`Adapter::open`]. It is not put on yet.
    ///
    /// # Errors
    /// As there; an adapter of a person that was made for another model.
    pub fn adapter(
        &self,
        path: impl AsRef<Path>,
        alpha: Option<f64>,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Adapter> {
        let adapter = Adapter::open(path.as_ref(), &self.net, alpha, &self.device, notify)?;
        adapter.check_base(&self.origin.weights)?;
        Ok(adapter)
    }

    /// Puts an adapter on the network, beside those that are on; a guide model has none.
    ///
    /// # Errors
    /// A weight that is not finite, and an adapter that was read for another network.
    pub fn put_on(&mut self, adapter: Adapter, weight: f64) -> Result<AdapterId> {
        self.adapters.put_on(&mut self.net, adapter, weight)
    }

    /// Changes the weight of an adapter; 0 is as if it were off.
    ///
    /// # Errors
    /// An adapter that is not on, a weight that is not finite.
    pub fn set_weight(&mut self, id: AdapterId, weight: f64) -> Result<()> {
        self.adapters.set_weight(&mut self.net, id, weight)
    }

    /// Takes an adapter off; with none left on, images are what they were, bit for bit.
    ///
    /// # Errors
    /// An adapter that is not on.
    pub fn take_off(&mut self, id: AdapterId) -> Result<Adapter> {
        self.adapters.take_off(&mut self.net, id)
    }

    /// The adapters that are on.
    pub fn adapters(&self) -> &[PutOn] {
        self.adapters.list()
    }
}
