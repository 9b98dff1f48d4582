//! Low-rank adapters that are put on a network at run time (LoRA, Hu et al. 2022).

mod tuned;

use std::collections::BTreeMap;

pub use tuned::Tuned;

use burn::tensor::Tensor;

use super::{Dit, DitBlock, Embedder, Head, Mode, Net, Student, TextBlock};
use crate::error::{Error, Result};
use crate::layers::{Attention, Dense, LowRank, Mlp, Modulation};

/// Low-rank terms for the linear layers of a network.
#[derive(Debug, Clone, Default)]
pub struct Adapter {
    /// By the layer's name, as in [`Adaptable::linear_layers`].
    pub terms: BTreeMap<String, Vec<LowRank>>,
    /// For [`Conditioning::token`](super::Conditioning::token), `[1, hidden]`; it acts where that is set to it.
    pub token: Option<Tensor<2>>,
}

/// A network on which adapters can be put.
pub trait Adaptable {
    /// Its linear layers, each named like its weight without `.weight`: `blocks.3.attention.qkv`.
    fn linear_layers(&mut self) -> Vec<(String, &mut Dense)>;

    /// Names of the linear layers, with their inputs and outputs.
    fn layer_widths(&self) -> Vec<(String, [usize; 2])>
    where
        Self: Clone,
    {
        let mut copy = self.clone();
        copy.linear_layers().into_iter().map(|(name, layer)| (name, layer.widths())).collect()
    }

    /// Whether all weights are there as they are, so that the network can be saved: none was packed, or is compressed.
    fn is_plain(&self) -> bool
    where
        Self: Clone,
    {
        self.clone().linear_layers().iter().all(|(_, layer)| layer.is_plain())
    }

    /// Puts on these adapters, each times a factor, in place of those that were on.
    ///
    /// With no adapters, and with factors of 0, the output is that of the bare network, bit for bit. Weights
    /// are not touched, so that copies of a network with other adapters share them, and it may be
    /// [folded](Dit::folded) before or after. See [`Dense::put_on`] for what a layer computes.
    ///
    /// # Errors
    /// A layer that the network does not have, or has in another shape; nothing has changed then.
    fn put_on(&mut self, adapters: &[(&Adapter, f64)]) -> Result<()> {
        let mut layers: BTreeMap<String, &mut Dense> = self.linear_layers().into_iter().collect();
        for (name, terms) in adapters.iter().flat_map(|(adapter, _)| &adapter.terms) {
            let layer = layers.get(name).ok_or_else(|| Error::NoLayer { name: name.clone() })?;
            let widths = layer.widths();
            if let Some(LowRank { down, up, start }) = terms.iter().find(|term| !term.fits(widths))
            {
                let (name, down, up) = (name.clone(), down.dims(), up.dims());
                return Err(Error::LowRank { name, widths, down, up, start: *start });
            }
        }
        for (name, layer) in &mut layers {
            let on = adapters.iter().filter(|(_, factor)| *factor != 0.0);
            let terms = on.flat_map(|(adapter, factor)| {
                let terms = adapter.terms.get(name).into_iter().flatten();
                terms.map(|term| term.scaled(*factor))
            });
            layer.put_on(&terms.collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Adds adapters, each times a factor, to the weights themselves: the output is that of the network with them
    /// [put on](Adaptable::put_on), to rounding, in place of those that were on.
    ///
    /// # Errors
    /// Those of [`Adaptable::put_on`], and a layer whose weight is normalised when it is used or packed already; nothing
    /// has changed then.
    fn merge(&mut self, adapters: &[(&Adapter, f64)]) -> Result<()> {
        let changed = || adapters.iter().flat_map(|(adapter, _)| adapter.terms.keys());
        for (name, layer) in self.linear_layers() {
            if changed().any(|changed| *changed == name) && !layer.merges() {
                return Err(Error::NotMerged { name });
            }
        }
        self.put_on(adapters)?;
        self.linear_layers().into_iter().for_each(|(_, layer)| layer.merge());
        Ok(())
    }
}

impl Adaptable for Dit {
    fn linear_layers(&mut self) -> Vec<(String, &mut Dense)> {
        let Dit { patch, embedder, blocks, head, modes, caption, refiners, .. } = self;
        let (single, common, widen) = (&mut self.single, &mut self.common, &mut self.widen);
        let mut layers = Layers::default();
        layers.add("patch", patch);
        if let Some(widen) = widen {
            layers.add("widen", widen);
        }
        layers.embedder("embedder", embedder);
        layers.blocks("blocks", blocks);
        if let Some(refiners) = refiners {
            layers.blocks("refiners.image", &mut refiners.image);
            layers.blocks("refiners.text", &mut refiners.text);
        }
        layers.head("head", head);
        modes.iter_mut().enumerate().for_each(|(i, mode)| layers.mode(i, mode));
        if let Some(caption) = caption {
            layers.add("caption.up", &mut caption.up);
            if let Some(down) = &mut caption.down {
                layers.add("caption.down", down);
            }
        }
        if let Some(single) = single {
            layers.add("single", single);
        }
        if let Some(common) = common {
            layers.add("common.text", &mut common.text);
            layers.add("common.shared", &mut common.shared);
        }
        layers.0
    }
}

impl Adaptable for Student {
    fn linear_layers(&mut self) -> Vec<(String, &mut Dense)> {
        let mut layers = Layers(self.trunk.linear_layers());
        for (i, head) in self.later_heads.iter_mut().enumerate() {
            layers.head(&format!("later_heads.{i}"), head);
        }
        layers.0
    }
}

impl Adaptable for Net {
    fn linear_layers(&mut self) -> Vec<(String, &mut Dense)> {
        match self {
            Self::Dit(net) => net.linear_layers(),
            Self::Student(net) => net.linear_layers(),
        }
    }
}

impl Adaptable for TextBlock {
    fn linear_layers(&mut self) -> Vec<(String, &mut Dense)> {
        let TextBlock { attention, up, gate, down, .. } = self;
        let mut layers = Layers::default();
        layers.attention("attention", attention);
        layers.add("up", up);
        if let Some(gate) = gate {
            layers.add("gate", gate);
        }
        layers.add("down", down);
        layers.0
    }
}

/// Layers found so far.
#[derive(Default)]
struct Layers<'a>(Vec<(String, &'a mut Dense)>);

impl<'a> Layers<'a> {
    fn add(&mut self, name: &str, layer: &'a mut Dense) {
        self.0.push((name.to_owned(), layer));
    }

