//! Training a class-conditional model from a folder of images, or a few-step student from the trajectories of
//! its teacher.

mod average;
mod checkpoint;
mod config;
mod critic;
mod latents;
mod log;
mod material;
mod samples;
mod start;
mod student;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::nets::{Net, Vae};
use pyrograph_engine::ops;
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::{Precision, Trainer};
use pyrograph_weights::FloatDtype;

pub use average::reconstruct;
pub use config::{Kind, ModelShape, PatchPhase, TrainConfig};
pub use material::Source;
pub use student::{Adversarial, StudentShape};

use crate::data::Order;
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};
use critic::Critic;
use log::Log;
use material::{Material, Pictures};
use start::Start;
use student::Beginning;

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

/// A training run: its folder, data and state.
pub struct Run {
    folder: PathBuf,
    config: TrainConfig,
    model: ModelConfig,
    material: Material,
    vae: Option<Vae>,
    trainer: Trainer<Net>,
    critic: Option<Critic>,
    device: Device,
}

impl Run {
    /// Prepares a run in `folder`; with `resume`, from its newest checkpoint.
    ///
    /// # Errors
    /// A folder that holds another run, a configuration that does not fit the checkpoint or the data,
    /// unreadable files.
    pub fn new(
        folder: &Path,
        config: TrainConfig,
        source: Source,
        resume: bool,
        device: &Device,
    ) -> Result<Self> {
        if config.precision == Precision::Bf16 && !ops::mixes(device) {
            let reason = "precision is bf16, in which this device does not train: set f32";
            return Err(Error::Config { reason: reason.into() });
        }
        std::fs::create_dir_all(folder)
            .map_err(|source| Error::File { path: folder.to_owned(), source })?;
        let (start, material, critic) = match source {
            Source::Images(data) => {
                if config.student.is_some() || config.adversarial.is_some() {
                    let reason = "`student` and `adversarial` are for trajectories".into();
                    return Err(Error::Config { reason });
                }
                let vae = config.vae.as_ref();
                let vae = vae.map(|path| crate::model::open_autoencoder(path, device));
                let vae = vae.transpose()?;
                let named = vae.as_ref().map(|(vae, name)| (vae, name.as_str()));
                let start = start::images(&config, data.classes(), named.map(|vae| vae.0), device)?;
                let pictures = Pictures::new(folder, data, config.flip, named, device)?;
                let start = Start { vae: vae.map(|(vae, _)| vae), ..start };
                (start, Material::Images(pictures), None)
            }
            Source::Trajectories(set) => {
                let Beginning { start, picks, teacher, cleanest } =
                    student::begin(&config, &set, device)?;
                let critic = config.adversarial.as_ref().map(|adversarial| {
                    let vae = start.vae.as_ref().map(|vae| (vae, set.spec().teacher.as_str()));
                    let seen = (teacher, &start.model.process, &cleanest);
                    Critic::new(folder, &config, adversarial, seen, vae, device)
                });
                (start, Material::Trajectories { set, picks }, critic.transpose()?)
            }
        };
        let Start { net, model, vae } = start;
        let trainer = Trainer::new(net, config.trainer(&model.net.dit));
        let mut run = Self {
            folder: folder.to_owned(),
            config,
            model,
            material,
            vae,
            trainer,
            critic,
            device: device.clone(),
        };
        let newest = checkpoint::newest(folder)?;
        match (newest, resume) {
            (Some(path), true) => checkpoint::load(&path, &mut run)?,
            (Some(path), false) => return Err(Error::RunExists { path }),
            (None, _) => (),
        }
        Ok(run)
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
        self.trainer.step
    }

    /// The network in training.
    pub fn net(&self) -> &Net {
        &self.trainer.model
    }

    /// Trains to the end, or until `observe` breaks; either way the state is saved.
    ///
    /// # Errors
    /// A loss that is not finite, or a file that cannot be written.
    pub fn train(
        &mut self,
        observe: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        if self.trainer.step > 0 {
            let _ = observe(Event::Resumed(self.trainer.step));
        }
        let mut log = Log::open(&self.folder, self.trainer.step)?;
        let order = Order::new(self.material.len(), self.config.seed);
        let mut losses: Vec<Tensor<1>> = Vec::new();
        let mut since = Instant::now();
        let mut saved = self.trainer.step;
        let mut flow = ControlFlow::Continue(());
        while self.trainer.step < self.config.steps && flow.is_continue() {
            let report = self.one_step(&order)?;
            losses.push(report);
            let step = self.trainer.step;
            let last = step == self.config.steps;
            let mut event = Event::Step { step, loss: None, rate: 0.0 };
            if step.is_multiple_of(self.config.log_every) || last {
                let count = losses.len();
                let loss = Tensor::cat(std::mem::take(&mut losses), 0).mean().into_scalar::<f32>();
                if !loss.is_finite() {
                    return Err(Error::Diverged { step, loss });
                }
                let rate = (count * self.config.batch) as f64 / since.elapsed().as_secs_f64();
                since = Instant::now();
                log.add(step, f64::from(loss), rate)?;
                event = Event::Step { step, loss: Some(f64::from(loss)), rate };
            }
            flow = observe(event);
            let every = |steps: u64| steps > 0 && step.is_multiple_of(steps);
            if every(self.config.snapshot_every) {
                checkpoint::save_snapshot(self)?;
            }
            if every(self.config.checkpoint_every) || last || flow.is_break() {
                let path = checkpoint::save(self)?;
                log.plot()?;
                saved = step;
                let _ = observe(Event::Wrote(&path));
            }
            if every(self.config.sample_every) || (last && self.config.sample_every > 0) {
                let path = samples::write(self)?;
                let _ = observe(Event::Wrote(&path));
            }
        }
        if saved < self.trainer.step {
            checkpoint::save(self)?;
        }
        if self.trainer.step == self.config.steps {
            let path = self.folder.join("model");
            let model = self.averaged(0);
            model.save(&path, model.manifest()?, FloatDtype::F16, true)?;
            let _ = observe(Event::Wrote(&path));
        }
        Ok(flow)
    }

    fn one_step(&mut self, order: &Order) -> Result<Tensor<1>> {
        let Self { config, material, trainer, critic, device, vae, model, .. } = self;
        let step = trainer.step;
        let indices = order.indices(step * config.batch as u64, config.batch);
        // Every part of every step has a stream of its own, so that a run can go on anywhere.
        let stream = |part: u64| {
            let step = step.wrapping_mul(0x9E37_79B9).wrapping_add(part.wrapping_mul(0x85EB_CA6B));
            Generator::new(config.seed.wrapping_add(step))
        };
        let patch = config.patch(&model.net.dit, step, stream(u64::MAX).uniform());
        let material = material.prepared(&indices, config, model, vae.as_ref(), device)?;
        let session = critic.as_ref().map(Critic::session);
        let (report, fakes) = trainer.step(config.micro_batches, |net, i| {
            material.loss(net, i, patch, &mut stream(i as u64), session.as_ref())
        });
        if let Some(critic) = critic {
            let fakes = fakes.into_iter().flatten().collect();
            critic.learn(fakes, vae.as_ref(), &stream, device);
        }
        Ok(report.loss)
    }

    /// The model with the weights of average number `index`.
    pub fn averaged(&self, index: usize) -> Model {
        Model {
            net: self.trainer.averaged(index),
            vae: self.vae.clone(),
            config: self.model.clone(),
        }
    }
}
