//! `pyrograph train`.

use std::path::PathBuf;

use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use pyrograph::data::Dataset;
use pyrograph::model;
use pyrograph::train::{Event, Run, TrainConfig, reconstruct};
use pyrograph::weights::FloatDtype;

use crate::bench::peak_memory;
use crate::common::{Common, interrupted};

/// Options of every training run.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// TOML file of settings
    #[arg(long)]
    config: Option<PathBuf>,
    /// Setting that overrides the file, such as model.hidden=128
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Steps of the run
    #[arg(long)]
    steps: Option<u64>,
    /// Images per step
    #[arg(long)]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Seed of weights, data order and noise
    #[arg(long)]
    seed: Option<u64>,
    /// Go on from the newest checkpoint of the run
    #[arg(long)]
    pub(crate) resume: bool,
}

impl RunArgs {
    /// `base` with what these options say; `further` are overrides from other options.
    pub(crate) fn settle(
        &self,
        base: &TrainConfig,
        further: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<TrainConfig> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| path.display().to_string())
        };
        let text = self.config.as_ref().map(read).transpose()?.unwrap_or_default();
        let mut overrides = self.set.clone();
        overrides.extend(self.steps.map(|value| format!("steps={value}")));
        overrides.extend(self.batch.map(|value| format!("batch={value}")));
        overrides.extend(self.lr.map(|value| format!("learning_rate.peak={value}")));
        overrides.extend(self.seed.map(|value| format!("seed={value}")));
        overrides.extend(further);
        Ok(base.with(&text, &overrides)?)
    }
}

/// Trains to the end or to Ctrl-C, with a progress bar.
pub(crate) fn follow(run: &mut Run, common: &Common) -> anyhow::Result<()> {
    common.say(&format!("{} parameters", run.net().config().parameters()));
    let template = "{bar:30} step {pos}/{len}, {elapsed} gone, {eta} left  {msg}";
    let bar = common.progress_bar(run.config().steps, template);
    bar.set_position(run.step());
    bar.reset_eta();
    let flow = run.train(&mut |event| {
        match event {
            Event::Step { step, loss, rate } => {
                bar.set_position(step);
                if let Some(loss) = loss {
                    bar.set_message(format!("loss {loss:.4}, {rate:.1} images/s"));
                    if common.json {
                        let line = serde_json::json!({
                            "step": step, "loss": loss, "images_per_second": rate,
                        });
                        println!("{line}");
                    }
                }
            }
            Event::Wrote(path) if common.verbose => {
                bar.suspend(|| common.say(&format!("wrote {}", path.display())));
            }
            Event::Wrote(_) => (),
            Event::Resumed(step) => common.say(&format!("resumed at step {step}")),
        }
        interrupted()
    })?;
    bar.finish_and_clear();
    match flow.is_break() {
        true => common.say(&format!("stopped and saved at step {}", run.step())),
        false => common.say(&format!("finished: {}", run.folder().join("model").display())),
    }
    if common.verbose
        && let Some(megabytes) = peak_memory()
    {
        common.say(&format!("peak memory: {megabytes:.0} MB"));
    }
    Ok(())
}

#[derive(Args)]
pub(crate) struct Class {
    /// Folder with one sub-folder of images per class, or with a metadata.jsonl
    #[arg(long, short)]
    data: PathBuf,
    /// Folder of the run: checkpoints, log, samples and the finished model
    #[arg(long, short, default_value = "runs/class")]
    output: PathBuf,
    /// Model to start from, such as one of `pyrograph flexify`
    #[arg(long, value_name = "MODEL")]
    init: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(crate) fn run(args: &Class, common: &Common) -> anyhow::Result<()> {
    let mut config = args.run.settle(&TrainConfig::default(), [])?;
    if let Some(model) = args.init.clone().or(config.init.clone()) {
        config = config.starting_from(model::find(&model)?)?;
    }
    let opened = common.open()?;
    let data = Dataset::open(&args.data, config.model.size, config.background.clone())?;
    common.say(&format!("{} images in {} classes", data.len(), data.classes().len()));
    let mut run = Run::on_images(&args.output, config, data, args.run.resume, &opened.device)?;
    follow(&mut run, common)
}

#[derive(Args)]
pub(crate) struct AverageArgs {
    /// Folder of a run that was trained with `snapshot_every`
    run: PathBuf,
    /// Relative width of the power-function average, above 0 and below 0.28
    #[arg(long)]
    width: f64,
    /// Step at which the average ends [default: the last]
    #[arg(long)]
    step: Option<u64>,
    /// Folder of the bundle to write
    #[arg(long, short)]
    output: PathBuf,
    /// Replace an existing bundle
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn average(args: &AverageArgs, common: &Common) -> anyhow::Result<()> {
    let device = Device::flex();
    let model = reconstruct(&args.run, args.width, args.step, &device)?;
    model.save(&args.output, model.manifest()?, FloatDtype::F16, args.overwrite)?;
    common.say(&format!("average of width {}: {}", args.width, args.output.display()));
    Ok(())
}
