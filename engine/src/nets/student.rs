//! Few-step students that see their own history (ARD, Kim et al. 2025).
//!
//! A student goes from noise to an image in a few steps, each of which predicts the next point of a
//! teacher's trajectory. What it predicted before, and the noise it started from, stays visible to the
//! first blocks (section 3 of the paper). Without history it is plain step distillation.

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use super::dit::Head;
use super::{Dit, DitConfig};
use crate::layers::{Init, KvCache};

/// Most steps of a student.
pub const STEP_LIMIT: usize = 8;

/// The steps of a student, from noise to data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// What the network is told about the noise level at each step, in its own unit.
    pub times: Vec<f64>,
    /// Patch size of each step.
    pub patches: Vec<usize>,
    /// Earlier points that a step sees.
    pub history: History,
    /// Blocks, from the first, that see them; the others see the newest point only.
    pub history_layers: usize,
    /// Each step after the first has a head of its own.
    pub own_heads: bool,
    /// What the points are.
    pub points: Points,
}

/// Earlier points that a step of a student sees beside the newest (the masks of Fig. 3b of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// None: step distillation.
    Newest,
    /// The one before.
    Previous,
    /// The noise at the start.
    Noise,
    /// All.
    All,
}

/// What the points of a trajectory are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Points {
    /// The teacher's estimates of the clean image on arrival.
    Estimates,
    /// The noisy states, in the scale of the network's input; the last is the clean image.
    States,
}

/// What the first blocks of a student have seen in the steps so far.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    caches: Vec<KvCache>,
}

impl Student {
    /// Times in equal distances from the noisiest, `last`, of which the clean image would be 0.
    pub fn even_times(steps: usize, last: f64) -> Vec<f64> {
        (0..steps).map(|step| last * (steps - step) as f64 / steps as f64).collect()
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.times.len()
    }

    /// Whether a step sees the point of an earlier one.
    pub fn sees(&self, step: usize, earlier: usize) -> bool {
        earlier < step
            && self.history_layers > 0
            && match self.history {
                History::Newest => false,
                History::Previous => earlier + 1 == step,
                History::Noise => earlier == 0,
                History::All => true,
            }
    }

    /// Whether any later step sees the point of this one.
    fn is_seen(&self, step: usize) -> bool {
        (step + 1..self.steps()).any(|later| self.sees(later, step))
    }
}

impl DitConfig {
    /// Says what is wrong with the steps of a student, if anything.
    pub(super) fn check_student(&self) -> Result<(), String> {
        let Some(student) = &self.student else { return Ok(()) };
        let steps = student.steps();
        if !(1..=STEP_LIMIT).contains(&steps) {
            return Err(format!("a student of {steps} steps, expected 1 to {STEP_LIMIT}"));
        }
        if student.patches.len() != steps {
            let sizes = student.patches.len();
            return Err(format!("{sizes} patch sizes for the {steps} steps of a student"));
        }
        let known = self.patches();
        if let Some(patch) = student.patches.iter().find(|patch| !known.contains(patch)) {
            return Err(format!("patch size {patch} of a student, the network has {known:?}"));
        }
        if student.times.iter().any(|time| !time.is_finite()) {
            return Err(format!("times of a student are {:?}, expected numbers", student.times));
        }
        if student.history_layers > self.depth {
            return Err(format!(
                "history in {} blocks, the network has {}",
                student.history_layers, self.depth
            ));
        }
        Ok(())
    }

    /// Patch sizes of the steps that have a head of their own.
    pub(super) fn later_heads(&self) -> impl Iterator<Item = usize> {
        let own = self.student.iter().filter(|student| student.own_heads);
        own.flat_map(|student| student.patches.iter().skip(1).copied())
    }

    pub(super) fn init_later_heads(&self, init: &Init<'_>) -> Vec<Head> {
        self.later_heads().map(|patch| self.init_head(patch, init)).collect()
    }

