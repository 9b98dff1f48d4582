//! Inception-v3 (Szegedy et al. 2016) as the Fréchet inception distance takes it: the classifier of 2015 with
//! 1008 outputs, whose pooling leaves the border out and whose last block takes the largest values.

use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::conv_norm::{Folded, Unit, largest, mean, windows};
use crate::layers::Init;
use crate::ops::Activation;

/// Side of the images it was trained on.
pub const SIDE: usize = 299;

/// The network without its classifier.
#[derive(Module, Debug)]
pub struct Inception {
    /// In the order of [`Inception::names`].
    pub units: Vec<Unit>,
}

/// One step of a branch.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A convolution: name, outputs, kernel, stride, and whether a border of zeros keeps the size.
    Conv(&'static str, usize, [usize; 2], usize, bool),
    /// Two convolutions side by side, of 1 x 3 and 3 x 1: their names and outputs.
    Fork([&'static str; 2], usize),
    /// Means of 3 x 3, without what is beyond the border.
    Average,
    /// Largest of 3 x 3.
    Largest,
    /// Largest of 3 x 3, 2 apart.
    Smaller,
}
use Step::{Average, Conv, Fork, Largest, Smaller};

/// Branches whose outputs are put side by side.
struct Block {
    name: &'static str,
    branches: Vec<Vec<Step>>,
}

fn conv(name: &'static str, outputs: usize, kernel: [usize; 2]) -> Step {
    Conv(name, outputs, kernel, 1, true)
}

/// 3 x 3 without a border.
fn inner(name: &'static str, outputs: usize, stride: usize) -> Step {
    Conv(name, outputs, [3, 3], stride, false)
}

#[expect(clippy::too_many_lines, reason = "a table of the published network, a line per layer")]
fn blocks() -> Vec<Block> {
    let (one, three, five) = ([1, 1], [3, 3], [5, 5]);
    let (wide, tall) = ([1, 7], [7, 1]);
    let block = |name, branches| Block { name, branches };
    let stem = vec![
        inner("Conv2d_1a_3x3", 32, 2),
        inner("Conv2d_2a_3x3", 32, 1),
        conv("Conv2d_2b_3x3", 64, three),
        Smaller,
        conv("Conv2d_3b_1x1", 80, one),
        inner("Conv2d_4a_3x3", 192, 1),
        Smaller,
    ];
    let fine = |name, pooled| {
        let fives = vec![conv("branch5x5_1", 48, one), conv("branch5x5_2", 64, five)];
        let threes = vec![
            conv("branch3x3dbl_1", 64, one),
            conv("branch3x3dbl_2", 96, three),
            conv("branch3x3dbl_3", 96, three),
        ];
        let pool = vec![Average, conv("branch_pool", pooled, one)];
        block(name, vec![vec![conv("branch1x1", 64, one)], fives, threes, pool])
    };
    let middle = |name, width| {
        let sevens = vec![
            conv("branch7x7_1", width, one),
            conv("branch7x7_2", width, wide),
            conv("branch7x7_3", 192, tall),
        ];
        let double = vec![
            conv("branch7x7dbl_1", width, one),
            conv("branch7x7dbl_2", width, tall),
            conv("branch7x7dbl_3", width, wide),
            conv("branch7x7dbl_4", width, tall),
            conv("branch7x7dbl_5", 192, wide),
        ];
        let pool = vec![Average, conv("branch_pool", 192, one)];
        block(name, vec![vec![conv("branch1x1", 192, one)], sevens, double, pool])
    };
    let coarse = |name, pooling| {
        let threes =
            vec![conv("branch3x3_1", 384, one), Fork(["branch3x3_2a", "branch3x3_2b"], 384)];
        let double = vec![
            conv("branch3x3dbl_1", 448, one),
            conv("branch3x3dbl_2", 384, three),
            Fork(["branch3x3dbl_3a", "branch3x3dbl_3b"], 384),
        ];
        let pool = vec![pooling, conv("branch_pool", 192, one)];
        block(name, vec![vec![conv("branch1x1", 320, one)], threes, double, pool])
    };
    let first_half = vec![
        vec![inner("branch3x3", 384, 2)],
        vec![
            conv("branch3x3dbl_1", 64, one),
            conv("branch3x3dbl_2", 96, three),
            inner("branch3x3dbl_3", 96, 2),
        ],
        vec![Smaller],
    ];
    let second_half = vec![
        vec![conv("branch3x3_1", 192, one), inner("branch3x3_2", 320, 2)],
        vec![
            conv("branch7x7x3_1", 192, one),
            conv("branch7x7x3_2", 192, wide),
            conv("branch7x7x3_3", 192, tall),
            inner("branch7x7x3_4", 192, 2),
        ],
        vec![Smaller],
    ];
    vec![
        block("", vec![stem]),
        fine("Mixed_5b", 32),
        fine("Mixed_5c", 64),
        fine("Mixed_5d", 64),
        block("Mixed_6a", first_half),
        middle("Mixed_6b", 128),
        middle("Mixed_6c", 160),
        middle("Mixed_6d", 160),
        middle("Mixed_6e", 192),
        block("Mixed_7a", second_half),
        coarse("Mixed_7b", Average),
        coarse("Mixed_7c", Largest),
    ]
}

/// Name, `[in, out]` and kernel of each convolution.
fn convolutions() -> Vec<(String, [usize; 2], [usize; 2])> {
    let mut found = Vec::new();
    let mut inputs = 3;
    for Block { name: block, branches } in blocks() {
        let full = |name: &str| match block {
            "" => name.to_owned(),
            _ => format!("{block}.{name}"),
        };
        let mut joined = 0;
        for branch in branches {
            let mut width = inputs;
            for step in branch {
                match step {
                    Conv(name, outputs, kernel, ..) => {
                        found.push((full(name), [width, outputs], kernel));
                        width = outputs;
                    }
                    Fork([across, down], outputs) => {
                        found.push((full(across), [width, outputs], [1, 3]));
                        found.push((full(down), [width, outputs], [3, 1]));
                        width = 2 * outputs;
                    }
                    Average | Largest | Smaller => (),
                }
            }
            joined += width;
        }
        inputs = joined;
    }
    found
}

impl Inception {
    /// Makes the network with fresh weights.
    pub fn new(device: &Device) -> Self {
        let init = &Init::new(0, device);
        let unit = |(_, channels, kernel)| Unit::new(channels, kernel, 1, init);
        Self { units: convolutions().into_iter().map(unit).collect() }
    }

    /// Names of the convolutions in PyTorch's state dicts, such as `Mixed_5b.branch1x1`.
    pub fn names() -> Vec<String> {
        convolutions().into_iter().map(|(name, ..)| name).collect()
    }

    /// The network for inference, with the batch norms multiplied into the convolutions.
    pub fn folded(&self) -> FoldedInception {
        FoldedInception { units: self.units.iter().map(Unit::folded).collect() }
    }
}

/// An [`Inception`] for inference.
#[derive(Debug, Clone)]
pub struct FoldedInception {
    units: Vec<Folded>,
}

impl FoldedInception {
    /// The mean over all places of the last layer.
    ///
    /// # Shapes
    /// `x`: `[batch, 3, 299, 299]` in [-1, 1], output: `[batch, 2048]`
    pub fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let mut units = self.units.iter();
        let mut next = || units.next().expect("one per convolution");
        let mut x = x.permute([0, 2, 3, 1]);
        for block in blocks() {
            let mut parts = Vec::new();
            for branch in block.branches {
                parts.push(branch.iter().fold(x.clone(), |x, step| match *step {
                    Conv(_, _, kernel, stride, padded) => {
                        next().convolve(x, kernel, stride, padded)
                    }
                    Fork(..) => {
                        let across = next().convolve(x.clone(), [1, 3], 1, true);
                        Tensor::cat(vec![across, next().convolve(x, [3, 1], 1, true)], 3)
                    }
                    Average => {
                        let count = bordered(Tensor::ones_like(&x), [3, 3], 0.0);
                        let sum = windows(&bordered(x, [3, 3], 0.0), [3, 3], 1).into_iter();
                        let count = windows(&count, [3, 3], 1).into_iter();
                        sum.reduce(|a, b| a + b).expect("nine")
                            / count.reduce(|a, b| a + b).expect("nine")
                    }
                    Largest => largest(&bordered(x, [3, 3], f32::NEG_INFINITY), 3, 1),
                    Smaller => largest(&x, 3, 2),
                }));
            }
            x = Tensor::cat(parts, 3);
        }
        mean(x)
    }
}

impl Folded {
    fn convolve(&self, x: Tensor<4>, kernel: [usize; 2], stride: usize, padded: bool) -> Tensor<4> {
        let x = if padded { bordered(x, kernel, 0.0) } else { x };
        let x = match kernel {
            [1, 1] => x,
            _ => Tensor::cat(windows(&x, kernel, stride), 3),
        };
        self.pointwise(x, Some(Activation::Relu))
    }
}

/// With a border with which a kernel keeps the size.
fn bordered(x: Tensor<4>, [rows, columns]: [usize; 2], value: f32) -> Tensor<4> {
    match (rows / 2, columns / 2) {
        (0, 0) => x,
        (down, across) => x.pad([(0, 0), (down, down), (across, across), (0, 0)], value),
    }
}
