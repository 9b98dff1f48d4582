//! Networks whose weights stay as their file stores them, in memory as far as there is room for them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Device;
use pyrograph_engine::nets::{Adaptable, Net, TextBlock};
use pyrograph_engine::ops::Compressed;
use pyrograph_weights::Filed;

use super::room::{Footprint, Room};
use super::stream::Stream;
use super::{Source, WeightType, tell};
use crate::error::Result;
use crate::hooks::Notice;
use crate::memory::VALUE;

/// A matrix of a file as a weight of a network.
#[derive(Debug)]
pub(super) struct Stored(pub(super) pyrograph_weights::Compressed);

impl Compressed for Stored {
    fn widths(&self) -> [usize; 2] {
        self.0.widths()
    }

    fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]) {
        self.0.read(outputs, inputs, values);
    }

    fn bf16(&self, output: usize, inputs: Range<usize>) -> Option<&[u8]> {
        self.0.bf16(output, inputs)
    }
}

/// Loads a network for inference: the weights of linear layers as they are stored, where those are 16 bits or fewer, all
/// else in f32, on a GPU in the room of that `card`. Layers for which there is no room are read again for each product; whether
/// their numbers are finite is not known before.
pub(super) fn load(
    mut net: Net,
    source: &Source,
    room: &Room,
    card: Option<&Room>,
    device: &Device,
    notify: &mut dyn FnMut(Notice),
) -> Result<(Net, Footprint)> {
    source.verify()?;
    let Source { checkpoint, layout, .. } = source;
    let kept = held(&mut net, "");
    let (mut net, mut filed, mut report) =
        pyrograph_weights::load_beside(net, None, checkpoint, layout, kept, device)?;
    let elements = |matrix: &Filed| matrix.widths().iter().product::<usize>();
    let others = checkpoint.elements().saturating_sub(filed.values().map(elements).sum());
    let bytes = |matrix: &Filed| matrix.bytes() as u64;
    let others = VALUE * others as u64;
    // One of them at a time is unpacked there.
    let largest = VALUE * filed.values().map(elements).max().unwrap_or(0) as u64;
    card.map_or(Ok(()), |card| card.check(WeightType::Stored, others + largest))?;
    let beside = if card.is_some() { 0 } else { others };
    let mut split = Split::of(filed.values().map(bytes), beside, room)?;
    let mut matrices = Vec::new();
    for (name, layer) in net.linear_layers() {
        let weight = weight("", &name);
        let Some(matrix) = filed.remove(&weight) else { continue };
        matrices.push((split.holds(bytes(&matrix)), weight, layer, matrix));
    }
    // Before they are read.
    let mut footprint = room.footprint(split.taken, split.streamed, notify);
    if let Some(card) = card {
        footprint = Footprint { left: card.leaves(others + largest), ..footprint };
    }
    let (mut streamed, mut layers) = (Vec::new(), Vec::new());
    for (holds, weight, layer, matrix) in matrices {
        if !holds {
            streamed.push(matrix);
            layers.push(layer);
            continue;
        }
        let matrix = matrix.read()?;
        if !matrix.is_finite() {
            report.not_finite.push(weight);
        }
        layer.hold(Arc::new(Stored(matrix)));
    }
    tell(&report, notify);
    if !streamed.is_empty() {
        let stream = Stream::new(streamed);
        layers.into_iter().enumerate().for_each(|(i, layer)| layer.hold(stream.weight(i)));
        footprint.streams.push(stream);
    }
    Ok((net, footprint))
}

/// Loads the block of a text encoder that has this name there, as [`load`] does a network.
pub(super) fn load_block(
    mut block: TextBlock,
    name: &str,
    source: &Source,
    device: &Device,
) -> Result<TextBlock> {
    let Source { checkpoint, layout, .. } = source;
    let start = format!("{name}.");
    let kept = held(&mut block, &start);
    let (mut block, mut filed, _) =
        pyrograph_weights::load_beside(block, Some(name), checkpoint, layout, kept, device)?;
    for (name, layer) in block.linear_layers() {
        if let Some(matrix) = filed.remove(&weight(&start, &name)) {
            layer.hold(Arc::new(Stored(matrix.read()?)));
        }
    }
    Ok(block)
}

/// Name of a layer's weight, in a network of which its own is a part whose names start like this.
fn weight(start: &str, layer: &str) -> String {
    format!("{start}{layer}.weight")
}

/// Names of the weights that a layer can hold as they are stored.
fn held(net: &mut impl Adaptable, start: &str) -> BTreeSet<String> {
    let layers = net.linear_layers().into_iter().filter(|(_, layer)| layer.holds());
    layers.map(|(name, _)| weight(start, &name)).collect()
}

/// Which matrices are held in memory: as many bytes as there is room for, from all parts of a network alike, so that
/// others can be read while those are at work.
#[derive(Debug)]
struct Split {
    all: u64,
    /// Bytes that can be held.
    room: u64,
    seen: u64,
    held: u64,
    streamed: u64,
    /// Bytes of everything that is in memory.
    taken: u64,
}

impl Split {
    /// Of matrices of so many bytes each, beside weights that are held in any case.
    fn of(matrices: impl Iterator<Item = u64> + Clone, others: u64, room: &Room) -> Result<Self> {
        /// Matrices that are there at a time if not all are.
        const AT_ONCE: u64 = 2;
        let all = matrices.clone().sum();
        let left = room.left().unwrap_or(u64::MAX);
        let (mut taken, mut held) = (others.saturating_add(all), all);
        if taken > left {
            let window = AT_ONCE * matrices.max().unwrap_or(0);
            room.check(WeightType::Stored, others + window)?;
            held = left - others - window;
            taken = left;
        }
        Ok(Self { all, room: held, seen: 0, held: 0, streamed: 0, taken })
    }

    /// Whether the next one is held.
    fn holds(&mut self, bytes: u64) -> bool {
        self.seen += bytes;
        let share = u128::from(self.seen) * u128::from(self.room);
        let holds = u128::from(self.held + bytes) * u128::from(self.all) <= share;
        let counted = if holds { &mut self.held } else { &mut self.streamed };
        *counted += bytes;
        holds
    }
}
