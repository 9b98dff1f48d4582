//! Training a model of classes or of texts from a folder of images, or a few-step student from the trajectories of
//! its teacher.

mod adopt;
mod average;
mod checkpoint;
mod config;
mod control;
mod critic;
mod denoising;
mod distillation;
mod folder;
mod given;
mod identity;
mod learner;
mod log;
pub(crate) mod lora;
mod memory;
mod outline;
mod own_pictures;
mod perceptual;
mod samples;
mod shape;
mod start;
mod stored;
pub(crate) mod streams;
mod student;
mod table;
mod watch;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::Device;
use pyrograph_engine::nets::Net;
use pyrograph_engine::train::StepReport;
use pyrograph_weights::FloatDtype;

pub use adopt::Adopted;
pub use average::{Averaged, reconstruct};
pub use config::{CaptionShape, PatchPhase, TrainConfig};
pub use control::ControlShape;
pub use distillation::check_student;
pub use folder::RunFolder;
pub use log::Line;
pub use lora::LoraShape;
pub use own_pictures::{OwnPictures, OwnProgress};
pub use perceptual::PerceptualShape;
pub use shape::{Condition, Kind, ModelShape};
pub use start::check_model;
pub use student::{Adversarial, StudentShape};
pub use table::{Range, SETTINGS, Setting};

use crate::data::{Dataset, Notice, Order};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::trajectories::Trajectories;
use distillation::StudentLearner;
use folder::MODEL;
use learner::Learner;
use log::Log;
use lora::LORA;
use outline::Outline;
use samples::Product;
use watch::Watched;

/// What a running training reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// A newer checkpoint than the one that the run starts from is not whole.
    Damaged {
        /// The checkpoint.
        path: &'a Path,
        /// What is wrong with it.
        reason: &'a Error,
    },
    /// The run starts at this step, from a checkpoint.
    Resumed(u64),
    /// In the middle of a step or of a sample grid, several times a second.
    Working,
    /// After every step.
    Step {
        /// Steps taken.
        step: u64,
        /// What the log says, where it was written.
        line: Option<Line>,
    },
    /// A checkpoint is about to be written.
    Saving,
    /// A file was written, which may be what was announced.
    Wrote(&'a Path),
}

/// Hears of every [`Event`], from any thread, and may stop the run; at [`Event::Wrote`] and what comes before the first
/// step it is not asked.
pub type Observe<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + Send + 'a;

/// A training run: its folder, settings and state.
pub struct Run {
    folder: RunFolder,
    config: TrainConfig,
    learner: Learner,
    outline: Outline,
    device: Device,
    /// Checkpoints after the one that it starts from.
    damaged: Vec<checkpoint::Damaged>,
}

impl Run {
    /// Prepares a run on images in `folder`; with `resume`, from its newest checkpoint.
    ///
    /// # Errors
    /// A folder that holds another run or in which another process trains, a configuration that does not fit the
    /// checkpoint or the data, unreadable files.
    pub fn on_images(
        folder: &Path,
        config: TrainConfig,
        data: Dataset,
        resume: bool,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Self::in_folder(RunFolder::open(folder, resume)?, config, data.into(), device)
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
        config.check()?;
        Self::in_folder(RunFolder::open(folder, resume)?, config, trajectories.into(), device)
    }

