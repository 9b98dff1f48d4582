//! Images of texts.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::{Conditioning, Text};

use super::{PromptTask, Task, Told};
use crate::error::{Error, Result, TextError};
use crate::metadata::Asked;
use crate::model::text::{ClipInput, Filling, TextInput, side_by_side, told_size, with_clips};
use crate::model::{Model, TextReader, aspect};
use crate::request::Request;
use crate::settings::Settings;

/// Images of texts.
#[derive(Debug, Clone)]
pub struct TextTask {
    /// None where encoders of CLIP are all that there is.
    reader: Option<TextReader>,
    clips: Vec<TextReader>,
    /// Width of the tokens of a text.
    width: usize,
    input: TextInput,
    /// Whether the network is told the size of the image.
    sized: bool,
    /// Least tokens of a text.
    length: usize,
    pooled: bool,
    device: Device,
}

/// A part of a prompt that a model does not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The prompt.
    pub prompt: String,
    /// Its end, which is left out.
    pub part: String,
    /// Most tokens of a text.
    pub tokens: usize,
}

impl TextTask {
    /// What the model does not read of the prompts of a request, each different one once.
    ///
    /// # Errors
    /// Those of [`TextReader::tokens`].
    pub fn cut(&self, request: &Request<String>) -> Result<Vec<Cut>> {
        let (limit, raw, mut cuts) = (self.limit(request), request.raw_prompt, Vec::new());
        let asked = request.prompts.iter().map(|text| (text, self.input.cleaned(text, raw)));
        let negative = request.negative.iter();
        let negative = negative.map(|text| (text, self.input.cleaned_negative(text, raw)));
        let mut prompts: Vec<(&String, String)> = asked.chain(negative).collect();
        prompts.sort();
        prompts.dedup();
        let clips = self.input.clips.iter().map(ClipInput::tokens).zip(&self.clips);
        let readers: Vec<(usize, &TextReader)> =
            self.reader.iter().map(|reader| (limit, reader)).chain(clips).collect();
        for (prompt, text) in prompts {
            for (tokens, reader) in &readers {
                let part = reader.tokens(&text, *tokens)?.cut;
                let part = part.map(|part| self.input.of_text(part));
                let cut = |part| Cut { prompt: prompt.clone(), part, tokens: *tokens };
                cuts.extend(part.map(cut));
            }
        }
        Ok(cuts)
    }

    /// What the network is told of texts.
    fn read(&self, texts: &[String], limit: usize) -> Result<Text> {
        let states = match &self.reader {
            Some(reader) => reader.read(texts, limit)?,
            None => vec![Tensor::zeros([1, limit, self.width], &self.device); texts.len()],
        };
        if self.clips.is_empty() {
            return Ok(side_by_side(states, self.pooled, &self.device));
        }
        let clips = self.input.clips.iter().zip(&self.clips);
        let clips = clips.map(|(clip, reader)| reader.read_pooled(texts, clip.tokens()));
        Ok(with_clips(states, clips.collect::<Result<_>>()?, &self.device))
    }

    /// The text to move away from, as the encoder reads it.
    fn negative(&self, request: &Request<String>) -> String {
        let text = request.negative.as_deref().unwrap_or_default();
        self.input.cleaned_negative(text, request.raw_prompt)
    }

    /// Most tokens of a text.
    fn limit(&self, request: &Request<String>) -> usize {
        request.tokens.unwrap_or(self.input.tokens)
    }
}

impl Task for TextTask {
    type Prompt = String;

    fn check(&self, request: &Request<String>) -> Result<()> {
        // What can be wrong with a text is found when it is cut into tokens.
        self.cut(request).map(drop)
    }

    fn made_at(&self, size: [usize; 2], settings: &Settings) -> Option<[usize; 2]> {
        let side = self.input.sizes.filter(|_| !settings.exact_size)?;
        Some(aspect::nearest(side, size))
    }

    fn text_tokens(&self, request: &Request<String>) -> Result<usize> {
        let of_clips = self.input.clips.iter().map(ClipInput::tokens).max().unwrap_or(0);
        let Some(reader) = self.reader.as_ref().filter(|_| self.input.filled == Filling::None)
        else {
            return Ok(self.limit(request) + of_clips);
        };
        let clean = |text: &String| self.input.cleaned(text, request.raw_prompt);
        let mut longest = self.length;
        for text in request.prompts.iter().map(clean).chain([self.negative(request)]) {
            longest = longest.max(reader.tokens(&text, self.limit(request))?.ids.len());
        }
        Ok(longest + of_clips)
    }

    fn told(&self, request: &Request<String>, size: [usize; 2]) -> Result<Told> {
        let clean = |text: &String| self.input.cleaned(text, request.raw_prompt);
        let mut texts = vec![self.negative(request)];
        let is_absent = self.input.absent && request.negative.is_none();
        let first = Some((texts[0].clone(), 0)).filter(|_| !is_absent);
        let mut entries: BTreeMap<String, usize> = first.into_iter().collect();
        let mut images = Vec::with_capacity(request.prompts.len());
        for prompt in &request.prompts {
            let text = clean(prompt);
            let entry = *entries.entry(text.clone()).or_insert_with(|| {
                texts.push(text);
                texts.len() - 1
            });
            images.push(entry);
        }
        let size = self.sized.then(|| told_size(size, texts.len(), &self.device));
        let mut text = self.read(&texts, self.limit(request))?;
        if is_absent {
            let longest = text.tokens.dims()[1];
            text.lengths.get_or_insert_with(|| vec![longest; texts.len()])[0] = 0;
        }
        let table = Conditioning { text: Some(text), size, ..Conditioning::default() };
        let weaker = vec![vec![0; images.len()]];
        Ok(Told { table, images, weaker })
    }
}

impl PromptTask for TextTask {
    fn of(model: &Model, device: &Device) -> Result<Self> {
        let net = &model.config.net.dit;
        let has_reader = model.text.is_some() || !model.clips.is_empty();
        match (has_reader, &model.config.text) {
            (true, Some(input)) if net.classes == 0 => Ok(Self {
                reader: model.text.clone(),
                clips: model.clips.clone(),
                width: net.text.as_ref().map_or(0, |text| text.width),
                input: input.clone(),
                sized: net.sized,
                length: net.text.as_ref().and_then(|text| text.length).unwrap_or(0),
                pooled: net.pools(),
                device: device.clone(),
            }),
            (false, Some(_)) => Err(TextError::NoEncoder.into()),
            _ => Err(Error::Task { found: model.config.told(), expected: "texts" }),
        }
    }

    fn asked(prompts: Vec<String>) -> Asked {
        Asked::Texts(prompts)
    }

    fn prompts(asked: &Asked) -> Option<Vec<String>> {
        match asked {
            Asked::Texts(texts) => Some(texts.clone()),
            Asked::Classes(_) => None,
        }
    }
}
