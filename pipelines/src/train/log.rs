//! `log.csv` and the loss curve of a run.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use pyrograph_engine::read;
use pyrograph_engine::train::StepReport;
use pyrograph_weights::write_whole;

use crate::error::{Error, Result};
use crate::image::write_image;
use crate::plot::loss_curve;

const HEADER: &str = "step,loss,images_per_second,learning_rate,gradient_norm,seconds";
/// Columns of a line.
const COLUMNS: usize = 6;

pub(super) struct Log {
    path: PathBuf,
    /// Steps and losses of all lines.
    points: Vec<(f64, f64)>,
    /// Losses and norms of the gradients since the last line, each `[1]`, still on the device.
    reports: Vec<StepReport>,
    /// When the last line was written.
    since: Instant,
    /// Time of training up to then, that of earlier parts of the run included.
    spent: Duration,
}

/// What a run did since its log was last written.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Line {
    /// Mean loss.
    pub loss: f64,
    /// Images per second.
    pub rate: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Mean norm of the gradients before they were clipped.
    pub gradient_norm: f64,
    /// Seconds of training since the start of the run.
    pub seconds: f64,
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
        let number = |line: &str, column: usize| line.split(',').nth(column)?.parse::<f64>().ok();
        let points = kept.iter().filter_map(|line| Some((number(line, 0)?, number(line, 1)?)));
        let points = points.collect();
        let spent = kept.last().and_then(|line| number(line, COLUMNS - 1)).unwrap_or(0.0);
        let mut text = format!("{HEADER}\n");
        for line in kept {
            // Earlier versions wrote fewer columns.
            let missing = COLUMNS.saturating_sub(line.split(',').count());
            text.extend([line, &",".repeat(missing), "\n"]);
        }
        write_whole(&path, text.as_bytes())?;
        let spent = Duration::try_from_secs_f64(spent).unwrap_or_default();
        Ok(Self { path, points, reports: Vec::new(), since: Instant::now(), spent })
    }

    /// Notes what a step reported.
    pub(super) fn add(&mut self, report: StepReport) {
        self.reports.push(report);
    }

    /// Writes a line about the steps of `batch` images since the line before; the last had `learning_rate`.
    ///
    /// # Errors
    /// A loss that is not finite, a GPU that failed, or a file that cannot be written.
    pub(super) fn line(&mut self, step: u64, batch: usize, learning_rate: f64) -> Result<Line> {
        let images = self.reports.len() * batch;
        let reports = std::mem::take(&mut self.reports).into_iter();
        let (losses, norms): (Vec<_>, Vec<_>) =
            reports.map(|report| (report.loss, report.gradient_norm)).unzip();
        let mean = |values: Vec<Tensor<1>>| read::number(Tensor::cat(values, 0).mean());
        let (loss, gradient_norm) = (mean(losses)?, mean(norms)?);
        if !loss.is_finite() {
            return Err(Error::Diverged { step, loss });
        }
        let passed = self.since.elapsed();
        self.since = Instant::now();
        self.spent += passed;
        let line = Line {
            loss: f64::from(loss),
            rate: images as f64 / passed.as_secs_f64(),
            learning_rate,
            gradient_norm: f64::from(gradient_norm),
            seconds: self.spent.as_secs_f64(),
        };
        self.points.push((step as f64, line.loss));
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            let Line { loss, rate, learning_rate, gradient_norm, seconds } = line;
            writeln!(
                file,
                "{step},{loss:.6},{rate:.2},{learning_rate:.6e},{gradient_norm:.6},{seconds:.2}"
            )
        };
        write().map_err(|source| Error::File { path: self.path.clone(), source })?;
        Ok(line)
    }

    /// Draws the loss curve beside the log.
    pub(super) fn plot(&self) -> Result<()> {
        if self.points.len() < 2 {
            return Ok(());
        }
        write_image(&self.path.with_file_name("loss.png"), &loss_curve(&self.points)?, &[])
    }
}
