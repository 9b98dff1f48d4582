//! Modulation: how the condition acts on the tokens (adaLN-Zero, Peebles & Xie 2023; rotation
//! modulation, Bill et al. 2025).

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

use super::dense::{Dense, DenseConfig};
use super::init::{Fresh, Init};
use crate::device::is_host;
use crate::ops::{self, RowNorm};

/// Which modulations a network has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModulationConfig {
    /// `x · (1 + scale)`.
    pub scale: bool,
    /// `x + shift`.
    pub shift: bool,
    /// Channel pairs `(i, i + hidden / 2)` rotated by predicted angles.
    pub rotation: bool,
    /// A factor on the output of each branch; see [`GateForm`].
    pub gate: bool,
    /// What a gate multiplies with.
    pub gate_form: GateForm,
    /// One projection serves all blocks, each of which adds numbers of its own, as the head does to the condition
    /// itself (adaLN-single, PixArt-α, Chen et al. 2023, section 2.3).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub single: bool,
    /// One projection serves the images of all blocks, one their texts, and one all blocks that both share, as it is; the
    /// head has its own (FLUX.2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub common: bool,
    /// Blocks take the condition as it is before its activation, the head behind it (Z-Image).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unactivated: bool,
}

/// What a gate of value `g` does to the output `f` of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GateForm {
    /// `g · f`: the branch starts switched off (adaLN-Zero).
    Zero,
    /// `(1 + g) · f`: the branch starts unchanged (MP-DiT).
    One,
    /// `tanh(g) · f` (Lumina-Next, Zhuo et al. 2024).
    Tanh,
}

impl ModulationConfig {
    /// Shift, scale and gate of a plain DiT.
    pub const ADALN_ZERO: Self =
        Self { rotation: false, shift: true, gate_form: GateForm::Zero, ..Self::ROTATION_SCALE };
    /// The same with one projection for all blocks (PixArt).
    pub const ADALN_SINGLE: Self = Self { single: true, ..Self::ADALN_ZERO };
    /// Rotation in place of shift: the published MP-DiT.
    pub const ROTATION_SCALE: Self = Self {
        scale: true,
        shift: false,
        rotation: true,
        gate: true,
        gate_form: GateForm::One,
        single: false,
        common: false,
        unactivated: false,
    };
    /// None at all.
    pub const NONE: Self =
        Self { scale: false, rotation: false, gate: false, ..Self::ROTATION_SCALE };

    /// Numbers that one branch takes, as a multiple of `hidden`.
    pub fn width(&self, with_gate: bool) -> f64 {
        self.parts(with_gate).iter().map(|(halves, _)| halves).sum::<usize>() as f64 / 2.0
    }

    /// Parts of one branch in order, each as a share of `hidden` in halves, with what is added to it.
    fn parts(&self, with_gate: bool) -> Vec<(usize, f32)> {
        let gate = if self.gate_form == GateForm::One { 1.0 } else { 0.0 };
        let parts = [
            (self.scale, (2, 1.0)),
            (self.shift, (2, 0.0)),
            (self.rotation, (1, 0.0)),
            (self.gate && with_gate, (2, gate)),
        ];
        parts.into_iter().filter_map(|(on, part)| on.then_some(part)).collect()
    }
}

/// Predicts, from the condition, the modulation of one or more branches in one matrix product.
///
/// The outputs are, per branch: scale, shift, rotation, gate (those that exist).
#[derive(Module, Debug)]
pub struct Modulation {
    /// `[condition, sum of the parts]`; absent when nothing is modulated, and where one serves all blocks.
    pub dense: Option<Dense>,
    /// `[sum of the parts]`, added to what adaLN-single gives.
    pub table: Option<Param<Tensor<1>>>,
    /// `[parts]` of a preserved network, or `[1]` shared by all of adaLN's parts; zero at the start.
    pub gain: Option<Param<Tensor<1>>>,
    #[module(skip)]
    config: ModulationConfig,
    hidden: usize,
    branches: usize,
    gated: bool,
    /// Whether the bias holds the ones of scales and gates.
    ones: bool,
}

