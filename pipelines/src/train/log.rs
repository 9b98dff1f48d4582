//! `log.csv` and the loss curve of a run.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Tensor;

use crate::error::{Error, Result};
use crate::image::{write_image, write_whole};
use crate::plot::loss_curve;

const HEADER: &str = "step,loss,images_per_second";

pub(super) struct Log {
    path: PathBuf,
    /// Steps and losses of all lines.
    points: Vec<(f64, f64)>,
    /// Losses since the last line, each `[1]`, still on the device.
    losses: Vec<Tensor<1>>,
    /// When the last line was written.
    since: Instant,
}

/// A line of the log.
pub(super) struct Line {
    /// Mean loss since the line before.
    pub(super) loss: f64,
    /// Images per second since the line before.
    pub(super) rate: f64,
}

impl Log {
    /// Opens the log of a run, dropping the lines after `step`.
    pub(super) fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join("log.csv");
        let earlier = match step {
            0 => String::new(),
            _ => std::fs::read_to_string(&path).unwrap_or_default(),
        };
        let at = |line: &str| line.split(',').next()?.parse::<u64>().ok();
        let kept: Vec<&str> =
            earlier.lines().filter(|line| at(line).is_some_and(|at| at <= step)).collect();
        let point = |line: &&str| {
            let mut fields = line.split(',').map(|field| field.parse::<f64>());
            Some((fields.next()?.ok()?, fields.next()?.ok()?))
        };
        let points = kept.iter().filter_map(point).collect();
        let mut text = format!("{HEADER}\n");
        kept.iter().for_each(|line| text.extend([line, "\n"]));
        write_whole(&path, text.as_bytes())?;
        Ok(Self { path, points, losses: Vec::new(), since: Instant::now() })
    }

    /// Notes the loss of a step, `[1]`.
    pub(super) fn add(&mut self, loss: Tensor<1>) {
        self.losses.push(loss);
    }

    /// Writes a line about the steps of `batch` images since the line before.
    ///
    /// # Errors
    /// A loss that is not finite, or a file that cannot be written.
    pub(super) fn line(&mut self, step: u64, batch: usize) -> Result<Line> {
        let images = self.losses.len() * batch;
        let loss = Tensor::cat(std::mem::take(&mut self.losses), 0).mean().into_scalar::<f32>();
        if !loss.is_finite() {
            return Err(Error::Diverged { step, loss });
        }
        let (loss, rate) = (f64::from(loss), images as f64 / self.since.elapsed().as_secs_f64());
        self.since = Instant::now();
        self.points.push((step as f64, loss));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            writeln!(file, "{step},{loss:.6},{rate:.2}")
        };
        write().map_err(|source| Error::File { path: self.path.clone(), source })?;
        Ok(Line { loss, rate })
    }

    /// Draws the loss curve beside the log.
    pub(super) fn plot(&self) -> Result<()> {
        if self.points.len() < 2 {
            return Ok(());
        }
        write_image(&self.path.with_file_name("loss.png"), &loss_curve(&self.points)?, &[])
    }
}
