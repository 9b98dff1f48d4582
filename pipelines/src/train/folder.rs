//! The folder of a run: who works in it, and the settings that it goes on with.

use std::path::{Path, PathBuf};

use pyrograph_weights::{
    check_target, check_writable, read_at_most, remove_unfinished, write_whole,
};

use super::checkpoint::{self, CHECKPOINTS, SNAPSHOTS};
use super::config::TrainConfig;
use super::samples::SAMPLES;
use crate::error::{Error, Result};
use crate::lock::Lock;

/// Name of the settings in the folder.
const CONFIG: &str = "config.toml";
/// Name of the model in the folder.
pub(super) const MODEL: &str = "model";
/// Largest file of settings that is read.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// The folder of a run, which nobody else can train in as long as this is there.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    resume: bool,
    _lock: Lock,
}

impl RunFolder {
    /// Checks, before any work and without making anything, that a run can start in a folder, or with `resume` go on.
    ///
    /// # Errors
    /// A folder that cannot be written, in which another process trains, or that holds a run without `resume`; a `model`
    /// that is more than a model.
    pub fn check(path: &Path, resume: bool) -> Result<()> {
        if let (Some(path), false) = (checkpoint::newest(path)?, resume) {
            return Err(Error::RunExists { path });
        }
        Lock::check(path)?;
        check_writable(path)?;
        let model = path.join(MODEL);
        if model.exists() {
            check_target(&model, true)?;
        }
        Ok(())
    }

    /// Takes a folder for a run that starts, or with `resume` for one that goes on, if there is one.
    ///
    /// # Errors
    /// Those of [`RunFolder::check`].
    pub fn open(path: &Path, resume: bool) -> Result<Self> {
        Self::check(path, resume)?;
        let lock = Lock::take(path)?;
        // Nobody else writes here: what is unfinished is of a run that was killed.
        let folders = ["", CHECKPOINTS, SNAPSHOTS, SAMPLES];
        folders.iter().for_each(|folder| remove_unfinished(&path.join(folder)));
        Ok(Self { path: path.to_owned(), resume, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a run in it goes on.
    pub(super) fn resume(&self) -> bool {
        self.resume
    }

    /// The settings of the run in a folder, if there is one.
    ///
    /// # Errors
    /// Settings or checkpoints that cannot be read.
    pub fn settings(path: &Path) -> Result<Option<TrainConfig>> {
        let file = path.join(CONFIG);
        if !file.exists() {
            return checkpoint::settings(path);
        }
        let bytes = read_at_most(&file, MAX_CONFIG_BYTES)?;
        let fault = |reason: String| Error::Settings { path: file.clone(), reason };
        let text = String::from_utf8(bytes).map_err(|error| fault(error.to_string()))?;
        let config = TrainConfig::parse(&text, &[]).map_err(|error| fault(error.to_string()))?;
        Ok(Some(config))
    }

    /// Keeps the settings of the run, for [`RunFolder::settings`].
    ///
    /// # Errors
    /// Settings that are out of range or that TOML does not have, or a folder that cannot be written.
    pub fn keep(&self, config: &TrainConfig) -> Result<()> {
        config.check()?;
        let text = format!("# The settings of this run.\n\n{}", config.text()?);
        Ok(write_whole(&self.path.join(CONFIG), text.as_bytes())?)
    }
}
