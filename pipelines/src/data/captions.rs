//! Captions of the training images, read by a text encoder once and kept on disk.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pyrograph_engine::nets::Conditioning;
use pyrograph_engine::read;
use pyrograph_weights::{Checkpoint, write_safetensors};

use super::notice::Notice;
use super::pixels::short;
use crate::error::words::counted;
use crate::error::{Error, Result, TextError};
use crate::memory;
use crate::model::TextReader;
use crate::model::text::{Filling, TextInput, side_by_side, told_size};

/// Key of what the states were made from.
const ORIGIN_KEY: &str = "origin";
/// All states, one caption after the other, `[tokens, width]`.
const STATES: &str = "states";
/// Tokens of each caption, `[captions]`.
const LENGTHS: &str = "lengths";
/// Captions that pass through the encoder together.
const AT_ONCE: usize = 4096;
/// Bytes of a value in f16.
const HALF: u64 = 2;

/// What makes states of captions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reads<'a> {
    pub(crate) reader: &'a TextReader,
    pub(crate) input: &'a TextInput,
    /// Size of the images in pixels, of a network that is told it.
    pub(crate) size: Option<[usize; 2]>,
    /// Whether the network is told a text as one vector, too.
    pub(crate) pooled: bool,
}

/// The states of all captions.
#[derive(Debug, Clone)]
pub(crate) struct Captions {
    /// `[1, tokens, width]` of each, in f16; the last is the empty text.
    states: Vec<TensorData>,
    size: Option<[usize; 2]>,
    pooled: bool,
}

impl Captions {
    /// Reads the states that are kept at `path`, or makes them if there are none of these captions and this encoder; says how
    /// many captions are cut off.
    ///
    /// # Errors
    /// A caption that cannot be read, more than fits in memory, or a file that cannot be written.
    pub(crate) fn open(
        path: Option<&Path>,
        texts: &[String],
        reads: Reads<'_>,
    ) -> Result<(Self, Option<Notice>)> {
        let Reads { reader, input, size, pooled } = reads;
        let limit = input.tokens;
        let clean = |text: &String| input.cleaned(text, false);
        let mut cleaned: Vec<String> = texts.iter().map(clean).collect();
        let (mut tokens, mut cut) = (0, Vec::new());
        for (text, cleaned) in texts.iter().zip(&cleaned) {
            let encoded = reader.tokens(cleaned, limit)?;
            tokens += if input.filled == Filling::None { encoded.ids.len() } else { limit };
            cut.extend(encoded.cut.map(|_| text));
        }
        let notice = cut.first().map(|first| Notice::Cut {
            captions: cut.len(),
            first: String::clone(first),
            tokens: limit,
        });
        cleaned.push(input.cleaned_negative("", false));
        let need = HALF * memory::product(&[tokens, reader.width()]);
        memory::check(format!("the states of {} take", counted(texts.len(), "caption")), need)?;
        let fingerprint = reader.source().fingerprint()?;
        let listed = serde_json::json!([fingerprint, limit, cleaned]).to_string();
        let origin = short(listed.as_bytes());
        let states = match path.and_then(|path| kept(path, &origin)) {
            Some(file) => stored(&file, [cleaned.len(), reader.width()])?,
            None => {
                let mut states = Vec::with_capacity(cleaned.len());
                for texts in cleaned.chunks(AT_ONCE) {
                    let made = reader.read_once(texts, limit)?;
                    for state in made {
                        states.push(read::data(state)?.convert_dtype(DType::F16));
                    }
                }
                check(&cleaned, &states)?;
                path.map(|path| write(path, &states, origin)).transpose()?;
                states
            }
        };
        Ok((Self { states, size, pooled }, notice))
    }

    /// What a network is told of these captions, and in place of each where it is left out.
    pub(crate) fn told(&self, captions: &[usize], device: &Device) -> [Conditioning; 2] {
        let (count, null) = (captions.len(), self.states.len() - 1);
        let states = captions.iter().chain([&null]).map(|&caption| {
            let state = self.states[caption].clone().convert_dtype(DType::F32);
            Tensor::<3>::from_data(state, device)
        });
        let table = Conditioning {
            text: Some(side_by_side(states.collect(), self.pooled, device)),
            size: self.size.map(|size| told_size(size, count + 1, device)),
            ..Conditioning::default()
        };
        let own: Vec<usize> = (0..count).collect();
        [table.select(&own), table.select(&vec![count; count])]
    }
}

/// Refuses states that half precision does not hold.
fn check(texts: &[String], states: &[TensorData]) -> Result<()> {
    let is_finite = |state: &TensorData| state.iter::<f32>().all(f32::is_finite);
    match texts.iter().zip(states).find(|(_, state)| !is_finite(state)) {
        None => Ok(()),
        Some((text, _)) => {
            let reason = "its states do not fit half precision".into();
            Err(TextError::Unreadable { text: text.clone(), reason }.into())
        }
    }
}

/// The file at `path`, if it is whole and holds states of this origin.
fn kept(path: &Path, origin: &String) -> Option<Checkpoint> {
    let file = path.is_file().then(|| Checkpoint::open(path).ok()).flatten()?;
    // One that cannot be read is as good as none: it is made again.
    let is_whole = file.verify().is_ok();
    (is_whole && file.metadata().get(ORIGIN_KEY) == Some(origin)).then_some(file)
}

/// Keeps states, each `[1, tokens, width]` in f16.
fn write(path: &Path, states: &[TensorData], origin: String) -> Result<()> {
    let lengths: Vec<f32> = states.iter().map(|state| state.shape()[1] as f32).collect();
    let (count, tokens) = (lengths.len(), states.iter().map(|state| state.shape()[1]).sum());
    let width = states.first().map_or(0, |state| state.shape()[2]);
    let bytes = states.iter().flat_map(|state| state.as_bytes().iter().copied()).collect();
    let tensors: [(String, TensorData); 2] = [
        (STATES.into(), TensorData::from_bytes_vec(bytes, [tokens, width], DType::F16)),
        (LENGTHS.into(), TensorData::new(lengths, [count])),
    ];
    write_safetensors(path, &tensors, &BTreeMap::from([(ORIGIN_KEY.to_owned(), origin)]))?;
    Ok(())
}

/// The states of so many texts, of this width, that a file keeps.
fn stored(file: &Checkpoint, [texts, width]: [usize; 2]) -> Result<Vec<TensorData>> {
    let (values, shape) = file.read_f32(STATES)?;
    let (lengths, _) = file.read_f32(LENGTHS)?;
    let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
    if lengths.len() != texts || shape != [lengths.iter().sum(), width] {
        let (path, found) = (file.path().to_owned(), lengths.len());
        let reason =
            format!("states of shape {shape:?} for {found} texts, expected {texts} of {width}");
        return Err(Error::Dataset { path, reason });
    }
    let mut rest = values.as_slice();
    let mut next = |length: usize| {
        let (own, behind) = rest.split_at(length * width);
        rest = behind;
        TensorData::new(own.to_vec(), [1, length, width]).convert_dtype(DType::F16)
    };
    Ok(lengths.into_iter().map(&mut next).collect())
}
