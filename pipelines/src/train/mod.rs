//! Training a class-conditional model from a folder of images, or a few-step student from the trajectories of
//! its teacher.

mod average;
mod checkpoint;
mod config;
mod critic;
mod denoising;
mod distillation;
mod learner;
mod log;
mod outline;
mod samples;
mod shape;
mod streams;
mod student;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::Net;
use pyrograph_engine::ops;
use pyrograph_engine::train::Precision;
use pyrograph_weights::FloatDtype;

pub use average::reconstruct;
pub use config::{PatchPhase, TrainConfig};
pub use shape::{Kind, ModelShape};
pub use student::{Adversarial, StudentShape};

use crate::data::{Dataset, Order};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::trajectories::Trajectories;
use denoising::DenoisingLearner;
use distillation::StudentLearner;
use learner::Learner;
use log::{Line, Log};
use outline::Outline;
use streams::Streams;

/// What a running training reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// After every step.
    Step {
        /// Steps taken.
        step: u64,
        /// Mean loss since the last report, when it was read from the device.
        loss: Option<f64>,
        /// Images per second since the last report.
        rate: f64,
    },
    /// A file was written.
    Wrote(&'a Path),
    /// The run starts at this step, from a checkpoint.
    Resumed(u64),
}

/// A training run: its folder, settings and state.
pub struct Run {
    folder: PathBuf,
    config: TrainConfig,
    learner: Learner,
    outline: Outline,
    device: Device,
}

impl Run {
    /// Prepares a run on images in `folder`; with `resume`, from its newest checkpoint.
    ///
    /// # Errors
    /// A folder that holds another run, a configuration that does not fit the checkpoint or the data,
    /// unreadable files.
    pub fn on_images(
        folder: &Path,
        config: TrainConfig,
        data: Dataset,
        resume: bool,
        device: &Device,
    ) -> Result<Self> {
        prepare(folder, &config, device)?;
        let (learner, outline) = DenoisingLearner::new(folder, &config, data, device)?;
        let (folder, learner) = (folder.to_owned(), Learner::Denoising(learner));
        Self { folder, config, learner, outline, device: device.clone() }.begin(resume)
    }

    /// Prepares a run on the trajectories of the model that it starts from, as [`Run::on_images`] does.
    ///
    /// # Errors
    /// Those of [`Run::on_images`], and trajectories of another model.
    pub fn on_trajectories(
        folder: &Path,
        config: TrainConfig,
        trajectories: Trajectories,
        resume: bool,
        device: &Device,
    ) -> Result<Self> {
        prepare(folder, &config, device)?;
        let (learner, outline) = StudentLearner::new(folder, &config, trajectories, device)?;
        let (folder, learner) = (folder.to_owned(), Learner::Student(learner));
        Self { folder, config, learner, outline, device: device.clone() }.begin(resume)
    }

    /// At its first step, or after that of its newest checkpoint.
    fn begin(mut self, resume: bool) -> Result<Self> {
        match (checkpoint::newest(&self.folder)?, resume) {
            (Some(path), true) => {
                checkpoint::load(&path, &self.config, &mut self.learner, &self.device)?
            }
            (Some(path), false) => return Err(Error::RunExists { path }),
            (None, _) => (),
        }
        Ok(self)
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Steps taken so far.
    pub fn step(&self) -> u64 {
        self.learner.step()
    }

    /// The network in training, on an autodiff device.
    pub fn net(&self) -> Net {
        self.learner.net()
    }

    /// Trains to the end, or until `observe` breaks; either way the state is saved.
    ///
    /// # Errors
    /// A loss that is not finite, or a file that cannot be written.
    pub fn train(
        &mut self,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        if self.step() > 0 {
            let _ = observe(Event::Resumed(self.step()));
        }
        let mut log = Log::open(&self.folder, self.step())?;
        let order = Order::new(self.learner.examples(), self.config.seed);
        let mut saved = self.step();
        let mut flow = ControlFlow::Continue(());
        while self.step() < self.config.steps && flow.is_continue() {
            log.add(self.one_step(&order)?);
            let step = self.step();
            let last = step == self.config.steps;
            let mut event = Event::Step { step, loss: None, rate: 0.0 };
            if step.is_multiple_of(self.config.log_every) || last {
                let Line { loss, rate } = log.line(step, self.config.batch)?;
                event = Event::Step { step, loss: Some(loss), rate };
            }
            flow = observe(event);
            let every = |steps: u64| steps > 0 && step.is_multiple_of(steps);
            if every(self.config.snapshot_every) {
                checkpoint::save_snapshot(&self.folder, &self.config, &self.learner)?;
            }
            if every(self.config.checkpoint_every) || last || flow.is_break() {
                let path = self.save()?;
                log.plot()?;
                saved = step;
                let _ = observe(Event::Wrote(&path));
            }
            if every(self.config.sample_every) || (last && self.config.sample_every > 0) {
                let path =
                    samples::write(&self.folder, self.step(), self.averaged(0), &self.device)?;
                let _ = observe(Event::Wrote(&path));
            }
        }
        if saved < self.step() {
            self.save()?;
        }
        if self.step() == self.config.steps {
            let path = self.folder.join("model");
            let model = self.averaged(0);
            model.save(&path, model.manifest()?, FloatDtype::F16, true)?;
            let _ = observe(Event::Wrote(&path));
        }
        Ok(flow)
    }

    /// Writes a checkpoint.
    fn save(&self) -> Result<PathBuf> {
        checkpoint::save(&self.folder, &self.config, &self.learner)
    }

    /// Takes a step and returns its loss, `[1]`.
    fn one_step(&mut self, order: &Order) -> Result<Tensor<1>> {
        let Self { config, learner, device, .. } = self;
        let (seed, step) = (config.seed, learner.step());
        let indices = order.indices(step * config.batch as u64, config.batch);
        let streams = Streams { seed, step };
        match learner {
            Learner::Denoising(learner) => Ok(learner.step(&indices, streams, config, device)),
            Learner::Student(learner) => learner.step(&indices, streams, config, device),
        }
    }

    /// The model with the weights of average number `index`.
    pub fn averaged(&self, index: usize) -> Model {
        self.outline.with(self.learner.averaged(index))
    }
}

/// Makes the folder of a run, if the device can train it.
fn prepare(folder: &Path, config: &TrainConfig, device: &Device) -> Result<()> {
    if config.precision == Precision::Bf16 && !ops::mixes(device) {
        let reason = "precision is bf16, in which this device does not train: set f32";
        return Err(Error::Config { reason: reason.into() });
    }
    std::fs::create_dir_all(folder)
        .map_err(|source| Error::File { path: folder.to_owned(), source })
}
