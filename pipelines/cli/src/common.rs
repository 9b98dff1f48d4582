//! What every command shares: its options and the device.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::Args;
use pyrograph::device::{self, Notice, Opened};
use pyrograph::text::read_text;
use pyrograph::{DeviceChoice, Error, Hooks, model};

pub(crate) use crate::interrupt::interrupted;
use crate::probe::probe;
use crate::silence::Silence;

/// Most timesteps that a model is trained on.
const STEPS: usize = 100_000;

/// Reads a whole number from `low` to `high`.
pub(crate) fn whole(
    low: usize,
    high: usize,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| (low..=high).contains(number));
        number.ok_or_else(|| match high {
            usize::MAX => format!("expected {low} or more"),
            high => format!("expected {low} to {high}"),
        })
    }
}

/// Reads a number of sampling steps, the most of any model; that of the model is compared when it is open.
pub(crate) fn parse_steps(text: &str) -> Result<usize, String> {
    whole(1, STEPS)(text).map_err(|_| {
        "expected 1 to 10000, or to the number of timesteps that the model was trained on".into()
    })
}

/// A number of things, by the names of one and of several.
pub(crate) fn counted(count: usize, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

/// Options of every command.
#[derive(Args)]
pub(crate) struct Common {
    /// auto, cpu, gpu or gpu:N
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) device: String,
    /// CPU threads, at most one per core [default: all cores]
    #[arg(long, short = 't', global = true, value_parser = whole(1, usize::MAX))]
    pub(crate) threads: Option<usize>,
    /// Print machine-readable JSON lines on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print errors only
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Print more
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
}

impl Common {
    /// Opens the device asked for.
    pub(crate) fn open(&self) -> anyhow::Result<Opened> {
        if let Some(opened) = OPENED.get() {
            return Ok(opened.clone());
        }
        let choice: DeviceChoice = self.device.parse().map_err(Error::from)?;
        let opened = {
            let silence = self.silence();
            let notify = |notice| silence.around(|| self.tell(&notice));
            let hooks = Hooks { notify: Some(&notify), probe: Some(&probe) };
            device::open(choice, &hooks)?
        };
        if self.verbose {
            self.say(&format!("device: {opened}"));
        }
        Ok(OPENED.get_or_init(|| opened).clone())
    }

    /// The path of a model by its name or path. Says where a shipped one is unpacked that found no place for good.
    pub(crate) fn find(&self, model: &Path) -> anyhow::Result<PathBuf> {
        let found = model::find(model)?;
        if !model.exists() && found.starts_with(std::env::temp_dir().join("pyrograph")) {
            let (model, found) = (model.display(), found.display());
            self.say(&format!(
                "{model} is unpacked among the temporary files, {found}: no cache folder can be written, see HOME"
            ));
        }
        Ok(found)
    }

    /// Keeps drivers quiet until it is dropped.
    pub(crate) fn silence(&self) -> Silence {
        Silence::start(!self.verbose)
    }

    /// The number of threads asked for, as far as there are cores: more would only wait for each other.
    pub(crate) fn threads(&self) -> Option<usize> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let asked = self.threads?;
        if asked > cores {
            self.say(&format!("warning: {asked} threads asked for, using {cores}, one per core"));
        }
        Some(asked.min(cores))
    }

    /// What the library has to say.
    pub(crate) fn tell(&self, notice: &Notice) {
        match notice.is_warning() {
            true => self.say(&format!("warning: {notice}")),
            false => self.say(&notice.to_string()),
        }
    }

    /// A line for people, on standard error.
    pub(crate) fn say(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    pub(crate) fn progress_bar(&self, length: u64, template: &str) -> indicatif::ProgressBar {
        if self.quiet || self.json {
            return indicatif::ProgressBar::hidden();
        }
        // Of no steps nothing follows.
        let eta = |state: &indicatif::ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = match state.pos() {
                0 => write!(text, "?"),
                _ => write!(text, "{:#}", indicatif::HumanDuration(state.eta())),
            };
        };
        let style = indicatif::ProgressStyle::with_template(template)
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar())
            .with_key("eta", eta);
        indicatif::ProgressBar::new(length).with_style(style)
    }
}

/// A LoRA to put on, or a branch.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weighted {
    pub(crate) file: PathBuf,
    pub(crate) weight: f64,
}

/// Reads a file and a weight.
pub(crate) fn parse_weighted(text: &str) -> anyhow::Result<Weighted> {
    // A colon can also be part of a path.
    let weighted =
        text.rsplit_once(':').and_then(|(file, weight)| Some((file, weight.parse().ok()?)));
    let (file, weight) = weighted.unwrap_or((text, 1.0));
    anyhow::ensure!(!file.is_empty(), "`{text}`, expected FILE or FILE:WEIGHT");
    Ok(Weighted { file: file.into(), weight })
}

/// The lines of a text, without blank ones.
pub(crate) fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The prompts in a file, one in every line.
pub(crate) fn prompts(file: &Path) -> anyhow::Result<Vec<String>> {
    let found = lines(&read_text(file)?);
    anyhow::ensure!(!found.is_empty(), "{} holds no prompt", file.display());
    Ok(found)
}

/// The device in use.
static OPENED: OnceLock<Opened> = OnceLock::new();

/// Waits for the device: drivers crash when the process ends under a GPU at work, as it may be after an error.
pub(crate) fn settle() {
    if let Some(opened) = OPENED.get() {
        let _ = opened.device.sync();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_of_a_lora_is_a_number_after_the_last_colon() {
        let cases = [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors:0.5", "a.safetensors", 0.5),
            ("a.safetensors:-1", "a.safetensors", -1.0),
            (r"C:\loras\a", r"C:\loras\a", 1.0),
            (r"C:\loras\a:2", r"C:\loras\a", 2.0),
        ];
        for (text, file, weight) in cases {
            let expected = Weighted { file: file.into(), weight };
            assert_eq!(parse_weighted(text).expect("a LoRA"), expected, "{text}");
        }
        assert!(parse_weighted(":1").is_err());
    }
}