/// The modulation of one branch, each `[batch, 1, width]`.
#[derive(Debug, Clone, Default)]
pub struct Modulated {
    scale: Option<Tensor<3>>,
    shift: Option<Tensor<3>>,
    angles: Option<Tensor<3>>,
    gate: Option<Tensor<3>>,
}

impl Modulation {
    /// Makes a layer for `branches` branches, with gates if `gated`, from a condition to tokens of these widths.
    pub fn new(
        [condition, hidden]: [usize; 2],
        branches: usize,
        gated: bool,
        config: ModulationConfig,
        projection: impl Fn(usize, usize) -> DenseConfig,
        init: &Init<'_>,
    ) -> Self {
        let parts = config.parts(gated);
        let width = parts.iter().map(|(halves, _)| halves).sum::<usize>() * hidden / 2 * branches;
        let dense = projection(condition, width).with_free_weights(Fresh::Constant(0.0));
        let own = width > 0 && !config.single && !config.common;
        let small = Fresh::Normal(1.0 / (hidden as f64).sqrt());
        let gains = match config.gate_form {
            GateForm::Zero | GateForm::Tanh => 1,
            GateForm::One => parts.len() * branches,
        };
        Self {
            gain: (dense.preserved && own).then(|| init.param(Fresh::Constant(0.0), [gains])),
            dense: own.then(|| dense.init(init)),
            table: (width > 0 && config.single).then(|| init.param(small, [width])),
            hidden,
            config,
            branches,
            gated,
            ones: false,
        }
    }

    /// The modulation of each branch, from the activated condition; from what a projection gives that serves all blocks; of
    /// adaLN-single also from the condition before its activation, which then stands for every part.
    ///
    /// # Shapes
    /// `[batch, 1 | tokens, condition]`, or `[batch, 1 | tokens, sum of the parts]`
    pub fn forward(&self, condition: Tensor<3>) -> Vec<Modulated> {
        match self.projected(condition) {
            Some(parts) => self.apart(parts),
            None => vec![Modulated::default(); self.branches],
        }
    }

    /// All parts side by side, `[batch, 1 | tokens, sum of the parts]`; `None` where nothing is modulated.
    pub(crate) fn projected(&self, condition: Tensor<3>) -> Option<Tensor<3>> {
        match (&self.dense, &self.table) {
            (Some(dense), _) => Some(dense.forward(condition)),
            (None, Some(table)) => {
                // [1, 1, sum of the parts]
                let table: Tensor<3> = table.val().cast(condition.dtype()).unsqueeze();
                let times = table.dims()[2] / condition.dims()[2];
                let all = if times > 1 { condition.repeat_dim(2, times) } else { condition };
                Some(all + table)
            }
            (None, None) => self.config.common.then_some(condition),
        }
    }

    /// What is side by side, branch by branch.
    pub(crate) fn apart(&self, out: Tensor<3>) -> Vec<Modulated> {
        let hidden = self.hidden;
        let mut start = 0;
        let mut index = 0;
        let mut next = |on: bool, width: usize| {
            on.then(|| {
                let mut part = out.clone().narrow(2, start, width);
                if let Some(gain) = &self.gain {
                    let gain = gain.val().cast(FloatDType::from(part.dtype()));
                    let i = index.min(gain.dims()[0] - 1);
                    part = part * gain.narrow(0, i, 1).unsqueeze();
                }
                start += width;
                index += 1;
                part
            })
        };
        let with_one = |part: Tensor<3>| if self.ones { part } else { part + 1.0 };
        (0..self.branches)
            .map(|_| Modulated {
                scale: next(self.config.scale, hidden).map(with_one),
                shift: next(self.config.shift, hidden),
                angles: next(self.config.rotation, hidden / 2),
                gate: next(self.config.gate && self.gated, hidden).map(|gate| {
                    match self.config.gate_form {
                        GateForm::Zero => gate,
                        GateForm::One => with_one(gate),
                        GateForm::Tanh => gate.tanh(),
                    }
                }),
            })
            .collect()
    }

