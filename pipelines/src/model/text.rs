//! How models read texts.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::nets::{Places, Text, TextEncoderConfig};
use pyrograph_weights::{Part, sha256_of};
use serde::{Deserialize, Serialize};

use super::Source;
use super::reader::TextReader;
use super::text_encoder::TextEncoderSource;
use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::prompt;
use crate::request::is_false;
use crate::tokenizer::Tokenizer;

/// What stands around each text, of a language model that was taught to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Template {
    /// Qwen3's, of a question that it may think about.
    Qwen3,
    /// Qwen3's, of a question that it answers at once.
    Qwen3Unthinking,
    /// A word to Gemma 2 on what it is for, before a text; before one to move away from, nothing.
    Lumina2,
    /// Nothing: a text as it was written.
    Bare,
}

impl Template {
    /// A text as the encoder reads it.
    pub fn filled(self, text: &str) -> String {
        let [before, after] = self.around();
        format!("{before}{text}{after}")
    }

    /// What stands before and after a text.
    fn around(self) -> [&'static str; 2] {
        const START: &str = "<|im_start|>user\n";
        match self {
            Self::Bare => [""; 2],
            Self::Lumina2 => [
                "You are an assistant designed to generate superior images with the superior degree of image-text \
                 alignment based on textual prompts or user prompts. <Prompt Start> ",
                "",
            ],
            Self::Qwen3 => [START, "<|im_end|>\n<|im_start|>assistant\n"],
            Self::Qwen3Unthinking => {
                [START, "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"]
            }
        }
    }
}

/// Which states of its encoder a model reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum States {
    /// Those behind the last block and norm.
    #[default]
    Last,
    /// Those that the last block sees.
    BeforeLast,
    /// Those behind a quarter, a half and three quarters of the blocks, side by side.
    Quarters,
}

impl States {
    fn is_last(&self) -> bool {
        *self == Self::Last
    }

    /// The encoder with these states; one that has such ones by its description stays as it is.
    pub(super) fn of(self, encoder: TextEncoderSource) -> TextEncoderSource {
        match (self, encoder.config.depth, encoder.config.behind.is_empty()) {
            (Self::BeforeLast, depth @ 2.., true) => encoder.read_behind(vec![depth - 1]),
            (Self::Quarters, depth @ 4.., true) => {
                encoder.read_behind([1, 2, 3].map(|quarters| depth * quarters / 4).to_vec())
            }
            _ => encoder,
        }
    }
}

/// Whether texts are filled up to one length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Filling {
    /// They have their own lengths.
    #[default]
    None,
    /// With tokens that the encoder's others do not see.
    Hidden,
    /// With tokens that they do see.
    Seen,
}

impl Filling {
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// How a model reads texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextInput {
    /// The encoder, if the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<TextEncoderConfig>,
    /// Encoders of CLIP, whose states stand side by side before those of the encoder, and whose texts as one vector are told,
    /// too (SD3). With some, there need be no other: its states are zeros then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clips: Vec<ClipInput>,
    /// Most tokens of a text; the rest is cut off.
    pub tokens: usize,
    /// Texts are [cleaned](crate::prompt::clean), as its captions were.
    pub clean: bool,
    /// It was trained at the sizes of PixArt for square images of so many latent cells a side; images of other sizes are
    /// made at the nearest of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<usize>,
    /// What stands around each text, which then is not cleaned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// Which states of the encoder.
    #[serde(default, skip_serializing_if = "States::is_last")]
    pub states: States,
    /// Whether a text has all tokens, and what fills it up is told the network like a text.
    #[serde(default, skip_serializing_if = "Filling::is_none")]
    pub filled: Filling,
    /// Where nothing is said of what guidance moves away from, that is no text at all in place of the empty one; of a network
    /// whose texts have a [length](pyrograph_engine::nets::TextConfig::length).
    #[serde(default, skip_serializing_if = "is_false")]
    pub absent: bool,
}

/// An encoder of CLIP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipInput {
    /// Its network.
    pub encoder: TextEncoderConfig,
    /// The token that ends a text, where it is not the largest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<usize>,
}

impl ClipInput {
    /// Tokens of its texts, which are filled up.
    pub(crate) fn tokens(&self) -> usize {
        match self.encoder.places {
            Places::Learned(places) => places,
            _ => CLIP_TOKENS,
        }
    }
}

/// Tokens of a text of CLIP.
const CLIP_TOKENS: usize = 77;