    /// Floating-point operations of each step of a student on one image of `size`, as
    /// [`DitConfig::flops`] counts them, with the attention to earlier points.
    ///
    /// # Panics
    /// If the network is no student.
    pub fn student_flops(&self, size: [usize; 2]) -> Vec<f64> {
        let student = self.student.as_ref().expect("a student");
        let tokens = |step: usize| {
            let [rows, columns] = self.grid(size, student.patches[step]);
            (rows * columns) as f64
        };
        let step = |step: usize| {
            let seen: f64 = (0..step).filter(|&e| student.sees(step, e)).map(tokens).sum();
            let pairs = tokens(step) * seen * student.history_layers as f64;
            self.flops(size, student.patches[step]) + 4.0 * pairs * self.hidden as f64
        };
        (0..student.steps()).map(step).collect()
    }
}

/// The network as a student that is not trained yet: every step starts with the weights of the network,
/// its head too.
///
/// # Errors
/// A network that is a student already, and steps that do not go with it.
pub fn distillable(net: Dit, student: Student) -> Result<Dit, String> {
    let config = net.config();
    if let Some(own) = &config.student {
        return Err(format!("the network is a student of {} steps already", own.steps()));
    }
    let config = DitConfig { student: Some(student), ..config.clone() };
    config.check()?;
    let head = |patch| {
        let mut head = net.head.clone();
        head.out = net.projection(patch).into_owned();
        head
    };
    let heads = config.later_heads().map(head).collect();
    Ok(net.with_later_heads(heads, config))
}

impl Dit {
    /// The next point of a student's trajectory, in the first of the channels; the others, if there are
    /// any, mean nothing.
    ///
    /// `x` is the noise at the first step, of unit variance, and the point before at the others; `memory`
    /// is new at the first step and afterwards what the step before left.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`, `labels`: `[batch]`, output:
    /// `[batch, out_channels, height, width]`
    ///
    /// # Panics
    /// If the network is no student, or has fewer steps.
    pub fn step(
        &self,
        x: Tensor<4>,
        labels: Tensor<1, Int>,
        step: usize,
        memory: &mut Memory,
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let tokens = self.step_tokens(x, labels, step, memory);
        self.step_output(tokens, step, [height, width])
    }

    /// [`Dit::step`] up to the head: the tokens and the activated condition.
    pub(crate) fn step_tokens(
        &self,
        x: Tensor<4>,
        labels: Tensor<1, Int>,
        step: usize,
        memory: &mut Memory,
    ) -> [Tensor<3>; 2] {
        let student = self.config().student.as_ref().expect("a student");
        let time = Tensor::full([x.dims()[0]], student.times[step], &x.device());
        let keep = student.is_seen(step);
        if step == 0 && keep {
            memory.caches = vec![KvCache::default(); student.history_layers];
        }
        let caches = (memory.caches.as_mut_slice(), keep);
        let patch = student.patches[step];
        let tokens = self.trunk(x, (time, labels), patch, caches, &mut |_, _| ());
        match student.history {
            // What is held is the point before and this one.
            History::Previous if step > 0 && keep => {
                memory.caches.iter_mut().for_each(|cache| cache.retain(|call| call > 0));
            }
            _ if step + 1 == student.steps() => *memory = Memory::default(),
            _ => (),
        }
        tokens
    }

    /// The head of a step, on images of `size`.
    pub(crate) fn step_output(
        &self,
        [tokens, condition]: [Tensor<3>; 2],
        step: usize,
        size: [usize; 2],
    ) -> Tensor<4> {
        let student = self.config().student.as_ref().expect("a student");
        self.unembed(tokens, condition, size, student.patches[step], self.later_head(step))
    }

    /// The weight of the projection in the head of a step.
    pub(crate) fn step_weight(&self, step: usize) -> Tensor<2> {
        self.later_head(step).unwrap_or(&self.head).out.weight.val()
    }

    fn later_head(&self, step: usize) -> Option<&Head> {
        step.checked_sub(1).and_then(|later| self.later_heads.get(later))
    }

    /// All steps of a student on given points: what training sees.
    ///
    /// # Shapes
    /// each of `points`: `[batch, channels, height, width]`, `labels`: `[batch]`, outputs like
    /// [`Dit::step`]
    ///
    /// # Panics
    /// See [`Dit::step`].
    pub fn steps(&self, points: Vec<Tensor<4>>, labels: &Tensor<1, Int>) -> Vec<Tensor<4>> {
        let mut memory = Memory::default();
        let steps = points.into_iter().enumerate();
        steps.map(|(i, x)| self.step(x, labels.clone(), i, &mut memory)).collect()
    }
}

#[cfg(test)]
mod tests;