    /// See [`Dense::folded`]; gains become part of the weight, and the ones of scales and gates part of the bias.
    pub fn folded(mut self) -> Self {
        let factors = self.gain.take().map(|gain| self.factors(&gain.val()));
        self.dense = self.dense.map(|dense| dense.folded_by(factors));
        if !self.ones {
            let ones = self.constants();
            match (&mut self.dense, &mut self.table) {
                (Some(dense), _) => dense.add(ones),
                (None, Some(table)) => {
                    *table = table.clone().map(|table| {
                        // The CPU computes in f32, whatever weights are stored in.
                        let dtype = match is_host(&table.device()) {
                            true => FloatDType::F32,
                            false => FloatDType::from(table.dtype()),
                        };
                        ones.to_device(&table.device()).cast(dtype) + table.cast(dtype)
                    });
                }
                (None, None) => return self,
            }
            self.ones = true;
        }
        self
    }

    /// The weight and the numbers that make the parts of a condition, if there is nothing else to it: `[condition, sum of the
    /// parts]`, none for a table, and `[sum of the parts]`.
    pub(crate) fn linear(&self) -> Option<(Option<Tensor<2>>, Tensor<1>)> {
        match (&self.dense, &self.table, &self.gain) {
            (Some(dense), None, None) => {
                let (weight, bias) = dense.linear()?;
                Some((Some(weight), bias))
            }
            (None, Some(table), None) => Some((None, table.val())),
            _ => None,
        }
    }

    /// Puts the same weight in another place of memory.
    pub(crate) fn view(&mut self, weight: Tensor<2>) {
        let dense = self.dense.as_mut().expect("a layer that has a weight");
        dense.weight = dense.weight.clone().map(|_| weight);
    }

    /// Whether something is put on the layer.
    pub(crate) fn is_adapted(&self) -> bool {
        self.dense.as_ref().is_some_and(Dense::is_adapted)
    }

    /// What the gains multiply, number by number, `[sum of the parts]`.
    fn factors(&self, gain: &Tensor<1>) -> Tensor<1> {
        let parts = self.config.parts(self.gated).repeat(self.branches);
        let last = gain.dims()[0] - 1;
        let part = |(i, (halves, _)): (usize, (usize, f32))| {
            gain.clone().narrow(0, i.min(last), 1).repeat_dim(0, halves * self.hidden / 2)
        };
        Tensor::cat(parts.into_iter().enumerate().map(part).collect(), 0)
    }

    /// What is added to the parts of all branches, `[sum of the parts]`.
    fn constants(&self) -> Tensor<1> {
        let parts = self.config.parts(self.gated).into_iter();
        let branch: Vec<f32> =
            parts.flat_map(|(halves, added)| vec![added; halves * self.hidden / 2]).collect();
        Tensor::from_floats(branch.repeat(self.branches).as_slice(), &Device::flex())
    }
}

impl Modulated {
    /// Normalises, if there is a norm, then scales, shifts and rotates the input of a branch, in this order.
    ///
    /// # Shapes
    /// `[batch, tokens, hidden]` to the same
    pub fn input(&self, x: Tensor<3>, norm: Option<RowNorm>) -> Tensor<3> {
        let factors = [self.scale.clone(), self.shift.clone(), self.angles.clone()];
        ops::modulate(x, norm, factors)
    }

    /// The same after `γ x + β` on the normalised input, both `[hidden]`.
    pub fn after([gain, bias]: [Tensor<1>; 2], then: Self) -> Self {
        let (gain, bias): (Tensor<3>, Tensor<3>) = (gain.unsqueeze(), bias.unsqueeze());
        let bias = match &then.scale {
            Some(scale) => scale.clone() * bias,
            None => bias,
        };
        Self {
            shift: Some(match then.shift {
                Some(shift) => shift + bias,
                None => bias,
            }),
            scale: Some(match then.scale {
                Some(scale) => scale * gain,
                None => gain,
            }),
            ..then
        }
    }

