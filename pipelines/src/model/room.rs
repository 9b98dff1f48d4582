//! What a model takes in memory, and how much of it may.

use std::sync::Arc;

use burn::tensor::Device;
use pyrograph_engine::device::is_host;
use pyrograph_engine::nets::VaeConfig;

use super::WeightType;
use super::reader;
use super::recognised::Recognised;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::memory::{self, VALUE, Work};
use crate::request::VAE_TILE;

/// What of a model is not there for good, and what it leaves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Footprint {
    /// Weights that are read whenever they are needed.
    pub(crate) streams: Vec<Arc<Stream>>,
    /// Bytes that are left for the work, where the model may not take all that there is, and of what.
    pub(crate) left: Option<(u64, &'static str)>,
    /// Bytes that are left of the machine's memory that somebody allowed, beside a GPU that computes, too.
    pub(crate) allowed: Option<u64>,
}

impl Footprint {
    /// Why weights could not be read since this was asked last.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.streams.iter().find_map(|stream| stream.failure())
    }
}

/// How much memory a model may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Bytes of the machine's memory, for all weights and for the work on one image; without, all that there is.
    pub memory: Option<u64>,
    /// Bytes of a GPU's own memory; without, nobody knows, but a pipeline asks its adapter.
    pub card: Option<u64>,
    /// `[height, width]` of that image in pixels; without, the model's own.
    pub size: Option<[usize; 2]>,
}

/// Who has the memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Whose {
    Machine,
    /// As much of the machine's as somebody asked for.
    Asked,
    Gpu,
}

/// The memory for a model, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// What the model and its work may take, and who says so; `None` where nobody knows.
    limit: Option<(u64, &'static str)>,
    whose: Whose,
    /// What is taken for good beside the weights of the transformer.
    beside: u64,
    /// What is taken while it works.
    work: u64,
}

impl Room {
    /// The machine's, for weights beside a GPU that computes: little else is there.
    pub(super) fn of_machine(limits: Limits) -> Self {
        let asked = limits.memory.map(|memory| (memory, "what the model may take"));
        let whose = if asked.is_some() { Whose::Asked } else { Whose::Machine };
        Self { limit: asked.or_else(memory::available), whose, beside: 0, work: 0 }
    }

    /// Where a model is to compute, whose text encoders [round](super::TextReader::open) or not.
    pub(super) fn of(model: &Recognised, limits: Limits, rounds: bool, device: &Device) -> Self {
        let room = match is_host(device) {
            true => Self::of_machine(limits),
            false => {
                let limit = limits.card.map(|bytes| (bytes, "the GPU"));
                Self { limit, whose: Whose::Gpu, beside: 0, work: 0 }
            }
        };
        let size = limits.size;
        let Recognised { config, vae, text, clips, .. } = model;
        let (net, autoencoder) = (&config.net.dit, config.vae.as_ref());
        let factor = autoencoder.map_or(1, VaeConfig::factor);
        let own = net.size.map(|side| side * factor);
        // Without a limit, images that are too large are for the request to refuse.
        let size = match size {
            Some([height, width]) if room.whose == Whose::Asked => [height, width],
            Some([height, width]) => [height.min(own[0]), width.min(own[1])],
            None => own,
        };
        let mut work = Work {
            net,
            vae: autoencoder,
            images: 1,
            calls: if config.defaults.cfg_scale == 1.0 { 1 } else { 2 },
            size,
            tile: VAE_TILE,
            picture: false,
        }
        .bytes();
        let mut beside = vae.as_ref().map_or(0, |vae| VALUE * vae.checkpoint.elements() as u64);
        for text in text.iter().chain(clips) {
            let [for_good, meanwhile] = reader::need(&text.encoder, rounds);
            (beside, work) = (beside.saturating_add(for_good), work.max(meanwhile));
        }
        Self { beside, work, ..room }
    }

    /// What is left for the transformer's weights.
    pub(super) fn left(&self) -> Option<u64> {
        let (limit, _) = self.limit?;
        Some(limit.saturating_sub(self.beside.saturating_add(self.work)))
    }

    /// Bytes in all with so many of weights.
    fn need(&self, weights: u64) -> u64 {
        weights.saturating_add(self.beside).saturating_add(self.work)
    }

    /// Refuses weights of so many bytes that do not fit.
    pub(super) fn check(&self, held: WeightType, weights: u64) -> Result<()> {
        let need = self.need(weights);
        match self.limit {
            Some((available, limit)) if need > available => {
                Err(Error::NoRoom { held, need, limit, available })
            }
            _ => Ok(()),
        }
    }

    /// What weights that are in memory leave, beside others that are not; `notify` hears of it if it is worth saying.
    pub(super) fn footprint(
        &self,
        weights: u64,
        streamed: u64,
        notify: &mut dyn FnMut(Notice),
    ) -> Footprint {
        /// What need not be said, in bytes.
        const LITTLE: u64 = 1_000_000_000;
        let need = self.need(weights);
        if need > LITTLE || self.whose == Whose::Asked || streamed > 0 {
            notify(Notice::Memory { need, streamed, gpu: self.whose == Whose::Gpu });
        }
        let left = self.leaves(weights);
        let allowed = left.filter(|_| self.whose == Whose::Asked).map(|(bytes, _)| bytes);
        Footprint { streams: Vec::new(), left, allowed }
    }

    /// What weights leave for the work, where the model may not take all that there is, and of what.
    pub(super) fn leaves(&self, weights: u64) -> Option<(u64, &'static str)> {
        let of = match self.whose {
            Whose::Machine => return None,
            Whose::Asked => "what the weights leave of the memory that the model may take",
            Whose::Gpu => "what the weights leave of the GPU's memory",
        };
        let (limit, _) = self.limit?;
        Some((limit.saturating_sub(weights + self.beside), of))
    }
}
