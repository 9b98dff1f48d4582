//! What every command shares: its options, the device, Ctrl-C.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use clap::Args;
use pyrograph::device::{self, Notice, Opened};
use pyrograph::{DeviceChoice, Error, Hooks};

use crate::probe::probe;

/// Options of every command.
#[derive(Args)]
pub(crate) struct Common {
    /// auto, cpu, gpu or gpu:N
    #[arg(long, global = true, default_value = "auto")]
    pub(crate) device: String,
    /// CPU threads [default: all cores]
    #[arg(long, short = 't', global = true)]
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
        let choice: DeviceChoice = self.device.parse().map_err(Error::from)?;
        let notify = |notice| self.tell(&notice);
        let hooks = Hooks { notify: Some(&notify), probe: Some(&probe) };
        let opened = device::open(choice, &hooks)?;
        let _ = OPENED.set(opened.device.clone());
        if self.verbose {
            self.say(&format!("device: {opened}"));
        }
        Ok(opened)
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
        let style = indicatif::ProgressStyle::with_template(template)
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
        indicatif::ProgressBar::new(length).with_style(style)
    }
}

/// Set by Ctrl-C.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The device in use.
static OPENED: OnceLock<Device> = OnceLock::new();

/// Exit code after Ctrl-C, as shells expect.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// Lets Ctrl-C stop the work at the next step, and a second one end at once.
pub(crate) fn catch_interrupt() {
    let handler = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
    });
    if let Err(error) = handler {
        eprintln!("warning: Ctrl-C will end at once: {error}");
    }
}

/// Stop as soon as possible, or go on.
pub(crate) fn interrupted() -> ControlFlow<()> {
    match INTERRUPTED.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Waits for the device: drivers crash when the process ends under a GPU at work, as it may be after an error.
pub(crate) fn settle() {
    if let Some(device) = OPENED.get() {
        let _ = device.sync();
    }
}
