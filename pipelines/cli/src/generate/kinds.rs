//! What `pyrograph generate class` and `pyrograph generate text` do not have in common.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use pyrograph::engine::random::SplitMix64;
use pyrograph::pipeline::Pipeline;
use pyrograph::task::{ClassTask, PromptTask, Task, TextTask};
use pyrograph::{ClassPipeline, OpenOptions, Request, TextPipeline};

use super::args::Images;
use super::earlier::Earlier;
use crate::common::{Common, counted, lines, prompts, whole};

/// Images of the default grid.
const DEFAULT_COUNT: usize = 16;
/// Most bytes of prompts on standard input.
const MAX_INPUT: u64 = 16 << 20;
/// Times an area that images can be made at without looking wrong.
const FAR: usize = 2;
/// Most tokens of a prompt.
const MAX_TOKENS: usize = 1 << 16;
/// Name of the shipped model.
pub(crate) const DEFAULT_MODEL: &str = "emoji-class";
/// Its few-step student.
const FAST_MODEL: &str = "emoji-4step";

/// A kind of images.
pub(crate) trait Kind {
    /// What the library does for it.
    type Task: PromptTask;

    /// The options that all kinds have.
    fn images(&self) -> &Images;

    /// The model, where neither an option nor an earlier picture names one.
    fn model(&self) -> anyhow::Result<&Path>;

    /// Names the parts of the model that are elsewhere, for options or an earlier picture.
    fn parts(&self, earlier: Option<&Earlier>, options: &mut OpenOptions<'_>)
    -> anyhow::Result<()>;

    /// Sets what the further options ask for.
    fn ask(&self, request: &mut Request<<Self::Task as Task>::Prompt>) -> anyhow::Result<()>;

    /// The prompt of each image; `count` is how many there are to be, where that is said.
    fn prompts(
        &self,
        count: Option<usize>,
        seed: u64,
        pipeline: &Pipeline<Self::Task>,
    ) -> anyhow::Result<Vec<<Self::Task as Task>::Prompt>>;

    /// Whether there is one picture of all images, where nothing is said.
    fn is_sheet(&self) -> bool;

    /// Warns of what will not be as it was asked for.
    fn warn(
        &self,
        request: &Request<<Self::Task as Task>::Prompt>,
        pipeline: &Pipeline<Self::Task>,
        common: &Common,
    ) -> anyhow::Result<()>;
}

#[derive(Args)]
pub(crate) struct Class {
    /// Class names or ids, separated by commas, or `random`; id:3 is an id where names are numbers
    /// [default: every class in turn]
    #[arg(long, short, conflicts_with = "from_metadata")]
    class: Option<String>,
    /// The four-step student of the shipped model, instead of the model itself
    #[arg(long, conflicts_with_all = ["model", "from_metadata"])]
    fast: bool,
    #[command(flatten)]
    images: Images,
}

impl Kind for Class {
    type Task = ClassTask;

    fn images(&self) -> &Images {
        &self.images
    }

    fn model(&self) -> anyhow::Result<&Path> {
        Ok(Path::new(if self.fast { FAST_MODEL } else { DEFAULT_MODEL }))
    }

