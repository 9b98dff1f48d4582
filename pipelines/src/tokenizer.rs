//! From texts to the tokens of an encoder: `tokenizer.json`, or what was used before there was one, the `spiece.model` of T5
//! and the `vocab.json` and `merges.txt` of CLIP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prost::Message;
use pyrograph_weights::read_at_most;
use serde::Deserialize;
use tokenizers::decoders::metaspace::Metaspace;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::normalizers::utils::{Lowercase, Sequence as Normalizers};
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Replace, replace::ReplacePattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PaddingParams, SplitDelimiterBehavior};

use crate::error::{Error, Result, TextError};

/// Most bytes of a file.
const LIMIT: u64 = 64 << 20;
/// The kind of the piece that stands for what no other piece covers.
const UNKNOWN: i32 = 2;
/// Sentinels behind the pieces of T5.
const SENTINELS: usize = 100;
/// What a text of CLIP is cut into before its letters are joined (Radford et al. 2021).
const CLIP_PARTS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The tokens of an encoder.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    pad: usize,
}

/// A text as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// With those that begin and end a text, and without padding.
    pub ids: Vec<usize>,
    /// What did not fit.
    pub cut: Option<String>,
}

/// The parts of SentencePiece's `ModelProto` that matter here.
#[derive(Message)]
struct Pieces {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<CharacterMap>,
}

#[derive(Message)]
struct Piece {
    #[prost(string, tag = "1")]
    text: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, tag = "3")]
    kind: i32,
}

#[derive(Message)]
struct CharacterMap {
    #[prost(bytes = "vec", tag = "2")]
    compiled: Vec<u8>,
}

/// A token in a configuration, by itself or with its properties.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Text(String),
    Token { content: String },
}

#[derive(Deserialize, Default)]
struct Special {
    bos_token: Option<Named>,
    eos_token: Option<Named>,
    unk_token: Option<Named>,
    pad_token: Option<Named>,
}

impl Named {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Token { content: text } => text,
        }
    }
}

impl Tokenizer {
    /// The tokenizer in a folder.
    ///
    /// # Errors
    /// A folder without one, and files that are none.
    pub fn open(folder: &Path) -> Result<Self> {
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        let special = special(folder)?;
        if let Some(path) = there("tokenizer.json") {
            return Self::whole(&path, special);
        }
        if let Some(path) = there("spiece.model") {
            return Self::pieces(&path);
        }
        if let (Some(vocabulary), Some(merges)) = (there("vocab.json"), there("merges.txt")) {
            return Self::merges(&vocabulary, &merges, special);
        }
        let reason =
            "none there: expected tokenizer.json, spiece.model, or vocab.json and merges.txt";
        Err(fault(folder)(reason.into()))
    }

    /// A `tokenizer.json`.
    fn whole(path: &Path, special: Special) -> Result<Self> {
        Self::read(path, &read_at_most(path, LIMIT)?, special)
    }

