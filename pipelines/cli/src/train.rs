//! `pyrograph train`.

mod images;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use burn::tensor::Device;
use clap::Args;
use indicatif::{HumanDuration, ProgressBar};
use pyrograph::Error;
use pyrograph::data::{Dataset, Reading};
use pyrograph::engine::train::Decay;
use pyrograph::text::read_text;
use pyrograph::train::{Averaged, Event, Line, Run, RunFolder, SETTINGS, TrainConfig, reconstruct};
use pyrograph::weights::{FloatDtype, check_target};

pub(crate) use images::{Class, Control, Lora, Text, class, control, lora, text};

use crate::bench::peak_memory;
use crate::common::{Common, interrupted, whole};
use crate::interrupt::hold;

/// Largest number of a setting.
const LARGEST: usize = i64::MAX as usize;

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
    #[arg(long, value_parser = whole(1, LARGEST))]
    steps: Option<usize>,
    /// Images per step
    #[arg(long, value_parser = whole(1, LARGEST))]
    batch: Option<usize>,
    /// Peak learning rate
    #[arg(long)]
    lr: Option<f64>,
    /// Seed of weights, data order and noise
    #[arg(long, value_parser = whole(0, LARGEST))]
    seed: Option<usize>,
    /// Leave out images that cannot be read
    #[arg(long)]
    skip_damaged: bool,
    /// Go on from the newest checkpoint of a run, whose settings need not be given again
    #[arg(long, value_name = "RUN", num_args = 0..=1)]
    resume: Option<Option<PathBuf>>,
}

impl RunArgs {
    /// The folder of the run: the one that goes on, or `output`.
    pub(crate) fn folder(&self, output: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
        match (&self.resume, output) {
            (Some(Some(run)), Some(output)) if run != output => {
                bail!("--resume {} and --output {}: one folder", run.display(), output.display())
            }
            (Some(Some(run)), _) if RunFolder::settings(run)?.is_none() => {
                bail!("{}: there is no run to go on with", run.display())
            }
            (Some(Some(run)), _) => Ok(Some(run.clone())),
            (_, output) => Ok(output.map(Path::to_owned)),
        }
    }

    /// Whether a run goes on, if there is one.
    pub(crate) fn is_resumed(&self) -> bool {
        self.resume.is_some()
    }

    /// The settings of the run in `folder` that goes on, if one does.
    pub(crate) fn stored(&self, folder: &Path) -> anyhow::Result<Option<TrainConfig>> {
        match self.is_resumed() {
            true => Ok(RunFolder::settings(folder)?),
            false => Ok(None),
        }
    }

    /// `base` with what these options say; `further` are overrides from other options.
    pub(crate) fn settle(
        &self,
        base: &TrainConfig,
        further: impl IntoIterator<Item = String>,
    ) -> anyhow::Result<TrainConfig> {
        let text = self.config.as_deref().map(read_text).transpose()?.unwrap_or_default();
        let mut overrides = self.set.clone();
        overrides.extend(self.steps.map(|value| format!("steps={value}")));
        overrides.extend(self.batch.map(|value| format!("batch={value}")));
        // TOML writes `nan` in small letters.
        let rate = |value: f64| format!("learning_rate.peak={value:?}").to_lowercase();
        overrides.extend(self.lr.map(rate));
        overrides.extend(self.seed.map(|value| format!("seed={value}")));
        overrides.extend(self.skip_damaged.then(|| "skip_damaged=true".to_owned()));
        overrides.extend(further);
        Ok(base.with(&text, &overrides)?)
    }
}

/// A setting that is a path.
pub(crate) fn path_setting(key: &str, path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| format!("{}: not UTF-8", path.display()))?;
    // A text of JSON is one of TOML.
    Ok(format!("{key}={}", serde_json::Value::from(text)))
}

/// Says what becomes of a learning rate that falls to zero at the end, where the end moves.
pub(crate) fn warn_of_decay(stored: Option<&TrainConfig>, config: &TrainConfig, common: &Common) {
    if let Some(stored) = stored
        && stored.steps != config.steps
        && config.learning_rate.decay == (Decay::Cosine {})
    {
        let (was, is) = (stored.steps, config.steps);
        common.say(&format!(
            "warning: the learning rate falls to 0 at the last step, which was {was} and is {is}: it jumps"
        ));
    }
}

/// Shortest time between two lines of progress where there is no terminal.
const PULSE: Duration = Duration::from_secs(10);

/// Progress of a run: a bar on a terminal, else a line every so often.
struct Progress<'a> {
    common: &'a Common,
    bar: ProgressBar,
    /// Where the run starts.
    first: u64,
    started: Instant,
    /// When the last line was written.
    told: Option<Instant>,
}

