//! Reading texts: from a prompt to the states of an encoder.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use burn::tensor::{Bool, Device, Tensor, TensorData};
use pyrograph_engine::device::is_host;
use pyrograph_engine::nets::{TextBlock, TextEncoder, TextEncoderConfig, TextStream};
use pyrograph_engine::read;
use pyrograph_weights::{FloatDtype, sha256_of};

use super::Notice;
use super::states::States;
use super::stored;
use super::text::{Filling, TextSource};
use super::text_encoder::TextEncoderSource;
use crate::error::{Result, TextError};
use crate::health::cache_folder;
use crate::memory::{self, VALUE};
use crate::tokenizer::Encoded;

/// Values of an encoder up to which it stays in memory; the blocks of a larger one are there only while texts pass
/// through them.
const HELD: usize = 1 << 28;
/// Blocks that are there at a time: one at work, and the next.
const AT_ONCE: u64 = 2;
/// Bytes of a number in bf16.
const BF16: u64 = 2;

/// A tokenizer and an encoder, whose states are f32: those of T5 do not fit half precision. A clone shares its weights.
#[derive(Debug, Clone)]
pub struct TextReader {
    source: Arc<TextSource>,
    encoder: Arc<Encoder>,
    /// See [`TextReader::open`].
    rounds: bool,
    device: Device,
}

#[derive(Debug)]
enum Encoder {
    Held(Box<TextEncoder>),
    /// With the states that it made before.
    Streamed(Option<States>),
}

/// The tokens of a text, with what fills it up.
#[derive(Debug, Clone)]
struct Filled {
    ids: Vec<usize>,
    /// Tokens of the text itself.
    own: usize,
}

impl Filled {
    /// What no token sees, `[1, tokens]`.
    fn padding(&self, device: &Device) -> Option<Tensor<2, Bool>> {
        let tokens = self.ids.len();
        let hidden = || TensorData::new((0..tokens).map(|i| i >= self.own).collect(), [1, tokens]);
        (self.own < tokens).then(|| Tensor::from_data(hidden(), device))
    }
}

