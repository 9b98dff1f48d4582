//! Few-step students that see their own history (ARD, Kim et al. 2025).
//!
//! A student goes from noise to an image in a few steps, each of which predicts the next point of a
//! teacher's trajectory. What it predicted before, and the noise it started from, stays visible to the
//! first blocks (section 3 of the paper). Without history it is plain step distillation.

use burn::module::{Devices, Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::dit::{Call, Conditioning, Dit, DitConfig, Encoded, Head};
use crate::layers::mappers::Quantize;
use crate::layers::{Init, KvCache};

/// Most steps of a student.
pub const STEP_LIMIT: usize = 8;

/// The steps of a student, from noise to data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudentConfig {
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
#[serde(rename_all = "snake_case", deny_unknown_fields)]
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
#[serde(rename_all = "snake_case", deny_unknown_fields)]
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

impl StudentConfig {
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

    /// Patch sizes of the steps that have a head of their own.
    fn later_heads(&self) -> impl Iterator<Item = usize> {
        let later = if self.own_heads { self.patches.as_slice() } else { &[] };
        later.iter().skip(1).copied()
    }

    /// Whether a network can be a student of these steps.
    ///
    /// # Errors
    /// The first number that is out of range or does not go with the network.
    pub fn check(&self, net: &DitConfig) -> Result<(), ConfigError> {
        let steps = self.steps();
        if !(1..=STEP_LIMIT).contains(&steps) {
            return Err(ConfigError::Steps { steps, limit: STEP_LIMIT });
        }
        if self.patches.len() != steps {
            return Err(ConfigError::StepPatches { sizes: self.patches.len(), steps });
        }
        let known = net.patches();
        if let Some(&patch) = self.patches.iter().find(|patch| !known.contains(patch)) {
            return Err(ConfigError::UnknownPatch { patch, known });
        }
        if self.times.iter().any(|time| !time.is_finite()) {
            let found = format!("{:?}", self.times);
            return Err(ConfigError::value("times of a student", found, "numbers"));
        }
        if self.history_layers > net.depth {
            return Err(ConfigError::History { layers: self.history_layers, depth: net.depth });
        }
        if net.is_joint() && self.history_layers > 0 {
            let expected = "0 in a network of joint attention, which keeps no cache";
            return Err(ConfigError::value("history_layers", self.history_layers, expected));
        }
        Ok(())
    }

    /// Floating-point operations of each step of such a student of `net` on one image of `size`, told a text of `text`
    /// tokens, as [`DitConfig::flops`] counts them, with the attention to earlier points.
    pub fn flops(&self, net: &DitConfig, size: [usize; 2], text: usize) -> Vec<f64> {
        let tokens = |step: usize| {
            let [rows, columns] = net.grid(size, self.patches[step]);
            (rows * columns) as f64
        };
        let step = |step: usize| {
            let seen: f64 = (0..step).filter(|&e| self.sees(step, e)).map(tokens).sum();
            let pairs = tokens(step) * seen * self.history_layers as f64;
            net.flops(size, self.patches[step], text) + 4.0 * pairs * net.hidden as f64
        };
        (0..self.steps()).map(step).collect()
    }

    /// Number of parameters of the heads of the later steps.
    pub(super) fn head_parameters(&self, net: &DitConfig) -> usize {
        let host = Device::flex();
        let init = &Init::new(0, &host);
        self.later_heads().map(|patch| net.init_head(patch, init).num_params()).sum()
    }

    pub(super) fn init_from(&self, trunk: Dit, init: &Init<'_>) -> Student {
        let head = |patch| trunk.config().init_head(patch, init);
        let later_heads = self.later_heads().map(head).collect();
        Student { trunk, later_heads, config: self.clone() }
    }
}

/// A network that goes from noise to an image in a few steps.
///
/// Its parameters are named as those of its trunk are, with `later_heads` beside them.
#[derive(Debug, Clone)]
pub struct Student {
    /// All steps' but for their heads; its own head is that of the first step.
    pub(super) trunk: Dit,
    /// Those of the later steps, where each has its own.
    pub(super) later_heads: Vec<Head>,
    config: StudentConfig,
}

impl Student {
    /// A student that is not trained yet: every step starts with the weights of the network it comes from, its
    /// head too.
    ///
    /// # Errors
    /// Steps that do not go with the network.
    pub fn new(net: Dit, config: StudentConfig) -> Result<Self, ConfigError> {
        config.check(net.config())?;
        let head = |patch| {
            let mut head = net.head.clone();
            head.out = net.projection(patch).into_owned();
            head
        };
        let later_heads = config.later_heads().map(head).collect();
        Ok(Self { trunk: net, later_heads, config })
    }

    /// The network of all steps.
    pub fn trunk(&self) -> &Dit {
        &self.trunk
    }

    /// See [`Student::trunk`].
    pub fn trunk_mut(&mut self) -> &mut Dit {
        &mut self.trunk
    }

    /// Its steps.
    pub fn config(&self) -> &StudentConfig {
        &self.config
    }

    /// The next point of a trajectory, in the first of the channels; the others, if there are any, mean
    /// nothing.
    ///
    /// `x` is the noise at the first step, of unit variance, and the point before at the others; `memory`
    /// is new at the first step and afterwards what the step before left.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`, output: `[batch, out_channels, height, width]`
    ///
    /// # Panics
    /// If there are fewer steps; see [`Dit::forward`] for the condition.
    pub fn step(
        &self,
        x: Tensor<4>,
        told: &Conditioning,
        step: usize,
        memory: &mut Memory,
    ) -> Tensor<4> {
        let [_, _, height, width] = x.dims();
        let encoded = self.encode(x, told, step, memory);
        self.decode(encoded, step, [height, width])
    }

    /// [`Student::step`] up to the head.
    pub(crate) fn encode(
        &self,
        x: Tensor<4>,
        told: &Conditioning,
        step: usize,
        memory: &mut Memory,
    ) -> Encoded {
        let config = &self.config;
        let time = Tensor::full([x.dims()[0]], config.times[step], &x.device());
        let keep = config.is_seen(step);
        if step == 0 && keep {
            memory.caches = vec![KvCache::default(); config.history_layers];
        }
        let call = Call {
            patch: config.patches[step],
            caches: memory.caches.as_mut_slice(),
            keep,
            after_block: &mut |_, tokens| tokens,
        };
        let encoded = self.trunk.encode(x, time, told, call);
        match config.history {
            // What is held is the point before and this one.
            History::Previous if step > 0 && keep => {
                memory.caches.iter_mut().for_each(|cache| cache.retain(|call| call > 0));
            }
            _ if step + 1 == config.steps() => *memory = Memory::default(),
            _ => (),
        }
        encoded
    }

    /// The head of a step, on images of `size`.
    pub(crate) fn decode(&self, encoded: Encoded, step: usize, size: [usize; 2]) -> Tensor<4> {
        self.trunk.decode(encoded, size, self.config.patches[step], self.later_head(step))
    }

    /// The weight of the projection in the head of a step.
    pub(crate) fn head_weight(&self, step: usize) -> Tensor<2> {
        self.later_head(step).unwrap_or(&self.trunk.head).out.weight.val()
    }

    fn later_head(&self, step: usize) -> Option<&Head> {
        step.checked_sub(1).and_then(|later| self.later_heads.get(later))
    }

    /// All steps on given points: what training sees.
    ///
    /// # Shapes
    /// each of `points`: `[batch, channels, height, width]`, outputs like [`Student::step`]
    ///
    /// # Panics
    /// See [`Student::step`].
    pub fn steps(&self, points: Vec<Tensor<4>>, told: &Conditioning) -> Vec<Tensor<4>> {
        let mut memory = Memory::default();
        let steps = points.into_iter().enumerate();
        steps.map(|(i, x)| self.step(x, told, i, &mut memory)).collect()
    }

    /// See [`Dit::folded`].
    pub fn folded(self) -> Self {
        let later_heads = self.later_heads.into_iter().map(Head::folded).collect();
        Self { trunk: self.trunk.folded(), later_heads, ..self }
    }

    /// See [`Dit::quantized`].
    pub fn quantized(self) -> Option<Self> {
        let net = self.folded();
        net.trunk.quantizes().then(|| net.map(&mut Quantize::default()))
    }
}

const LATER_HEADS: &str = "later_heads";
const CONTAINER: &str = "Struct:Student";

/// As derived, but for the name of the trunk, which is left out.
impl Module for Student {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.later_heads.collect_devices(self.trunk.collect_devices(devices))
    }

    fn fork(self, device: &Device) -> Self {
        let (trunk, later_heads) = (self.trunk.fork(device), self.later_heads.fork(device));
        Self { trunk, later_heads, ..self }
    }

    fn to_device(self, device: &Device) -> Self {
        let (trunk, later_heads) =
            (self.trunk.to_device(device), self.later_heads.to_device(device));
        Self { trunk, later_heads, ..self }
    }

    fn train(self) -> Self {
        Self { trunk: self.trunk.train(), later_heads: self.later_heads.train(), ..self }
    }

    fn valid(&self) -> Self {
        let (trunk, later_heads) = (self.trunk.valid(), self.later_heads.valid());
        Self { trunk, later_heads, config: self.config.clone() }
    }

    fn materialize(self) -> Self {
        Self {
            trunk: self.trunk.materialize(),
            later_heads: self.later_heads.materialize(),
            ..self
        }
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        self.trunk.visit(visitor);
        visitor.enter_module(LATER_HEADS, CONTAINER);
        self.later_heads.visit(visitor);
        visitor.exit_module(LATER_HEADS, CONTAINER);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let trunk = self.trunk.map(mapper);
        mapper.enter_module(LATER_HEADS, CONTAINER);
        let later_heads = self.later_heads.map(mapper);
        mapper.exit_module(LATER_HEADS, CONTAINER);
        Self { trunk, later_heads, ..self }
    }
}

#[cfg(test)]
mod tests;
