//! Networks whose weights stay as their file stores them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Device;
use pyrograph_engine::nets::{Adaptable, Net};
use pyrograph_engine::ops::Compressed;
use pyrograph_weights::FloatDtype;

use super::{Source, tell};
use crate::error::Result;
use crate::hooks::Notice;

/// A matrix of a file as a weight of a network.
#[derive(Debug)]
struct Stored(pyrograph_weights::Compressed);

impl Compressed for Stored {
    fn widths(&self) -> [usize; 2] {
        self.0.widths()
    }

    fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]) {
        self.0.read(outputs, inputs, values);
    }
}

/// Loads a network for inference on the CPU: the weights of linear layers as they are stored, where those are 16 bits or
/// fewer, all else in f32.
pub(super) fn load(
    mut net: Net,
    source: &Source,
    device: &Device,
    notify: &mut dyn FnMut(Notice),
) -> Result<Net> {
    source.verify()?;
    let weight = |name: &str| format!("{name}.weight");
    let layers = net.linear_layers().into_iter();
    let kept: BTreeSet<String> =
        layers.filter(|(_, layer)| layer.holds()).map(|(name, _)| weight(&name)).collect();
    let Source { checkpoint, layout, .. } = source;
    let (mut net, mut compressed, report) =
        pyrograph_weights::load_compressed(net, checkpoint, layout, kept, FloatDtype::F32, device)?;
    tell(&report, notify);
    for (name, layer) in net.linear_layers() {
        if let Some(matrix) = compressed.remove(&weight(&name)) {
            layer.hold(Arc::new(Stored(matrix)));
        }
    }
    Ok(net)
}
