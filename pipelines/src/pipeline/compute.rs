//! What a generation takes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::tensor::{Device, Tensor};
use pyrograph_engine::diffusion::{Denoised, Denoiser, Level, NoiseSource, Step};
use pyrograph_engine::nets::DitConfig;
use serde::{Deserialize, Serialize};

use super::Pipeline;
use super::run::Call;
use crate::error::{Error, Result};
use crate::request::Request;
use crate::task::Task;

/// What one image takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compute {
    /// Billions of multiplications with additions, in the network.
    pub gmacs: f64,
    /// Share of the same calls at the native patch size, as FlexiDiT counts it: token-wise layers and
    /// attention.
    pub share: f64,
    /// Calls of the network at each patch size.
    pub calls: BTreeMap<usize, usize>,
}

impl std::fmt::Display for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let call =
            |(patch, count): (&usize, &usize)| format!("{count} calls with patches of {patch}");
        let calls: Vec<String> = self.calls.iter().map(call).collect();
        write!(
            f,
            "{}: {:.1} GMAC, {:.2} % of compute",
            calls.join(" and "),
            self.gmacs,
            100.0 * self.share
        )
    }
}

impl<T: Task> Pipeline<T> {
    /// What one image of a request takes.
    ///
    /// # Errors
    /// See [`Pipeline::resolve`].
    pub fn compute(&self, request: &Request<T::Prompt>) -> Result<Compute> {
        let net = self.trunk();
        let (settings, plan) = self.check(request)?;
        let [_, channels, height, width] = self.shape(1, &settings)?;
        let (size, text) = ([height, width], self.task.text_tokens(request)?);
        if let Some(student) = self.student() {
            let mut calls = BTreeMap::new();
            for patch in &student.patches {
                *calls.entry(*patch).or_default() += 1;
            }
            let gmacs = student.flops(net, size, text).iter().sum::<f64>() / 2e9;
            return Ok(Compute { gmacs, share: 1.0, calls });
        }
        let tally = RefCell::default();
        let bind = |call: Call, patch: usize| -> Box<dyn Denoiser + '_> {
            Box::new(Counter {
                net: self.network(call).0.config(),
                size,
                text,
                patch,
                tally: &tally,
            })
        };
        let mut denoiser = self.phased(&settings.guidance, &plan, &bind);
        let x = Tensor::zeros([1, channels, 1, 1], &Device::flex());
        let mut source = NoiseSource::new(0, 1);
        let on_step = &mut |_: Step<'_>| ControlFlow::Continue(());
        let sampled = settings.sampler.sample(&mut denoiser, x, &plan.grid, &mut source, on_step);
        sampled.map_err(|_| Error::Cancelled)?;
        drop(denoiser);
        let Tally { all, trunk, native_trunk, calls } = tally.into_inner();
        Ok(Compute { gmacs: all / 2e9, share: trunk / native_trunk, calls })
    }
}

/// Operations of the calls so far, two per multiplication with an addition.
#[derive(Debug, Default)]
struct Tally {
    all: f64,
    trunk: f64,
    native_trunk: f64,
    calls: BTreeMap<usize, usize>,
}

/// Stands for a network in a run without one, and counts what its calls would take.
struct Counter<'a> {
    net: &'a DitConfig,
    /// Of the latents.
    size: [usize; 2],
    /// Tokens of the text.
    text: usize,
    patch: usize,
    tally: &'a RefCell<Tally>,
}

impl Denoiser for Counter<'_> {
    /// Returns its input, of any height and width.
    fn denoise(&mut self, x_t: Tensor<4>, _: &Level, _: usize) -> Denoised {
        let images = x_t.dims()[0];
        let mut tally = self.tally.borrow_mut();
        tally.all += images as f64 * self.net.flops(self.size, self.patch, self.text);
        tally.trunk += images as f64 * self.net.trunk_flops(self.size, self.patch, self.text);
        tally.native_trunk +=
            images as f64 * self.net.trunk_flops(self.size, self.net.patch, self.text);
        *tally.calls.entry(self.patch).or_default() += images;
        Denoised { clean: x_t, unclipped: None, variance: None }
    }
}
