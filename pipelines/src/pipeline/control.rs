//! Pictures that control those of a request.

use std::path::Path;

use burn::tensor::Tensor;
use pyrograph_engine::denoisers::Steering;
use pyrograph_engine::nets::{Conditioning, DitConfig};
use pyrograph_engine::portrait::conditions::ControlKind;

use super::Pipeline;
use super::job::Plan;
use crate::branches::{self, Branches};
use crate::control::{ControlBranch, ControlConfig};
use crate::error::{Error, Result};
use crate::model::WeightType;
use crate::request::{Controlled, Request, expect, latent};
use crate::task::{Task, Told};

impl<T: Task> Pipeline<T> {
    /// Opens a branch once, for several requests; see [`Request::controls`].
    ///
    /// # Errors
    /// No such folder, a broken one, a branch that was trained with another model.
    pub fn control(&self, path: impl AsRef<Path>) -> Result<ControlBranch> {
        let (net, base) = (self.trunk(), &self.origin.weights);
        Ok(ControlBranch::Open(Branches::open(path.as_ref(), net, base, &self.device)?))
    }

    /// What a branch sees.
    ///
    /// # Errors
    /// One that was trained with another model, or cannot be read.
    pub(crate) fn control_kind(&self, branch: &ControlBranch) -> Result<ControlKind> {
        Ok(branch.config(self.trunk(), &self.origin.weights)?.kind)
    }

    /// The same as the model that a branch in training goes with.
    pub(crate) fn steered_by(mut self, branch: &Option<Branches<ControlConfig>>) -> Self {
        if let Some(branch) = branch {
            self.origin.weights.clone_from(&branch.config.base);
        }
        self
    }

    /// Refuses controls that would not act, before any work.
    pub(super) fn check_controls(&self, request: &Request<T::Prompt>, plan: &Plan) -> Result<()> {
        if request.controls.is_empty() {
            return Ok(());
        }
        let setting = |what, found: String, expected: &str| {
            Err(Error::Setting { what, found, expected: expected.into() })
        };
        if self.student().is_some() {
            let reason = "a picture controls, a student is steered by none".into();
            return Err(Error::Student { reason });
        }
        if self.origin.dtype != WeightType::default() {
            let found = self.origin.dtype.to_string();
            return setting("the type of the weights", found, "f32 where a picture controls");
        }
        for Controlled { branch, scale, steps: [from, to], .. } in &request.controls {
            if !scale.is_finite() {
                return setting("the scale of a control", scale.to_string(), "a finite number");
            }
            if !(0.0 <= *from && from < to && *to <= 1.0) {
                let found = format!("{from} to {to}");
                return setting("the steps of a control", found, "shares of all, 0 to 1, rising");
            }
            let patch = branch.config(self.trunk(), &self.origin.weights)?.patch;
            let mut used = plan.phases.iter().flat_map(|phase| [phase.main, phase.guide]);
            if let Some(other) = used.find(|used| *used != patch) {
                let found = format!("a branch at patch size {patch}, the steps at {other}");
                return setting("the patch size of a control", found, "the same");
            }
        }
        Ok(())
    }

    /// What the controls of a request add at each of so many steps, to images of this `shape` that are `told` this.
    pub(super) fn steering(
        &self,
        request: &Request<T::Prompt>,
        told: &Told,
        [_, channels, height, width]: [usize; 4],
        steps: usize,
    ) -> Result<Vec<Steering>> {
        if request.controls.is_empty() {
            return Ok(Vec::new());
        }
        let size = [height, width].map(|side| side * self.factor());
        let told = self.told_nothing(request, told, size)?;
        let of = |control: &Controlled| {
            let Controlled { branch, picture, ready, scale, steps: [from, to] } = control;
            let Branches { net, config, .. } = &branch.open(self)?;
            let seen = |pixels: Tensor<4>| {
                let seen = if *ready { pixels } else { config.kind.of(pixels) };
                latent(self.vae.as_ref(), seen)
            };
            let (_, picture) = picture.read(size, &self.device, seen)?;
            let picture = expect("the picture", picture, [1, channels, height, width])?;
            let (trunk, process) = (self.net.trunk(), &self.config.process);
            let residuals = net.of_picture(trunk, process, picture, &told, config.patch);
            let residuals = residuals.into_iter().map(|residual| residual * *scale).collect();
            let share = |share: f64| (share * steps as f64).round() as usize;
            Ok(Steering { steps: share(*from)..share(*to), residuals })
        };
        request.controls.iter().map(of).collect()
    }

    /// What branches are told: nothing, whatever guidance goes away from.
    fn told_nothing(
        &self,
        request: &Request<T::Prompt>,
        told: &Told,
        size: [usize; 2],
    ) -> Result<Conditioning> {
        if request.negative.is_none() {
            return Ok(told.null(&[0]));
        }
        let prompts = request.prompts[..1].to_vec();
        let (raw_prompt, tokens) = (request.raw_prompt, request.tokens);
        let plain = Request { raw_prompt, tokens, ..Request::new(prompts) };
        Ok(self.task.told(&plain, size)?.null(&[0]))
    }
}

impl ControlBranch {
    /// Its description.
    fn config(&self, net: &DitConfig, base: &str) -> Result<ControlConfig> {
        match self {
            Self::Folder(path) => branches::read(path, net, base),
            Self::Open(branch) if branch.config.base == base => Ok(branch.config.clone()),
            Self::Open(branch) => Err(Error::Setting {
                what: "the model of a branch",
                found: branch.config.base.clone(),
                expected: base.into(),
            }),
        }
    }

    fn open<T: Task>(&self, pipeline: &Pipeline<T>) -> Result<Branches<ControlConfig>> {
        match self {
            Self::Open(branch) => Ok(branch.clone()),
            Self::Folder(path) => {
                let (net, base) = (pipeline.trunk(), &pipeline.origin.weights);
                Branches::open(path, net, base, &pipeline.device)
            }
        }
    }
}