impl TextReader {
    /// Opens an encoder; `notify` hears of weights that are not finite. One that is not held in memory `rounds` what it
    /// multiplies, on the CPU, by weights that its file has in 16 bits or fewer, to bf16 where that is faster.
    ///
    /// # Errors
    /// Weights that cannot be read, and a machine that has no room for them.
    pub(super) fn open(
        source: TextSource,
        rounds: bool,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Self> {
        let encoder = &source.encoder;
        let rounds = rounds && is_host(device);
        let values = encoder.source.checkpoint.elements();
        let encoder = match values <= HELD {
            true => {
                let net = encoder.load(FloatDtype::F32, device, notify)?;
                Encoder::Held(Box::new(net.folded()))
            }
            false => {
                let weights = encoder.source.checkpoint.fingerprint();
                let behind = &encoder.config.behind;
                let states = format!("{weights} {behind:?} {:?} {rounds}", source.filled);
                let states = sha256_of(states.as_bytes());
                let kept = cache_folder().map(|cache| States::new(&cache, &states, device));
                Encoder::Streamed(kept)
            }
        };
        let (source, encoder) = (Arc::new(source), Arc::new(encoder));
        Ok(Self { source, encoder, rounds, device: device.clone() })
    }

    /// Its tokenizer and its weights.
    pub(crate) fn source(&self) -> &TextSource {
        &self.source
    }

    /// Width of the states.
    pub(crate) fn width(&self) -> usize {
        self.source.encoder.config.width()
    }

    /// Whether its weights are in memory only while texts pass through them.
    pub(crate) fn is_streamed(&self) -> bool {
        matches!(*self.encoder, Encoder::Streamed(_))
    }

    /// At most `limit` tokens of a text.
    ///
    /// # Errors
    /// A text that the tokenizer cannot take, and tokens that the encoder does not know.
    pub fn tokens(&self, text: &str, limit: usize) -> Result<Encoded> {
        let encoded = self.source.tokenizer.encode(text, limit)?;
        let vocabulary = self.source.encoder.config.vocabulary;
        let fault =
            |reason: String| Err(TextError::Unreadable { text: text.to_owned(), reason }.into());
        match encoded.ids.iter().max() {
            None => fault("it has no tokens".into()),
            Some(id) if *id >= vocabulary => {
                fault(format!("token {id}, the text encoder knows {vocabulary}"))
            }
            Some(_) => Ok(encoded),
        }
    }

    /// The states of at most `limit` tokens of each text, `[1, tokens, width]`, in f32.
    ///
    /// # Errors
    /// Those of [`TextReader::tokens`], weights that can no longer be read, and states that are not finite.
    pub fn read(&self, texts: &[String], limit: usize) -> Result<Vec<Tensor<3>>> {
        self.states(texts, limit, true)
    }

    /// [`TextReader::read`] of texts that are not looked for on disk, nor kept there for another time.
    ///
    /// # Errors
    /// As there.
    pub fn read_once(&self, texts: &[String], limit: usize) -> Result<Vec<Tensor<3>>> {
        self.states(texts, limit, false)
    }

    fn states(&self, texts: &[String], limit: usize, keep: bool) -> Result<Vec<Tensor<3>>> {
        let filled = self.filled(texts, limit)?;
        let states: Vec<Tensor<3>> = match &*self.encoder {
            Encoder::Held(net) => filled
                .into_iter()
                .map(|text| net.states(std::slice::from_ref(&text.ids), text.padding(&self.device)))
                .collect(),
            Encoder::Streamed(Some(kept)) if keep => self.kept(kept, filled)?,
            Encoder::Streamed(_) => self.streamed(filled, |ends, stream, _| ends.leave(stream))?,
        };
        for (text, state) in texts.iter().zip(&states) {
            // What is not finite makes the sum so, too.
            if !read::number(state.clone().sum())?.is_finite() {
                let reason = "the text encoder makes values of it that are not finite".into();
                return Err(TextError::Unreadable { text: text.clone(), reason }.into());
            }
        }
        Ok(states)
    }

    /// The tokens of texts.
    fn filled(&self, texts: &[String], limit: usize) -> Result<Vec<Filled>> {
        let filled = |text: &String| {
            let mut ids = self.tokens(text, limit)?.ids;
            let own = ids.len();
            match self.source.filled {
                Filling::None => return Ok(Filled { ids, own }),
                _ => ids.resize(limit, self.source.tokenizer.pad()),
            }
            let own = if self.source.filled == Filling::Seen { limit } else { own };
            Ok(Filled { ids, own })
        };
        texts.iter().map(filled).collect()
    }

    /// The states of texts of CLIP, `[1, tokens, width]`, and each as one vector, `[1, width]`.
    ///
    /// # Errors
    /// Those of [`TextReader::read`].
    pub(crate) fn read_pooled(
        &self,
        texts: &[String],
        limit: usize,
    ) -> Result<Vec<(Tensor<3>, Tensor<2>)>> {
        let leave = |net: &TextEncoder, stream: TextStream, ids: Vec<usize>| {
            net.leave_pooled(stream, &self.source.encoder.ends(&[ids]))
        };
        let filled = self.filled(texts, limit)?;
        match &*self.encoder {
            Encoder::Held(net) => {
                let one = |text: Filled| {
                    let padding = text.padding(&self.device);
                    let stream = net.through(std::slice::from_ref(&text.ids), padding);
                    leave(net, stream, text.ids)
                };
                Ok(filled.into_iter().map(one).collect())
            }
            Encoder::Streamed(_) => self.streamed(filled, leave),
        }
    }

    /// The states that are on disk, and those of the other texts, which are then there, too.
    fn kept(&self, kept: &States, texts: Vec<Filled>) -> Result<Vec<Tensor<3>>> {
        let width = self.width();
        let get = |text: &Filled| kept.get(&text.ids, width, &self.device);
        let found: Vec<Option<Tensor<3>>> = texts.iter().map(get).collect();
        let missing = texts.into_iter().zip(&found).filter(|(_, found)| found.is_none());
        let missing: Vec<Filled> = missing.map(|(text, _)| text).collect();
        if missing.is_empty() {
            return Ok(found.into_iter().flatten().collect());
        }
        let leave = |ends: &TextEncoder, stream, _| ends.leave(stream);
        let made = self.streamed(missing.clone(), leave)?;
        for (text, states) in missing.iter().zip(&made) {
            kept.put(&text.ids, states)?;
        }
        let mut made = made.into_iter();
        let next = |found: Option<Tensor<3>>| found.or_else(|| made.next());
        Ok(found.into_iter().filter_map(next).collect())
    }

    /// All texts through one block after the other, while the next block is read.
    fn streamed<T>(
        &self,
        texts: Vec<Filled>,
        leave: impl Fn(&TextEncoder, TextStream, Vec<usize>) -> T,
    ) -> Result<Vec<T>> {
        let TextEncoderSource { config, source, .. } = &self.source.encoder;
        if is_host(&self.device) {
            let [_, meanwhile] = need(&self.source.encoder, self.rounds);
            memory::check("the text encoder, block by block, takes", meanwhile)?;
        }
        source.verify()?;
        let device = &self.device;
        let (checkpoint, layout) = (&source.checkpoint, &source.layout);
        // Of the table of tokens, the rows of those that there are.
        let rows: BTreeSet<usize> = texts.iter().flat_map(|text| &text.ids).copied().collect();
        let rows: Vec<usize> = rows.into_iter().collect();
        let ends = TextEncoderConfig { vocabulary: rows.len(), ..config.clone() };
        let (ends, _) = pyrograph_weights::load_rows(
            ends.init_ends(0, device),
            ("tokens", &rows),
            checkpoint,
            layout,
            FloatDtype::F32,
            device,
        )?;
        let entered = |text: &Filled| {
            let place = |id| rows.binary_search(id).expect("a row for each token");
            let ids = text.ids.iter().map(place).collect();
            ends.enter(&[ids], text.padding(device))
        };
        let mut streams: Vec<_> = texts.iter().map(entered).collect();
        let (give, take) = sync_channel::<Result<TextBlock>>(0);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for i in 0..config.depth {
                    let fresh = config.init_block_alone(i, 0, device);
                    let name = format!("blocks.{i}");
                    let block = match self.rounds {
                        true => stored::load_block(fresh, &name, source, device),
                        false => pyrograph_weights::load_part(
                            fresh,
                            Some(&name),
                            checkpoint,
                            layout,
                            FloatDtype::F32,
                            device,
                        )
                        .map_or_else(|error| Err(error.into()), |(block, _)| Ok(block)),
                    };
                    // Nobody waits for more after an error.
                    if give.send(block).is_err() {
                        return;
                    }
                }
            });
            for block in take {
                let block = block?;
                streams = streams.into_iter().map(|stream| block.forward(stream)).collect();
                // So that the block is done with before the one after the next is read.
                read::wait(device)?;
            }
            let all = streams.into_iter().zip(texts);
            Ok(all.map(|(stream, text)| leave(&ends, stream, text.ids)).collect())
        })
    }
}

