//! The run itself: batches of images, each a solver's way from noise to data.

use std::ops::{ControlFlow, Range};

use burn::tensor::Tensor;
use pyrograph_engine::denoisers::{DitDenoiser, StudentDenoiser};
use pyrograph_engine::diffusion::{
    Apart, Clipped, Denoiser, Estimates, Guided, Inpaint, NoiseSource, Phased, Process, Step,
    Together,
};
use pyrograph_engine::nets::{Conditioning, Dit, Net};
use pyrograph_engine::read;

use super::job::{Job, Plan, Start};
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
    /// The same for several times the images: with the prompts, and with less and less of them.
    All,
    /// The weaker model to guide away from, with the prompts.
    Guide,
}

/// Makes a denoiser of a call with a patch size.
pub(super) type Bind<'a, 'b> = dyn Fn(Call, usize) -> Box<dyn Denoiser + 'a> + 'b;

impl<T: Task> Pipeline<T> {
    /// Final latents, each batch given to `done` as soon as it is there, with the number of its first image.
    pub(super) fn batches(
        &self,
        job: &Job,
        on_step: &mut OnStep<'_>,
        done: &mut dyn FnMut(usize, Tensor<4>) -> Result<()>,
    ) -> Result<()> {
        let [images, channels, height, width] = job.shape;
        let batch = job.settings.batch;
        for first in (0..images).step_by(batch) {
            let count = batch.min(images - first);
            let seed = job.settings.seed.wrapping_add(first as u64);
            let mut source = NoiseSource::new(seed, count);
            let own = source.draw([channels, height, width], &self.device);
            let given = job.noise.as_ref();
            let noise = given.map_or(own, |noise| noise.clone().narrow(0, first, count));
            let mut show = |step: Step<'_>| {
                let is_due = job.previews.is_some_and(|every| step.index.is_multiple_of(every));
                on_step(Progress {
                    first,
                    step: step.index,
                    steps: step.total,
                    x: step.x,
                    denoised: step.denoised,
                    decoder: is_due.then(|| self.decoder(job)),
                })
            };
            let x = self.sample(job, first..first + count, noise, &mut source, &mut show)?;
            done(first, x)?;
        }
        Ok(())
    }

    fn sample(
        &self,
        job: &Job,
        images: Range<usize>,
        noise: Tensor<4>,
        source: &mut NoiseSource,
        on_step: &mut dyn FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>> {
        let Plan { grid, noise_scale, .. } = &job.plan;
        let mut inner = self.denoiser(job, images);
        let mut solve = |denoiser: &mut dyn Denoiser, x: Tensor<4>| {
            let footprint = &self.footprint;
            let mut failure = None;
            let mut watched = |step: Step<'_>| {
                // Work queues up on a GPU; one wait per step keeps it short and makes progress honest.
                let waited = read::wait(&step.x.device()).map_err(Error::from);
                failure = waited.err().or_else(|| footprint.failure());
                match failure {
                    Some(_) => ControlFlow::Break(()),
                    None => on_step(step),
                }
            };
            let sampled = job.settings.sampler.sample(denoiser, x, grid, source, &mut watched);
            sampled.map_err(|_| failure.unwrap_or(Error::Cancelled))
        };
        let (Net::Dit(_), Some(Start { picture, mask, .. })) = (&self.net, &job.start) else {
            return solve(&mut inner, noise);
        };
        let whole = picture.clone().expand(noise.dims());
        let Some([level, _]) = grid.steps.first() else { return Ok(whole) };
        let noised = whole * level.alpha + noise.clone() * level.sigma;
        let Some(mask) = mask else { return solve(&mut inner, noised) };
        let (x, start) = match noise_scale {
            Some(scale) => {
                let alone = noise * *scale;
                let x = alone.clone() * mask.clone() + noised * (1.0 - mask.clone());
                (x, Some((*level, alone)))
            }
            None => (noised, None),
        };
        let (picture, mask) = (picture.clone(), mask.clone());
        solve(&mut Inpaint { inner, picture, mask, start }, x)
    }

    /// The networks bound to what they are told of some of the images.
    fn denoiser<'a>(&'a self, job: &'a Job, images: Range<usize>) -> Box<dyn Denoiser + 'a> {
        let count = images.len();
        let told = job.told.of(images.clone());
        if let Net::Student(net) = &self.net {
            let student = StudentDenoiser::new(net, &self.config.process, told, &job.plan.grid);
            let [_, channels, height, width] = job.shape;
            let shape = [count, channels, height, width];
            return match &job.start {
                Some(Start { picture, .. }) => {
                    Box::new(student.from_image(picture.clone().expand(shape)))
                }
                None => Box::new(student),
            };
        }
        let scales = job.settings.guidance.scales().len();
        let weaker = job.told.weaker(images, scales > 1);
        let bind = |call: Call, patch: usize| -> Box<dyn Denoiser + 'a> {
            let (net, process) = self.network(call);
            let told = match call {
                Call::Main => told.clone(),
                // Which has no adapters.
                Call::Guide => Conditioning { token: None, ..told.clone() },
                Call::All => weaker.iter().cloned().fold(told.clone(), Conditioning::followed_by),
            };
            let steered = if matches!(call, Call::Guide) { &[][..] } else { &job.steering };
            Box::new(DitDenoiser::new(net, process, told).at(patch).steered(steered))
        };
        let guided = self.phased(&job.settings.guidance, &job.plan, &bind);
        match self.config.process.clip {
            Some(clip) => Box::new(Clipped { inner: guided, clip }),
            None => Box::new(guided),
        }
    }

    pub(super) fn network(&self, call: Call) -> (&Dit, &Process) {
        match (call, self.guide.as_deref()) {
            (Call::Guide, Some((net, process))) => (net, process),
            _ => (self.net.trunk(), &self.config.process),
        }
    }

    /// The networks with their guidance, at the patch sizes of each step.
    pub(super) fn phased<'a>(
        &self,
        guidance: &GuidanceSettings,
        plan: &Plan,
        bind: &Bind<'a, '_>,
    ) -> Phased<Box<dyn Denoiser + 'a>> {
        let guided = |phase: &Phase| (self.guided(guidance, *phase, bind), phase.end);
        Phased { phases: plan.phases.iter().map(guided).collect() }
    }

    /// The networks with their guidance for some of the steps.
    fn guided<'a>(
        &self,
        guidance: &GuidanceSettings,
        phase: Phase,
        bind: &Bind<'a, '_>,
    ) -> Box<dyn Denoiser + 'a> {
        let main = bind(Call::Main, phase.main);
        let scales = guidance.scales();
        if scales == [1.0] {
            return main;
        }
        match &self.guide {
            Some(guide) => {
                let other = guide.0.config();
                let patch =
                    if other.patches().contains(&phase.guide) { phase.guide } else { other.patch };
                let guide = bind(Call::Guide, patch);
                guided(guidance, scales, Apart { main, guide })
            }
            None if phase.main != phase.guide => {
                let guide = bind(Call::Main, phase.guide);
                guided(guidance, vec![phase.scale(guidance.scale)], Apart { main, guide })
            }
            None => {
                let (all, count) = (bind(Call::All, phase.main), scales.len() + 1);
                guided(guidance, scales, Together { main, all, count })
            }
        }
    }
}

fn guided<'a>(
    settings: &GuidanceSettings,
    scales: Vec<f64>,
    estimates: impl Estimates + 'a,
) -> Box<dyn Denoiser + 'a> {
    let GuidanceSettings { channels, interval, rescale, normalized, .. } = *settings;
    Box::new(Guided { estimates, scales, channels, interval, rescale, normalized })
}