    fn mlp(&mut self, name: &str, mlp: &'a mut Mlp) {
        self.add(&format!("{name}.up"), &mut mlp.up);
        self.add(&format!("{name}.down"), &mut mlp.down);
    }

    fn attention(&mut self, name: &str, attention: &'a mut Attention) {
        self.add(&format!("{name}.qkv"), &mut attention.qkv);
        if let Some(out) = &mut attention.out {
            self.add(&format!("{name}.out"), out);
        }
    }

    fn modulation(&mut self, name: &str, modulation: &'a mut Modulation) {
        if let Some(dense) = &mut modulation.dense {
            self.add(&format!("{name}.dense"), dense);
        }
    }

    fn embedder(&mut self, name: &str, embedder: &'a mut Embedder) {
        self.mlp(&format!("{name}.time.mlp"), &mut embedder.time.mlp);
        if let Some(pooled) = &mut embedder.pooled {
            self.mlp(&format!("{name}.pooled"), pooled);
        }
        if let Some(size) = &mut embedder.size {
            self.mlp(&format!("{name}.size.side.mlp"), &mut size.side.mlp);
            self.mlp(&format!("{name}.size.ratio.mlp"), &mut size.ratio.mlp);
        }
    }

    fn blocks(&mut self, name: &str, blocks: &'a mut [DitBlock]) {
        for (i, block) in blocks.iter_mut().enumerate() {
            self.block(&format!("{name}.{i}"), block);
        }
    }

    fn block(&mut self, name: &str, block: &'a mut DitBlock) {
        let DitBlock { embedder, modulation, attention, mlp, cross, text, second, .. } = block;
        if let Some(embedder) = embedder {
            self.embedder(&format!("{name}.embedder"), embedder);
        }
        self.modulation(&format!("{name}.modulation"), modulation);
        self.attention(&format!("{name}.attention"), attention);
        self.mlp(&format!("{name}.mlp"), mlp);
        if let Some(second) = second {
            self.attention(&format!("{name}.second"), second);
        }
        if let Some(cross) = cross {
            self.add(&format!("{name}.cross.q"), &mut cross.q);
            self.add(&format!("{name}.cross.kv"), &mut cross.kv);
            self.add(&format!("{name}.cross.out"), &mut cross.out);
        }
        if let Some(text) = text {
            self.modulation(&format!("{name}.text.modulation"), &mut text.modulation);
            self.attention(&format!("{name}.text.attention"), &mut text.attention);
            if let Some(mlp) = &mut text.mlp {
                self.mlp(&format!("{name}.text.mlp"), mlp);
            }
        }
    }

    fn head(&mut self, name: &str, head: &'a mut Head) {
        self.modulation(&format!("{name}.modulation"), &mut head.modulation);
        self.add(&format!("{name}.out"), &mut head.out);
    }

    fn mode(&mut self, index: usize, mode: &'a mut Mode) {
        if let Some(ends) = &mut mode.ends {
            self.add(&format!("modes.{index}.ends.patch"), &mut ends.patch);
            self.add(&format!("modes.{index}.ends.out"), &mut ends.out);
        }
    }
}

#[cfg(test)]
mod tests;