impl TextInput {
    /// Texts of up to so many tokens, by whose last states a model is told them, and without an encoder so far.
    pub(crate) fn new(tokens: usize) -> Self {
        Self {
            encoder: None,
            clips: Vec::new(),
            tokens,
            clean: false,
            sizes: None,
            template: None,
            states: States::Last,
            filled: Filling::None,
            absent: false,
        }
    }

    /// A text as the encoder reads it; a `raw` one is not cleaned.
    pub(crate) fn cleaned(&self, text: &str, raw: bool) -> String {
        match self.template {
            Some(template) => template.filled(text),
            None if self.clean && !raw => prompt::clean(text),
            None => prompt::plain(text),
        }
    }

    /// The same of a text to move away from.
    pub(crate) fn cleaned_negative(&self, text: &str, raw: bool) -> String {
        match self.template {
            Some(Template::Lumina2) => Template::Bare.filled(text),
            _ => self.cleaned(text, raw),
        }
    }

    /// What is cut off the end of a text, of a part that is cut off what the encoder reads.
    pub(crate) fn of_text(&self, part: String) -> String {
        let after = self.template.map_or("", |template| template.around()[1]);
        part.strip_suffix(after).unwrap_or(&part).to_owned()
    }
}

/// Texts of one length, of which every encoder of CLIP has made states, `[1, its tokens, its width]`, and one vector,
/// `[1, its width]`, and another encoder states of this width: as SD3 is told them.
pub(crate) fn with_clips(
    states: Vec<Tensor<3>>,
    clips: Vec<Vec<(Tensor<3>, Tensor<2>)>>,
    device: &Device,
) -> Text {
    let mut texts = Vec::new();
    for (i, state) in states.into_iter().enumerate() {
        let [batch, _, width] = state.dims();
        let own = clips.iter().map(|clip| clip[i].clone());
        let (mut parts, pooled): (Vec<Tensor<3>>, Vec<Tensor<2>>) = own.unzip();
        let [_, tokens, _] = parts[0].dims();
        let filled = parts.iter().map(|part| part.dims()[2]).sum::<usize>();
        parts.push(Tensor::zeros([batch, tokens, width - filled], device));
        let tokens = Tensor::cat(vec![Tensor::cat(parts, 2), state], 1);
        texts.push((tokens, Tensor::cat(pooled, 1)));
    }
    let (tokens, pooled): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
    Text { tokens: Tensor::cat(tokens, 0), lengths: None, pooled: Some(Tensor::cat(pooled, 0)) }
}

/// Texts of different lengths side by side, each `[1, tokens, width]`, and if `pooled` the mean of each as one vector.
pub(crate) fn side_by_side(states: Vec<Tensor<3>>, pooled: bool, device: &Device) -> Text {
    let mean = |state: &Tensor<3>| state.clone().mean_dim(1).squeeze_dim::<2>(1);
    let pooled = pooled.then(|| Tensor::cat(states.iter().map(mean).collect(), 0));
    let lengths: Vec<usize> = states.iter().map(|state| state.dims()[1]).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let filled = states.into_iter().map(|state| {
        let [_, tokens, width] = state.dims();
        match longest - tokens {
            0 => state,
            rest => Tensor::cat(vec![state, Tensor::zeros([1, rest, width], device)], 1),
        }
    });
    let tokens = Tensor::cat(filled.collect(), 0);
    let lengths = Some(lengths).filter(|all| all.iter().any(|tokens| *tokens != longest));
    Text { tokens, lengths, pooled }
}

/// What a network is told of the size of so many images, see [`Conditioning::size`].
///
/// [`Conditioning::size`]: pyrograph_engine::nets::Conditioning::size
pub(crate) fn told_size([height, width]: [usize; 2], images: usize, device: &Device) -> Tensor<2> {
    let size = [height as f32, width as f32, height as f32 / width as f32];
    Tensor::from_data(TensorData::new(size.repeat(images), [images, 3]), device)
}

/// Key of the tokenizer in the texts beside an encoder's weights in a bundle.
const TOKENIZER: &str = "tokenizer";

/// What reads the texts of the bundle at `path`, or of the training run there, if it is one.
fn bundled(path: &Path) -> Result<Option<TextSource>> {
    let mut folders = [path.to_owned(), path.join("model")].into_iter();
    let Some(folder) = folders.find(|folder| folder.join("model.json").is_file()) else {
        return Ok(None);
    };
    let reason = "a model without a text encoder".into();
    let missing = || Error::NotAModel { path: path.to_owned(), reason };
    super::recognise(&folder)?.text.ok_or_else(missing).map(Some)
}