/// Bytes that an encoder takes in memory at most: for good, and while texts pass through it; see [`TextReader::open`].
pub(super) fn need(encoder: &TextEncoderSource, rounds: bool) -> [u64; 2] {
    let checkpoint = &encoder.source.checkpoint;
    let values = checkpoint.elements();
    if values <= HELD {
        return [VALUE * values as u64, 0];
    }
    let config = &encoder.config;
    let table = memory::product(&[config.vocabulary, config.hidden]);
    let block = (values as u64).saturating_sub(table) / config.depth as u64;
    let value = match rounds && (checkpoint.is_bf16() || checkpoint.is_compressed()) {
        true => BF16,
        false => VALUE,
    };
    [0, value * AT_ONCE * block]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::{DType, FloatDType};
    use pyrograph_engine::ops;
    use pyrograph_weights::{Checkpoint, write_safetensors};
    use tempfile::TempDir;

    use super::*;

    /// Block by block, an encoder does what it does as a whole.
    #[test]
    fn streamed_states_are_those_of_the_whole_encoder() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/goldens");
        let folder = goldens.join("pixart-sigma");
        let source = || TextSource::recognise(&folder, "").expect("T5");
        let device = Device::flex();
        let held = TextReader::open(source(), false, &device, &mut |_| ()).expect("small");
        assert!(matches!(*held.encoder, Encoder::Held(_)));
        let streamed = |kept| {
            let encoder = Arc::new(Encoder::Streamed(kept));
            TextReader { encoder, ..held.clone() }
        };
        let cache = tempfile::tempdir().expect("a folder");
        let kept = || Some(States::new(cache.path(), "ab", &device));
        let texts = ["a cat".to_owned(), String::new(), "three lighthouses in the fog".to_owned()];
        let read = |reader: TextReader| {
            // Twice: what is read is not used up.
            reader.read(&texts, 9).expect("states");
            reader.read(&texts, 9).expect("states")
        };
        let by_block = read(streamed(None));
        let from_disk = {
            // The one in the middle is there before the others.
            streamed(kept()).read(&texts[1..2], 9).expect("states");
            read(streamed(kept()))
        };
        for (a, b) in by_block.iter().zip(from_disk) {
            assert_eq!(a.to_data(), b.into_data());
        }
        for (a, b) in read(held.clone()).into_iter().zip(by_block) {
            assert!(a.dims()[1] <= 9);
            let worst: f32 = (a.clone() - b).abs().max().into_scalar();
            let largest: f32 = a.abs().max().into_scalar();
            assert!(worst <= 2e-6 * largest, "{worst} of {largest}");
        }
    }

    /// The folder's encoder with its tokenizer, its weights in bf16.
    fn in_bf16(folder: &Path) -> TempDir {
        let copy = tempfile::tempdir().expect("a folder");
        for part in ["text_encoder", "tokenizer"] {
            std::fs::create_dir(copy.path().join(part)).expect("a folder");
            for file in std::fs::read_dir(folder.join(part)).expect("a folder") {
                let file = file.expect("a file").path();
                let target = copy.path().join(part).join(file.file_name().expect("a name"));
                if file.extension().is_none_or(|end| end != "safetensors") {
                    std::fs::copy(file, target).expect("copied");
                    continue;
                }
                let stored = Checkpoint::open(&file).expect("weights");
                let halved = |name: &String| {
                    let (values, shape) = stored.read_f32(name).expect("values");
                    (name.clone(), TensorData::new(values, shape).convert_dtype(DType::BF16))
                };
                let tensors: Vec<_> = stored.tensors().keys().map(halved).collect();
                write_safetensors(&target, &tensors, &Default::default()).expect("written");
            }
        }
        copy
    }

    /// Of weights in bf16 the products alone are rounded, where the machine gains by it.
    #[test]
    fn rounded_states_are_near_those_in_f32() {
        let device = Device::flex();
        for golden in ["pixart-sigma", "z-image"] {
            let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/goldens");
            let folder = in_bf16(&goldens.join(golden));
            let source = TextSource::recognise(folder.path(), "").expect("an encoder");
            let held = TextReader::open(source, true, &device, &mut |_| ()).expect("small");
            let encoder = Arc::new(Encoder::Streamed(None));
            let rounded = TextReader { encoder, ..held.clone() };
            let texts = ["three lighthouses in the fog".to_owned()];
            let read = |reader: TextReader| reader.read(&texts, 9).expect("states").remove(0);
            let (exact, found) = (read(held), read(rounded));
            let worst: f32 = (exact.clone() - found).abs().max().into_scalar();
            let largest: f32 = exact.abs().max().into_scalar();
            let gains = Tensor::<2>::zeros([1, 1], &device).cast(FloatDType::BF16);
            let expected = if ops::packs(&gains) { 1e-5..0.02 } else { 0.0..1e-5 };
            assert!(expected.contains(&(worst / largest)), "{golden}: {worst} of {largest}");
        }
    }
}