    /// The same after factors on the normalised input, `[hidden]`.
    pub fn after_gain(gain: Tensor<1>, batch: usize, then: Self) -> Self {
        let gain: Tensor<3> = gain.unsqueeze();
        let [_, _, hidden] = gain.dims();
        let scale = match then.scale {
            Some(scale) => scale * gain,
            None => gain.expand([batch, 1, hidden]),
        };
        Self { scale: Some(scale), ..then }
    }

    /// Adds the gated output of a branch to the stream `x`; see
    /// [`Residual`](super::magnitude::Residual) for the balance.
    ///
    /// # Shapes
    /// `[batch, tokens, hidden]` to the same
    pub fn join(&self, x: Tensor<3>, branch: Tensor<3>, balance: Option<f64>) -> Tensor<3> {
        ops::join(x, branch, self.gate.clone(), balance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::LowRank;

    fn random(shape: [usize; 3]) -> Tensor<3> {
        crate::testing::random(shape)
    }

    /// Every form, with and without gains, a projection of its own and a table.
    #[test]
    fn folding_keeps_what_is_modulated() {
        let device = Device::flex();
        let forms = [
            ModulationConfig::ADALN_ZERO,
            ModulationConfig::ADALN_SINGLE,
            ModulationConfig::ROTATION_SCALE,
            ModulationConfig { gate_form: GateForm::Tanh, ..ModulationConfig::ADALN_ZERO },
            ModulationConfig { scale: false, ..ModulationConfig::ROTATION_SCALE },
        ];
        for (i, (form, preserved)) in
            forms.into_iter().flat_map(|form| [(form, false), (form, true)]).enumerate()
        {
            let project = |i, o| DenseConfig::new(i, o, preserved);
            let init = Init::new(0, &device);
            let mut layer = Modulation::new([16, 16], 2, true, form, project, &init);
            if let Some(dense) = &mut layer.dense {
                dense.weight = dense.weight.clone().map(|w| {
                    let [inputs, outputs] = w.dims();
                    random([1, inputs, outputs]).reshape([inputs as i32, outputs as i32])
                });
            }
            let width = if form.single { (2.0 * 16.0 * form.width(true)) as usize } else { 16 };
            if let Some(gain) = layer.gain.take() {
                let count = gain.val().dims()[0];
                let small = random([1, 1, count]) * 0.2;
                layer.gain = Some(gain.map(|_| small.reshape([count as i32])));
            }
            let (condition, x) = (random([2, 1, width]), random([2, 5, 16]));
            let mut folded = layer.clone().folded().folded();
            // What is put on counts as much before as after.
            if let (Some(a), Some(b)) = (&mut layer.dense, &mut folded.dense) {
                let [inputs, outputs] = a.widths();
                let part = |rows: usize, columns: usize| -> Tensor<2> {
                    (random([1, rows, columns]) * 0.3).reshape([rows as i32, columns as i32])
                };
                let (down, up) = (part(inputs, 2), part(2, outputs));
                let terms = [LowRank { down, up, start: 0 }];
                a.put_on(&terms);
                b.put_on(&terms);
            }
            let branches = layer.forward(condition.clone()).into_iter();
            for (a, b) in branches.zip(folded.forward(condition)) {
                let [a, b] = [a, b].map(|branch| {
                    let y = branch.input(x.clone(), Some(RowNorm::Layer(1e-6)));
                    branch.join(x.clone(), y, None)
                });
                assert!(a.all_close(b, Some(1e-5), Some(1e-5)), "{i}");
            }
        }
    }

    #[test]
    fn everything_is_the_identity_at_the_start() {
        let device = Device::flex();
        let config = ModulationConfig { shift: true, ..ModulationConfig::ROTATION_SCALE };
        let project = |i, o| DenseConfig::new(i, o, true);
        let layer = Modulation::new([16, 16], 2, true, config, project, &Init::new(0, &device));
        let x = random([2, 5, 16]);
        for branch in layer.forward(random([2, 1, 16])) {
            let y = branch.input(x.clone(), None);
            assert!(y.clone().equal(x.clone()).all().into_scalar::<bool>());
            let twice = branch.join(x.clone(), y, None);
            assert!(twice.equal(x.clone() * 2.0).all().into_scalar::<bool>());
        }
    }
}