/// The encoder at `path`, or in the model there.
pub(super) fn encoder(path: &Path) -> Result<TextEncoderSource> {
    if let Some(text) = bundled(path)? {
        return Ok(text.encoder);
    }
    let inner = path.join("text_encoder");
    TextEncoderSource::recognise(if inner.is_dir() { &inner } else { path })
}

/// What reads texts before it is loaded.
#[derive(Debug)]
pub struct TextSource {
    /// From texts to tokens.
    pub tokenizer: Tokenizer,
    /// From tokens to states.
    pub encoder: TextEncoderSource,
    /// See [`TextInput::filled`].
    pub filled: Filling,
}

impl TextSource {
    /// The folders `tokenizer` and `text_encoder` of a pipeline of diffusers, with a number behind the names of further ones.
    pub(super) fn recognise(folder: &Path, number: &str) -> Result<Self> {
        let part = |name: &str| {
            let part = folder.join(format!("{name}{number}"));
            let reason = format!("no folder {name}{number}, which a model of texts needs");
            let missing = || Error::NotAModel { path: folder.to_owned(), reason };
            part.is_dir().then_some(part).ok_or_else(missing)
        };
        Ok(Self {
            tokenizer: Tokenizer::open(&part("tokenizer")?)?,
            encoder: TextEncoderSource::recognise(&part("text_encoder")?)?,
            filled: Filling::None,
        })
    }

    /// An encoder in a folder of its own, with its tokenizer there or beside it, in the folder of a pipeline, in a bundle, or
    /// in a file; the tokenizer can be elsewhere.
    pub(crate) fn find(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        if !path.exists() {
            return Err(Error::NoModel { path: path.to_owned() });
        }
        if let (None, Some(text)) = (tokenizer, bundled(path)?) {
            return Ok(text);
        }
        let own = match (tokenizer, path.join("text_encoder").is_dir()) {
            (Some(tokenizer), _) => tokenizer.to_owned(),
            (None, true) => path.join("tokenizer"),
            (None, false) => {
                let beside = path.with_file_name("tokenizer");
                if beside.is_dir() { beside } else { path.to_owned() }
            }
        };
        Ok(Self {
            encoder: encoder(path)?,
            tokenizer: Tokenizer::open(&own)?,
            filled: Filling::None,
        })
    }

    /// A part of a bundle, which holds both.
    pub(super) fn sealed(
        path: &Path,
        config: &TextEncoderConfig,
        end: Option<usize>,
        source: Source,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::stored(path, source.checkpoint.metadata().get(TOKENIZER))?;
        let encoder = TextEncoderSource::checked(path, config.clone(), source, end)?;
        Ok(Self { tokenizer, encoder, filled: Filling::None })
    }

    /// The same as a model reads it.
    pub(crate) fn reading(self, input: &TextInput) -> Self {
        Self { encoder: input.states.of(self.encoder), filled: input.filled, ..self }
    }

    /// An encoder of CLIP, whose states are those that its last block sees, and the description of it.
    pub(super) fn clip(self) -> (Self, ClipInput) {
        let mut encoder = self.encoder;
        encoder.config.behind = vec![encoder.config.depth.saturating_sub(1)];
        let input = ClipInput { encoder: encoder.config.clone(), end: encoder.end };
        (Self { encoder, filled: Filling::Seen, ..self }, input)
    }

    /// What changes with the weights of the encoder, and with the tokenizer.
    ///
    /// # Errors
    /// A tokenizer that has no text.
    pub(crate) fn fingerprint(&self) -> Result<String> {
        let mut weights = self.encoder.source.checkpoint.fingerprint();
        let behind = &self.encoder.config.behind;
        if self.filled != Filling::None || !behind.is_empty() {
            weights = format!("{weights} {behind:?} {:?}", self.filled);
        }
        Ok(sha256_of(format!("{weights} {}", self.tokenizer.text()?).as_bytes()))
    }

    /// On its way to a bundle.
    pub(super) fn part(&self) -> Result<Part<'_>> {
        let Source { checkpoint, layout, .. } = &self.encoder.source;
        let fresh = self.encoder.config.init(0, &Device::flex());
        Ok(Part::stored(fresh, checkpoint, layout)?.with_text(TOKENIZER, self.tokenizer.text()?))
    }

    /// Makes it ready to work on `device`; see [`TextReader::open`].
    pub(crate) fn open(
        self,
        rounds: bool,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<TextReader> {
        TextReader::open(self, rounds, device, notify)
    }
}