impl<'a> Progress<'a> {
    fn new(common: &'a Common, run: &Run) -> Self {
        let template = "{bar:30} step {pos}/{len}, {elapsed} gone, {eta} left  {msg}";
        let bar = common.progress_bar(run.config().steps, template);
        bar.set_position(run.step());
        bar.reset_eta();
        Self { common, bar, first: run.step(), started: Instant::now(), told: None }
    }

    fn step(&mut self, step: u64, steps: u64, line: Option<Line>) {
        self.bar.set_position(step);
        let Some(Line { loss, rate, learning_rate, gradient_norm, seconds, .. }) = line else {
            return;
        };
        let message = format!("loss {loss:.4}, {rate:.1} images/s");
        if self.common.json {
            let line = serde_json::json!({
                "step": step, "loss": loss, "images_per_second": rate,
                "learning_rate": learning_rate, "gradient_norm": gradient_norm, "seconds": seconds,
            });
            println!("{line}");
        } else if self.bar.is_hidden() {
            let due = self.told.is_none_or(|told| told.elapsed() >= PULSE);
            if due || step == steps {
                self.told = Some(Instant::now());
                let gone = self.started.elapsed();
                let share = (steps - step) as f64 / (step - self.first).max(1) as f64;
                let [gone, left] = [gone, gone.mul_f64(share)]
                    .map(|time| HumanDuration(Duration::from_secs(time.as_secs())));
                self.common
                    .say(&format!("step {step}/{steps}, {gone} gone, {left} left, {message}"));
            }
        } else {
            self.bar.set_message(message);
        }
    }
}

/// Trains to the end or to Ctrl-C, with a progress bar.
pub(crate) fn follow(run: &mut Run, common: &Common) -> anyhow::Result<()> {
    match (run.trained(), run.net().config().parameters()) {
        (trained, all) if trained < all => {
            common.say(&format!("trains {trained} parameters beside {all} of the model"));
        }
        (_, all) => common.say(&format!("{all} parameters")),
    }
    let adopted = run.adopted().filter(|adopted| run.step() == 0 && !adopted.is_same());
    adopted.into_iter().for_each(|adopted| common.say(&adopted.to_string()));
    run.notices().iter().for_each(|notice| common.say(&notice.to_string()));
    let mut progress = Progress::new(common, run);
    let steps = run.config().steps;
    let mut saving = None;
    let flow = run.train(&mut |event| {
        match event {
            Event::Step { step, line } => progress.step(step, steps, line),
            Event::Saving => saving = Some(hold()),
            Event::Wrote(path) => {
                saving = None;
                if common.verbose {
                    progress.bar.suspend(|| common.say(&format!("wrote {}", path.display())));
                }
            }
            Event::Damaged { path, reason } => {
                let path = path.display();
                common.say(&format!("warning: {path} is not used, it is damaged: {reason}"));
            }
            Event::Resumed(step) => common.say(&format!("resumed at step {step}")),
            Event::Working => (),
        }
        interrupted()
    })?;
    drop(saving);
    progress.bar.finish_and_clear();
    if flow.is_break() {
        common.say(&format!("stopped and saved at step {}", run.step()));
        return Err(Error::Cancelled.into());
    }
    common.say(&format!("finished: {}", run.product().display()));
    if common.verbose
        && let Some(megabytes) = peak_memory()
    {
        common.say(&format!("peak memory: {megabytes:.0} MB"));
    }
    Ok(())
}

/// Reads a folder of images and tells what of it was left out; Ctrl-C stops.
pub(crate) fn read(
    folder: &Path,
    reading: Reading<'_>,
    common: &Common,
) -> anyhow::Result<Dataset> {
    let data = Dataset::read(folder, Reading { observe: Some(&interrupted), ..reading })?;
    for notice in data.notices() {
        common.say(&notice.to_string());
    }
    Ok(data)
}

/// Every setting with its values, default and meaning.
fn print_settings() -> anyhow::Result<()> {
    println!("Settings of --set KEY=VALUE, and of a TOML file of --config:");
    for setting in SETTINGS {
        let default = setting.default().map(|value| format!(" [default: {value}]"));
        println!("\n{}  {}{}", setting.key, setting.values(), default.unwrap_or_default());
        println!("    {}", setting.meaning);
    }
    Ok(())
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

/// Error of an average, as a share, above which it is told.
const TOLD: f64 = 0.02;

pub(crate) fn average(args: &AverageArgs, common: &Common) -> anyhow::Result<()> {
    check_target(&args.output, args.overwrite).map_err(Error::from)?;
    let device = Device::flex();
    let Averaged { model, error } = reconstruct(&args.run, args.width, args.step, &device)?;
    if error > TOLD {
        let share = 100.0 * error;
        common.say(&format!("warning: the snapshots express this average to within {share:.0} %"));
    }
    model.save(&args.output, model.manifest()?, FloatDtype::F16, args.overwrite)?;
    common.say(&format!("average of width {}: {}", args.width, args.output.display()));
    Ok(())
}
