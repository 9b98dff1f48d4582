//! The run itself: batches of images, each a solver's way from noise to data.

use std::ops::ControlFlow;

use burn::tensor::Tensor;
use pyrograph_engine::diffusion::{Denoiser, Guided, Inpaint, NoiseSource, Phased, Step};
use pyrograph_engine::nets::Dit;
use pyrograph_engine::process::{DitDenoiser, Process, StudentDenoiser};

use super::job::{Job, Plan};
use super::{OnStep, Pipeline, Progress};
use crate::error::{Error, Result};
use crate::patches::Phase;
use crate::settings::GuidanceSettings;
use crate::task::Task;

/// What a network is called for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    /// The model's own network, with the prompts.
    Main,
    /// The same for twice the images: with the prompts, and without.
    Both,
    /// The weaker model to guide away from, with the prompts.
    Guide,
}

/// Makes a denoiser of a call with a patch size.
pub(super) type Bind<'a> = dyn Fn(Call, usize) -> Box<dyn Denoiser + 'a> + 'a;

impl<T: Task> Pipeline<T> {
    /// Final latents, each batch shown to `done` as soon as it is there.
    pub(super) fn batches(
        &self,
        job: &Job<'_, T::Prompt>,
        on_step: &mut OnStep<'_>,
        done: &mut dyn FnMut(&Tensor<4>) -> Result<()>,
    ) -> Result<Tensor<4>> {
        let [_, channels, height, width] = job.shape;
        let batch = job.settings.batch;
        let mut latents = Vec::new();
        for (i, prompts) in job.prompts.chunks(batch).enumerate() {
            let first = i * batch;
            let seed = job.settings.seed.wrapping_add(first as u64);
            let mut source = NoiseSource::new(seed, prompts.len());
            let own = source.draw([channels, height, width], &self.device);
            let given = job.noise.as_ref();
            let noise = given.map_or(own, |noise| noise.clone().narrow(0, first, prompts.len()));
            let mut show = |step: Step<'_>| {
                let is_due = job.previews.is_some_and(|every| step.index.is_multiple_of(every.max(1)));
                on_step(Progress {
                    first,
                    step: step.index,
                    steps: step.total,
                    x: step.x,
                    denoised: step.denoised,
                    decoder: is_due.then_some(job.decoder),
                })
            };
            let x = self.sample(job, prompts, noise, &mut source, &mut show)?;
            done(&x)?;
            latents.push(x);
        }
        Ok(Tensor::cat(latents, 0))
    }

    fn sample(
        &self,
        job: &Job<'_, T::Prompt>,
        prompts: &[T::Prompt],
        noise: Tensor<4>,
        source: &mut NoiseSource,
        on_step: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>> {
        let (sampler, grid) = (&job.settings.sampler, &job.plan.grid);
        let condition = self.task.encode(prompts)?;
        let shape = noise.dims();
        if self.net.config().student.is_some() {
            let process = &self.config.process;
            let mut student =
                StudentDenoiser::new(&self.net, process, &condition.0, grid, &self.device);
            if let Some(picture) = &job.picture {
                student = student.from_image(picture.clone().expand(shape));
            }
            let sampled = sampler.sample(&mut student, noise, grid, source, on_step);
            return sampled.map_err(|_| Error::Cancelled);
        }
        let null = self.task.null(prompts.len());
        let both = [&condition.0[..], &null.0].concat();
        let bind = |call: Call, patch: usize| -> Box<dyn Denoiser + '_> {
            let (net, process) = self.network(call);
            let labels = match call {
                Call::Main | Call::Guide => &condition.0,
                Call::Both => &both,
            };
            Box::new(DitDenoiser::new(net, process, labels, &self.device).at(patch))
        };
        let mut denoiser = self.phased(&job.settings.guidance, &job.plan, &bind);
        let Some(picture) = &job.picture else {
            let sampled = sampler.sample(&mut denoiser, noise, grid, source, on_step);
            return sampled.map_err(|_| Error::Cancelled);
        };
        let level = grid.steps[0][0];
        let x = picture.clone().expand(shape) * level.alpha + noise * level.sigma;
        let sampled = match &job.mask {
            None => sampler.sample(&mut denoiser, x, grid, source, on_step),
            Some(mask) => {
                let (picture, mask) = (picture.clone(), mask.clone());
                let mut denoiser = Inpaint { inner: denoiser, picture, mask };
                sampler.sample(&mut denoiser, x, grid, source, on_step)
            }
        };
        sampled.map_err(|_| Error::Cancelled)
    }

    pub(super) fn network(&self, call: Call) -> (&Dit, &Process) {
        match (call, self.guide.as_deref()) {
            (Call::Guide, Some((net, process))) => (net, process),
            _ => (&self.net, &self.config.process),
        }
    }

    /// The networks with their guidance, at the patch sizes of each step.
    pub(super) fn phased<'a>(
        &self,
        guidance: &GuidanceSettings,
        Plan { full, phases, .. }: &Plan,
        bind: &Bind<'a>,
    ) -> Phased<Box<dyn Denoiser + 'a>> {
        let steps = full.steps.len();
        let sigma = |step: usize| full.steps[step][0].ve_sigma();
        // Between the levels of the last step of a phase and of the next one.
        let end = |phase: &Phase| match phase.end < steps {
            true => sigma(phase.end) * (sigma(phase.end - 1) / sigma(phase.end)).sqrt().min(2.0),
            false => 0.0,
        };
        let guided = |phase: &Phase| (self.guided(guidance, *phase, bind), end(phase));
        Phased { phases: phases.iter().map(guided).collect() }
    }

    /// The networks with their guidance for some of the steps.
    fn guided<'a>(
        &self,
        guidance: &GuidanceSettings,
        phase: Phase,
        bind: &Bind<'a>,
    ) -> Box<dyn Denoiser + 'a> {
        if guidance.scale == 1.0 {
            return bind(Call::Main, phase.main);
        }
        let (main, guide) = match &self.guide {
            Some(guide) => {
                let other = guide.0.config();
                let patch =
                    if other.patches().contains(&phase.guide) { phase.guide } else { other.patch };
                (bind(Call::Main, phase.main), Some(bind(Call::Guide, patch)))
            }
            None if phase.main != phase.guide => {
                (bind(Call::Main, phase.main), Some(bind(Call::Main, phase.guide)))
            }
            None => (bind(Call::Both, phase.main), None),
        };
        let scale = match self.guide {
            Some(_) => guidance.scale,
            None => phase.scale(guidance.scale),
        };
        Box::new(Guided {
            main,
            guide,
            scale,
            channels: guidance.channels,
            interval: guidance.interval,
            rescale: guidance.rescale,
        })
    }
}