    /// The same in a folder that was taken before.
    ///
    /// # Errors
    /// As there.
    pub fn in_folder(
        folder: RunFolder,
        config: TrainConfig,
        examples: Examples,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        config.check_precision(device)?;
        let (whole, damaged) = match folder.resume() {
            true => checkpoint::newest_whole(folder.path())?,
            false => (None, Vec::new()),
        };
        let (path, resumed) = (folder.path(), whole.as_ref());
        let (mut learner, outline) = match examples {
            Examples::Images(data) => learner::on_images(path, &config, data, resumed, device)?,
            Examples::Trajectories(set) => {
                let (learner, outline) = StudentLearner::new(path, &config, set, resumed, device)?;
                (Learner::Student(learner), outline)
            }
        };
        samples::check(&outline, product(&outline, &learner), device)?;
        match &whole {
            Some(whole) => whole.restore(&mut learner, device)?,
            None => checkpoint::remove_snapshots(path)?,
        }
        folder.keep(&config)?;
        Ok(Self { folder, config, learner, outline, device: device.clone(), damaged })
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its settings.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// Which of its classes come from the model that it starts from; `None` of a run from fresh weights, and of a
    /// student.
    pub fn adopted(&self) -> Option<&Adopted> {
        self.outline.adopted.as_ref()
    }

    /// What should be known of the images that an adversarial stage reads, and of captions that are cut off.
    pub fn notices(&self) -> &[Notice] {
        self.learner.notices()
    }

    /// Steps taken so far.
    pub fn step(&self) -> u64 {
        self.learner.step()
    }

    /// The network in training, on an autodiff device.
    pub fn net(&self) -> Net {
        self.learner.net()
    }

    /// Trains to the end, or until `observe` breaks; either way the state is saved, and the folder holds a model with
    /// the weights of its last step.
    ///
    /// # Errors
    /// A loss or weights that are not finite, or a file that cannot be written; the checkpoints before are kept.
    pub fn train(&mut self, observe: &mut Observe<'_>) -> Result<ControlFlow<()>> {
        for (path, reason) in &self.damaged {
            let _ = observe(Event::Damaged { path, reason });
        }
        if self.step() > 0 {
            let _ = observe(Event::Resumed(self.step()));
        }
        let mut log = Log::open(self.folder(), self.step())?;
        let order = Order::new(self.learner.examples(), self.config.seed);
        // What a kill between a checkpoint and its sample grid left out.
        let mut flow = match samples::path(self.folder(), self.step()).exists() {
            true => ControlFlow::Continue(()),
            false => self.sample(observe)?,
        };
        let (mut saved, mut slow) = (self.step(), true);
        while self.step() < self.config.steps && flow.is_continue() {
            let started = Instant::now();
            let Some(report) = self.one_step(&order, slow, observe)? else {
                return Ok(ControlFlow::Break(()));
            };
            slow = started.elapsed() > watch::SLOW;
            log.add(report);
            let step = self.step();
            let last = step == self.config.steps;
            let TrainConfig { batch, steps, learning_rate, .. } = self.config;
            let rate = learning_rate.at(step - 1, steps);
            let write = step.is_multiple_of(self.config.log_every) || last;
            let line = write.then(|| log.line(step, batch, rate)).transpose()?;
            flow = observe(Event::Step { step, line });
            if self.is_due(self.config.snapshot_every) {
                checkpoint::save_snapshot(self.folder(), &self.config, &self.learner)?;
            }
            if self.is_due(self.config.checkpoint_every) || last || flow.is_break() {
                self.save(observe)?;
                log.plot()?;
                saved = step;
            }
            if flow.is_continue() {
                flow = self.sample(observe)?;
            }
        }
        if saved < self.step() || !self.product().exists() {
            self.save(observe)?;
        }
        Ok(flow)
    }

    /// Whether something is to be done after the last step that is done every so many steps; 0 is never.
    fn is_due(&self, every: u64) -> bool {
        every > 0 && self.step() > 0 && self.step().is_multiple_of(every)
    }

    /// Takes a step; of a `slow` one `observe` hears while it goes on. Where that breaks, the state before the step is
    /// saved, and `None` returned.
    ///
    /// # Errors
    /// Trajectories that can no longer be read, a file that cannot be written.
    fn one_step(
        &mut self,
        order: &Order,
        slow: bool,
        observe: &mut Observe<'_>,
    ) -> Result<Option<StepReport>> {
        let Self { config, learner, device, .. } = &*self;
        let indices = order.indices(learner.step() * config.batch as u64, config.batch);
        let compute = || learner.compute(&indices, config, device);
        let computed = match slow {
            false => compute()?,
            true => {
                let stop = |observe: &mut Observe<'_>| self.save(observe);
                match watch::watched(compute, observe, stop) {
                    Watched::Done(computed) => computed?,
                    Watched::Stopped(saved) => return saved.map(|()| None),
                }
            }
        };
        Ok(Some(self.learner.take(computed)))
    }

    /// Number of parameters that it changes.
    pub fn trained(&self) -> usize {
        self.learner.averages().first().into_iter().flatten().map(|value| value.dims()[0]).sum()
    }

    /// Where what it makes is: a model, branches, or a LoRA.
    pub fn product(&self) -> PathBuf {
        let name = if self.config.lora.is_some() { LORA } else { MODEL };
        self.folder().join(name)
    }

    /// Writes what is made, and a checkpoint: in this order, so that the model is never the older one.
    fn save(&self, observe: &mut Observe<'_>) -> Result<()> {
        let _ = observe(Event::Saving);
        let sources = &self.outline.sources;
        let checkpoint = checkpoint::prepare(self.folder(), &self.config, sources, &self.learner)?;
        match &self.learner {
            Learner::Lora(learner) => {
                lora::write(&self.product(), &learner.trainer.averaged(0), "")?;
            }
            learner => match learner.branches(0) {
                Some(branches) => branches.save(&self.product())?,
                None => self.averaged(0).save_lean(&self.product(), FloatDtype::F16)?,
            },
        }
        let _ = observe(Event::Wrote(&checkpoint.write()?));
        Ok(())
    }

    /// Writes a sample grid if one is due after the last step.
    fn sample(&self, observe: &mut Observe<'_>) -> Result<ControlFlow<()>> {
        let every = self.config.sample_every;
        let ends = every > 0 && self.step() == self.config.steps;
        if !(self.is_due(every) || ends) {
            return Ok(ControlFlow::Continue(()));
        }
        let path = samples::path(self.folder(), self.step());
        let ask = &mut || observe(Event::Working);
        let product = product(&self.outline, &self.learner);
        let flow = samples::write(&path, &self.outline, product, &self.device, ask)?;
        if flow.is_continue() {
            let _ = observe(Event::Wrote(&path));
        }
        Ok(flow)
    }

    /// The model with the weights of average number `index`.
    pub fn averaged(&self, index: usize) -> Model {
        self.outline.with(self.learner.averaged(index))
    }
}

/// What a learner has made so far.
fn product(outline: &Outline, learner: &Learner) -> Product {
    Product { model: outline.with(learner.averaged(0)), branches: learner.branches(0) }
}

/// What a run learns from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per run")]
pub enum Examples {
    /// Images, for a model.
    Images(Dataset),
    /// Trajectories of its teacher, for a few-step student.
    Trajectories(Trajectories),
}

impl From<Dataset> for Examples {
    fn from(data: Dataset) -> Self {
        Self::Images(data)
    }
}

impl From<Trajectories> for Examples {
    fn from(set: Trajectories) -> Self {
        Self::Trajectories(set)
    }
}