    fn read(path: &Path, json: &[u8], special: Special) -> Result<Self> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(fault(path))?;
        let own = inner.get_padding().map(|padding| padding.pad_id);
        // Lengths are the caller's business.
        inner.with_truncation(None).map_err(fault(path))?;
        inner.with_padding(None);
        let pad = special.pad_token.and_then(|token| inner.token_to_id(&token.text())).or(own);
        Ok(Self { path: path.to_owned(), inner, pad: pad.unwrap_or(0) as usize })
    }

    /// What [`Tokenizer::text`] wrote, in the file at `path`.
    ///
    /// # Errors
    /// If there is none, or something else.
    pub(crate) fn stored(path: &Path, text: Option<&String>) -> Result<Self> {
        match text {
            Some(text) => Self::read(path, text.as_bytes(), Special::default()),
            None => Err(fault(path)("none beside the weights of the text encoder".into())),
        }
    }

    /// All of it, as a `tokenizer.json`.
    ///
    /// # Errors
    /// None for a tokenizer that could be opened.
    pub(crate) fn text(&self) -> Result<String> {
        let mut inner = self.inner.clone();
        let pad_id = self.pad as u32;
        let pad_token = inner.id_to_token(pad_id).unwrap_or_default();
        inner.with_padding(Some(PaddingParams { pad_id, pad_token, ..Default::default() }));
        inner.to_string(false).map_err(fault(&self.path))
    }

    /// T5's: pieces with scores, and sentinels behind them, the first of which is the last token.
    fn pieces(path: &Path) -> Result<Self> {
        let read = Pieces::decode(read_at_most(path, LIMIT)?.as_slice())
            .map_err(|error| fault(path)(error.into()))?;
        let count = read.pieces.len();
        let place = |what: &str, is: &dyn Fn(&Piece) -> bool| {
            read.pieces
                .iter()
                .position(is)
                .ok_or_else(|| fault(path)(format!("no piece {what}").into()))
        };
        let unknown = place("for the unknown", &|piece| piece.kind == UNKNOWN)?;
        let [pad, end] = ["<pad>", "</s>"].map(|text| place(text, &|piece| piece.text == text));
        let (pad, end) = (pad?, end?);
        let sentinels = (0..SENTINELS).rev().map(|i| (format!("<extra_id_{i}>"), 0.0));
        let pieces = read.pieces.into_iter().map(|piece| (piece.text, f64::from(piece.score)));
        let vocabulary: Vec<(String, f64)> = pieces.chain(sentinels).collect();
        let special: Vec<String> = [pad, end, unknown]
            .into_iter()
            .chain(count..count + SENTINELS)
            .map(|id| vocabulary[id].0.clone())
            .collect();
        let model = Unigram::from(vocabulary, Some(unknown), false).map_err(fault(path))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        if let Some(map) = read.normalizer.filter(|map| !map.compiled.is_empty()) {
            let map =
                Precompiled::from(&map.compiled).map_err(|error| fault(path)(error.into()))?;
            inner.with_normalizer(Some(map)).map_err(fault(path))?;
        }
        let space = Metaspace::new('▁', PrependScheme::Always, true);
        let parts = PreTokenizers::new(vec![WhitespaceSplit.into(), space.clone().into()]);
        inner.with_pre_tokenizer(Some(parts)).with_decoder(Some(space));
        ended(&mut inner, "$A </s>", &[("</s>", end as u32)]).map_err(fault(path))?;
        add(&mut inner, special).map_err(fault(path))?;
        Ok(Self { path: path.to_owned(), inner, pad })
    }

    /// CLIP's: bytes that are joined, the last of a word marked.
    fn merges(vocabulary: &Path, merges: &Path, special: Special) -> Result<Self> {
        let [bos, eos, unknown, pad] =
            [special.bos_token, special.eos_token, special.unk_token, special.pad_token]
                .map(|token| token.map(Named::text));
        let (bos, eos) =
            (bos.unwrap_or("<|startoftext|>".into()), eos.unwrap_or("<|endoftext|>".into()));
        let ids: BTreeMap<String, u32> = serde_json::from_slice(&read_at_most(vocabulary, LIMIT)?)
            .map_err(|error| fault(vocabulary)(error.into()))?;
        let id = |token: &str| {
            let missing = || fault(vocabulary)(format!("no token `{token}`").into());
            ids.get(token).copied().ok_or_else(missing)
        };
        let (pad, unknown) = (pad.unwrap_or(eos.clone()), unknown.unwrap_or(eos.clone()));
        let ends = [(bos.as_str(), id(&bos)?), (eos.as_str(), id(&eos)?)];
        let pad_id = id(&pad)?;
        // Not read here, but no longer than it may be.
        read_at_most(merges, LIMIT)?;
        let name = |path: &Path| {
            path.to_str()
                .map(str::to_owned)
                .ok_or_else(|| fault(path)("a name that is no text".into()))
        };
        let model = BPE::builder()
            .files(name(vocabulary)?, name(merges)?)
            .end_of_word_suffix("</w>".into())
            .unk_token(unknown.clone())
            .build()
            .map_err(fault(merges))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        let blank =
            Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(fault(merges))?;
        let normalizers: Vec<NormalizerWrapper> = vec![NFC.into(), blank.into(), Lowercase.into()];
        inner.with_normalizer(Some(Normalizers::new(normalizers))).map_err(fault(merges))?;
        let parts = Split::new(
            SplitPattern::Regex(CLIP_PARTS.into()),
            SplitDelimiterBehavior::Removed,
            true,
        )
        .map_err(fault(merges))?;
        let bytes = ByteLevel::new(false, true, false);
        inner.with_pre_tokenizer(Some(PreTokenizers::new(vec![parts.into(), bytes.into()])));
        inner.with_decoder(Some(tokenizers::decoders::bpe::BPEDecoder::new("</w>".into())));
        ended(&mut inner, &format!("{bos} $A {eos}"), &ends).map_err(fault(merges))?;
        add(&mut inner, vec![bos.clone(), eos.clone(), unknown, pad]).map_err(fault(merges))?;
        Ok(Self { path: vocabulary.to_owned(), inner, pad: pad_id as usize })
    }

    /// The token that fills up a text.
    pub fn pad(&self) -> usize {
        self.pad
    }

    /// A text in at most `limit` tokens.
    ///
    /// # Errors
    /// A text that the tokenizer cannot take.
    pub fn encode(&self, text: &str, limit: usize) -> Result<Encoded> {
        let fault = fault(&self.path);
        let all = self.inner.encode(text, true).map_err(&fault)?.get_ids().to_vec();
        let mut ids = all.clone();
        let mut cut = None;
        if all.len() > limit && limit > 0 {
            // A token that ends every text stays.
            let plain = self.inner.encode(text, false).map_err(&fault)?;
            let end = match plain.get_ids().last() == all.last() && plain.len() == all.len() {
                true => 0,
                false => 1,
            };
            let (kept, rest) = (limit - end, all.len() - end);
            cut = Some(self.inner.decode(&all[kept..rest], false).map_err(&fault)?);
            ids.truncate(kept);
            ids.extend(&all[rest..]);
        }
        Ok(Encoded { ids: ids.into_iter().map(|id| id as usize).collect(), cut })
    }
}