    fn parts(&self, _: Option<&Earlier>, _: &mut OpenOptions<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    fn ask(&self, _: &mut Request<usize>) -> anyhow::Result<()> {
        Ok(())
    }

    fn prompts(
        &self,
        count: Option<usize>,
        seed: u64,
        pipeline: &ClassPipeline,
    ) -> anyhow::Result<Vec<usize>> {
        let classes = pipeline.classes();
        let whole = self.class.as_deref().map(|name| pipeline.labels().named(name));
        let named: Vec<usize> = match (self.class.as_deref(), whole.transpose()?.flatten()) {
            (None, _) => {
                return Ok((0..classes).cycle().take(count.unwrap_or(DEFAULT_COUNT)).collect());
            }
            (_, Some(class)) => vec![class],
            (Some("random"), _) => {
                // A class depends on the seed of its image only.
                let random = |i| {
                    (SplitMix64::new(seed.wrapping_add(i)).next_u64() % classes as u64) as usize
                };
                (0..count.unwrap_or(1) as u64).map(random).collect()
            }
            (Some(names), _) => {
                names.split(',').map(|name| pipeline.class(name)).collect::<Result<_, _>>()?
            }
        };
        in_turn(named, count, "classes")
    }

    fn is_sheet(&self) -> bool {
        self.class.is_none()
    }

    /// Of another size than the model's.
    fn warn(
        &self,
        request: &Request<usize>,
        pipeline: &ClassPipeline,
        common: &Common,
    ) -> anyhow::Result<()> {
        let [own_height, own_width] = pipeline.size();
        match request.size {
            Some([height, width]) if [height, width] != [own_height, own_width] => {
                common.say(&format!(
                    "warning: the model was trained at {own_width}x{own_height}, {width}x{height} may look wrong"
                ));
            }
            _ => (),
        }
        Ok(())
    }
}

#[derive(Args)]
pub(crate) struct Text {
    /// What the images show, each in quotes; - reads a prompt from every line of standard input
    #[arg(value_name = "PROMPT", conflicts_with = "from_metadata")]
    prompts: Vec<String>,
    /// Text file with a prompt in every line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "from_metadata"])]
    prompt_file: Option<PathBuf>,
    /// What the images should not show [default: nothing in particular]
    #[arg(long, value_name = "PROMPT")]
    negative_prompt: Option<String>,
    /// Text encoder, for a checkpoint that comes without one: its folder, that of a pipeline, or a file
    #[arg(long)]
    text_encoder: Option<PathBuf>,
    /// Folder of the tokenizer, if it is not with the text encoder
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Take prompts as they are, in lower case, without the cleaning that captions had
    #[arg(long)]
    raw_prompt: bool,
    /// Most tokens of a prompt, whose rest is cut off [default: as many as the model learned from]
    #[arg(long, value_parser = whole(1, MAX_TOKENS))]
    max_tokens: Option<usize>,
    /// Make images at the size asked for, not at the nearest one that the model was trained at
    #[arg(long)]
    exact_size: bool,
    #[command(flatten)]
    images: Images,
}

impl Text {
    /// The prompts asked for, without blank lines.
    fn asked(&self) -> anyhow::Result<Vec<String>> {
        let asked = match (&self.prompt_file, self.prompts.as_slice()) {
            (Some(file), _) => prompts(file)?,
            (None, [only]) if only == "-" => {
                let mut input = String::new();
                let limited = &mut std::io::stdin().lock().take(MAX_INPUT);
                limited.read_to_string(&mut input).context("standard input")?;
                ensure!(input.len() < MAX_INPUT as usize, "more than 16 MB on standard input");
                let asked = lines(&input);
                ensure!(!asked.is_empty(), "standard input holds no prompt");
                asked
            }
            (None, prompts) => prompts.to_vec(),
        };
        ensure!(!asked.is_empty(), "no prompt: say in quotes what the images show");
        Ok(asked)
    }
}

impl Kind for Text {
    type Task = TextTask;

    fn images(&self) -> &Images {
        &self.images
    }

    fn model(&self) -> anyhow::Result<&Path> {
        bail!("no model: name the folder of one that reads texts with --model")
    }

    fn parts(
        &self,
        earlier: Option<&Earlier>,
        options: &mut OpenOptions<'_>,
    ) -> anyhow::Result<()> {
        let found = |Earlier { record, search, .. }: &Earlier| search.text_encoder(record);
        options.text_encoder = match &self.text_encoder {
            Some(encoder) => Some(encoder.clone()),
            None => earlier.map(found).transpose()?.flatten(),
        };
        options.tokenizer.clone_from(&self.tokenizer);
        Ok(())
    }

    fn ask(&self, request: &mut Request<String>) -> anyhow::Result<()> {
        request.negative = self.negative_prompt.clone().or(request.negative.take());
        request.raw_prompt |= self.raw_prompt;
        request.tokens = self.max_tokens.or(request.tokens);
        request.exact_size |= self.exact_size;
        Ok(())
    }

    fn prompts(
        &self,
        count: Option<usize>,
        _: u64,
        _: &TextPipeline,
    ) -> anyhow::Result<Vec<String>> {
        in_turn(self.asked()?, count, "prompts")
    }

    fn is_sheet(&self) -> bool {
        false
    }

    /// Of prompts that are too long, and of an area that the model was not trained for.
    fn warn(
        &self,
        request: &Request<String>,
        pipeline: &TextPipeline,
        common: &Common,
    ) -> anyhow::Result<()> {
        for cut in pipeline.task().cut(request)? {
            common.say(&format!(
                "warning: the model reads {} tokens of a prompt, not its end: {}",
                cut.tokens, cut.part
            ));
        }
        let settings = request.settings(&pipeline.config().defaults);
        let [_, _, height, width] = pipeline.shape(1, &settings)?;
        let made = [height, width].map(|side| side * pipeline.factor());
        let [own, area] = [pipeline.size(), made].map(|[height, width]| height * width);
        if own.max(area) > FAR * own.min(area) {
            let ([height, width], [own_height, own_width]) = (made, pipeline.size());
            common.say(&format!(
                "warning: the model was trained at about {own_width}x{own_height}, {width}x{height} may look wrong"
            ));
        }
        Ok(())
    }
}

/// So many of these, in turn.
fn in_turn<P: Clone>(asked: Vec<P>, count: Option<usize>, what: &str) -> anyhow::Result<Vec<P>> {
    let images = count.unwrap_or(asked.len());
    let given = asked.len();
    let of_images = counted(images, "image", "images");
    ensure!(images >= given, "{given} {what} for {of_images}: some would be left out");
    Ok(asked.into_iter().cycle().take(images).collect())
}