fn fault(path: &Path) -> impl Fn(tokenizers::Error) -> Error {
    move |error| TextError::Tokenizer { path: path.to_owned(), reason: error.to_string() }.into()
}

/// What stands before and after each text.
fn ended(
    inner: &mut tokenizers::Tokenizer,
    template: &str,
    tokens: &[(&str, u32)],
) -> tokenizers::Result<()> {
    let tokens: Vec<(String, u32)> =
        tokens.iter().map(|(text, id)| (text.to_string(), *id)).collect();
    let template =
        TemplateProcessing::builder().try_single(template)?.special_tokens(tokens).build()?;
    inner.with_post_processor(Some(template));
    Ok(())
}

/// Tokens that stand for themselves in a text.
fn add(inner: &mut tokenizers::Tokenizer, tokens: Vec<String>) -> tokenizers::Result<()> {
    let tokens = tokens.into_iter().map(|text| AddedToken::from(text, true));
    inner.add_special_tokens(tokens)?;
    Ok(())
}

/// What the configurations in a folder say of special tokens.
fn special(folder: &Path) -> Result<Special> {
    let named = ["tokenizer_config.json", "special_tokens_map.json"].map(|name| folder.join(name));
    let path: Option<PathBuf> = named.into_iter().find(|path| path.is_file());
    let Some(path) = path else { return Ok(Special::default()) };
    serde_json::from_slice(&read_at_most(&path, LIMIT)?).map_err(|error| fault(&path)(error.into()))
}
