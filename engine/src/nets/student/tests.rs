//! Students against one pass over all tokens with a dense mask, and against the published numbers.

use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor, TensorData};

use super::{History, Memory, Points, Student, StudentConfig};
use crate::layers::Attend;
use crate::nets::{
    BlockMode, Conditioning, Dit, DitConfig, Encoded, Flexible, Net, NetConfig, Sharing,
};
use crate::ops::AttentionBias;
use crate::testing::Draws;
use crate::train::params;

const HISTORIES: [History; 4] = [History::Newest, History::Previous, History::Noise, History::All];

fn steps(steps: usize, history: History, history_layers: usize) -> StudentConfig {
    StudentConfig {
        times: StudentConfig::even_times(steps, 999.0),
        patches: vec![2; steps],
        history,
        history_layers,
        own_heads: true,
        points: Points::Estimates,
    }
}

/// A network of random weights throughout, with adaLN or magnitude-preserving.
fn net(config: DitConfig) -> Dit {
    config.init(0, &Device::flex()).map(&mut Draws::new(3, 0.2))
}

/// A student of random weights throughout.
fn student(steps: StudentConfig, dit: DitConfig) -> Student {
    let net = NetConfig { dit, student: Some(steps) }.init(0, &Device::flex());
    match net.map(&mut Draws::new(3, 0.2)) {
        Net::Student(student) => student,
        Net::Dit(_) => unreachable!("a student was described"),
    }
}

fn small(preserved: bool) -> DitConfig {
    let base = match preserved {
        true => DitConfig::mp_dit(32, 4, 4),
        false => DitConfig::dit(32, 4, 4),
    };
    DitConfig { size: [8, 8], classes: 3, learned_variance: false, ..base }
}

fn classes() -> Conditioning {
    Conditioning::classes(&[0, 2], &Device::flex())
}

fn points(steps: usize) -> Vec<Tensor<4>> {
    let mut draws = Draws::new(7, 1.0);
    (0..steps).map(|_| draws.tensor([2, 4, 8, 8])).collect()
}

/// Largest difference as a share of the largest value.
fn difference<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> f32 {
    let scale: f32 = b.clone().abs().max().into_scalar();
    (a.clone() - b.clone()).abs().max().into_scalar::<f32>() / scale
}

/// All steps in one pass: every point's tokens side by side, conditions per token, dense masks.
fn dense(student: &Student, points: &[Tensor<4>], told: &Conditioning) -> Vec<Tensor<4>> {
    let (net, config) = (student.trunk(), student.config());
    let device = points[0].device();
    let counts: Vec<usize> = config.patches.iter().map(|patch| 64 / patch / patch).collect();
    let block_of: Vec<usize> =
        counts.iter().enumerate().flat_map(|(i, &count)| vec![i; count]).collect();
    let mask = |history: bool| {
        let sees = |q: usize, k: usize| q == k || history && config.sees(q, k);
        let hidden: Vec<bool> =
            block_of.iter().flat_map(|&q| block_of.iter().map(move |&k| !sees(q, k))).collect();
        let total = block_of.len();
        let hidden = TensorData::new(hidden, [1, 1, total, total]);
        AttentionBias::hidden(Tensor::<4, Bool>::from_data(hidden, &device))
    };
    let (with, without) = (mask(true), mask(false));
    let condition = |time: &f64| net.embedder.forward(Tensor::full([2], *time, &device), told);
    let conditions: Vec<Tensor<3>> = config.times.iter().map(condition).collect();
    let per_token = conditions.iter().zip(&counts).map(|(c, &n)| c.clone().expand([2, n, 32]));
    let per_token: Tensor<3> = Tensor::cat(per_token.collect(), 1);
    let embedded =
        points.iter().zip(&config.patches).map(|(x, &patch)| net.embed(x.clone(), patch));
    let mut tokens: Tensor<3> = Tensor::cat(embedded.collect(), 1);
    for (i, block) in net.blocks.iter().enumerate() {
        let mask = if i < config.history_layers { &with } else { &without };
        let attend = Attend::Biased(mask);
        tokens = block.forward(tokens, per_token.clone(), attend, BlockMode::default());
    }
    let mut first = 0;
    let mut outputs = Vec::new();
    for (step, condition) in conditions.into_iter().enumerate() {
        let tokens = tokens.clone().narrow(1, first, counts[step]);
        outputs.push(student.decode(Encoded { tokens, condition }, step, [8, 8]));
        first += counts[step];
    }
    outputs
}

#[test]
fn steps_with_caches_equal_one_masked_pass() {
    for preserved in [false, true] {
        for (history, layers) in HISTORIES.into_iter().flat_map(|h| [0, 2, 4].map(|n| (h, n))) {
            let net = student(steps(4, history, layers), small(preserved));
            let points = points(4);
            let expected = dense(&net, &points, &classes());
            for (step, (a, b)) in net.steps(points, &classes()).iter().zip(&expected).enumerate() {
                let worst = difference(a, b);
                assert!(worst < 1e-5, "{history:?}, {layers} layers, step {step}: {worst:e}");
            }
        }
    }
}

#[test]
fn gradients_equal_those_of_one_masked_pass() {
    let net = student(steps(3, History::All, 2), small(true)).train();
    let device = Device::flex().autodiff();
    let points: Vec<Tensor<4>> = points(3).into_iter().map(|x| x.to_device(&device)).collect();
    let told = classes();
    let gradients = |outputs: Vec<Tensor<4>>| {
        let loss = outputs.into_iter().map(|y| y.square().mean()).reduce(|a, b| a + b);
        params::gradients(&net, &loss.expect("steps").backward())
    };
    let found = gradients(net.steps(points.clone(), &told));
    let expected = gradients(dense(&net, &points, &told));
    for ((name, a), b) in params::names(&net).iter().zip(&found).zip(&expected) {
        let scale: f32 = b.clone().abs().max().into_scalar();
        let worst: f32 = (a.clone() - b.clone()).abs().max().into_scalar();
        assert!(worst <= 1e-4 * scale.max(1e-6), "{name}: {worst:e} of {scale:e}");
    }
}

#[test]
fn a_step_changes_none_before_it_and_all_that_see_it() {
    for (history, layers) in [(History::All, 2), (History::All, 0), (History::Newest, 2)] {
        let net = student(steps(4, history, layers), small(false));
        let points = points(4);
        let before = net.steps(points.clone(), &classes());
        for changed in 0..4 {
            let mut points = points.clone();
            points[changed] = points[changed].clone() + 1.0;
            for (step, after) in net.steps(points, &classes()).into_iter().enumerate() {
                let same: bool = after.equal(before[step].clone()).all().into_scalar();
                let sees = steps(4, history, layers).sees(step, changed);
                assert_eq!(same, step != changed && !sees, "{changed} and {step}");
            }
        }
    }
}

#[test]
fn without_history_each_step_is_the_network_at_its_time() {
    let teacher = net(small(false));
    let steps = steps(4, History::All, 0);
    let times = steps.times.clone();
    let net = Student::new(teacher.clone(), steps).expect("steps that fit");
    assert_eq!(net.later_heads.len(), 3);
    let points = points(4);
    let found = net.steps(points.clone(), &classes());
    for ((x, y), time) in points.into_iter().zip(found).zip(times) {
        let expected = teacher.forward(x, Tensor::full([2], time, &Device::flex()), &classes(), 2);
        assert!(difference(&y, &expected) < 1e-6);
    }
}

#[test]
fn students_start_as_their_teacher_at_any_patch_size() {
    for sharing in [Sharing::Kernels { underlying: 4 }, Sharing::Adapters { rank: 2 }] {
        let flexible = Some(Flexible { patches: vec![4], sharing, corners: false });
        let teacher = net(DitConfig { flexible, ..small(false) });
        let steps = StudentConfig { patches: vec![4, 4, 2], ..steps(3, History::Newest, 2) };
        let (times, patches) = (steps.times.clone(), steps.patches.clone());
        let net = Student::new(teacher.clone(), steps).expect("steps that fit");
        let points = points(3);
        let found = net.steps(points.clone(), &classes());
        for (step, (x, y)) in points.into_iter().zip(&found).enumerate() {
            let time = Tensor::full([2], times[step], &Device::flex());
            let expected = teacher.forward(x, time, &classes(), patches[step]);
            assert!(difference(y, &expected) < 1e-5, "step {step}");
        }
        let folded = net.folded().steps(self::points(3), &classes());
        assert_eq!(folded.len(), 3);
        for (step, (a, b)) in folded.iter().zip(&found).enumerate() {
            assert!(difference(a, b) < 1e-5, "folded, step {step}");
        }
    }
}

#[test]
fn history_reaches_across_patch_sizes() {
    let flexible =
        Flexible { patches: vec![4], sharing: Sharing::Kernels { underlying: 4 }, corners: false };
    let steps = StudentConfig { patches: vec![4, 2, 2], ..steps(3, History::All, 2) };
    // Without norms, whose affines the dense pass does not know.
    let net = student(steps, DitConfig { flexible: Some(flexible), ..small(true) });
    let points = points(3);
    let expected = dense(&net, &points, &classes());
    for (a, b) in net.folded().steps(points, &classes()).iter().zip(&expected) {
        assert!(difference(a, b) < 1e-5);
    }
}

#[test]
fn one_step_needs_no_history() {
    let all = student(steps(1, History::All, 3), small(true));
    let newest = Student { config: steps(1, History::Newest, 3), ..all.clone() };
    let noise = points(1);
    let (all, newest) = (all.steps(noise.clone(), &classes()), newest.steps(noise, &classes()));
    let (all, newest) = (all[0].clone(), newest[0].clone());
    assert!(all.equal(newest).all().into_scalar::<bool>());
}

#[test]
fn memory_is_bounded_and_given_back() {
    for (history, most) in HISTORIES.into_iter().zip([0, 1, 1, 3]) {
        let net = student(steps(4, history, 2), small(false));
        let mut memory = Memory::default();
        for (step, x) in points(4).into_iter().enumerate() {
            net.step(x, &classes(), step, &mut memory);
            let held: usize = memory.caches.iter().map(|cache| cache.tokens()).sum();
            assert!(held <= 2 * most * 16, "{history:?}, step {step}: {held} tokens");
        }
        assert!(memory.caches.is_empty());
    }
}

#[test]
fn operations_and_parameters_are_the_published_ones() {
    let (hidden, depth, heads) = DitConfig::preset("XL").expect("a published size");
    let dit = DitConfig::dit(hidden, depth, heads);
    let gmacs = |history, layers| {
        steps(4, history, layers).flops(&dit, [32, 32], 0).iter().sum::<f64>() / 2e9
    };
    let plain = gmacs(History::Newest, 6);
    assert!((plain - 474.48).abs() < 0.01, "{plain}");
    assert!((gmacs(History::All, 6) - plain - 5.436).abs() < 0.001);
    assert!(((gmacs(History::All, 6) / plain - 1.0) * 100.0 - 1.146).abs() < 0.001);
    for history in [History::Previous, History::Noise] {
        assert!((gmacs(history, 6) - plain - 5.436 / 2.0).abs() < 0.001);
    }
    assert!((gmacs(History::All, 28) - plain - 25.37).abs() < 0.01);

    let config = NetConfig { dit, student: Some(steps(4, History::All, 6)) };
    // The published total includes the fixed table of positions.
    assert_eq!(config.parameters() + 256 * hidden, 683_209_856);
}

#[test]
fn the_products_of_every_step_are_those_of_the_formula() {
    for history in HISTORIES {
        for preserved in [false, true] {
            let (steps, dit) = (steps(4, history, 2), small(preserved));
            let net = student(steps.clone(), dit.clone()).folded();
            let mut memory = Memory::default();
            let expected = steps.flops(&dit, dit.size, 0);
            for (step, (x, flops)) in points(4).into_iter().zip(expected).enumerate() {
                let (x, told) = (x.narrow(0, 0, 1), classes().select(&[0]));
                let counted = crate::ops::counted(|| {
                    net.step(x, &told, step, &mut memory);
                });
                assert_eq!(counted as f64, flops / 2.0, "{history:?}, step {step}");
            }
        }
    }
}

#[test]
fn impossible_students_are_refused() {
    let check = |student: StudentConfig| student.check(&small(false));
    let fits = steps(4, History::All, 4);
    assert_eq!(check(fits.clone()), Ok(()));
    let wrong = [
        (steps(9, History::All, 2), "9 steps, expected 1 to 8"),
        (steps(4, History::All, 5), "5 blocks, the network has 4"),
        (StudentConfig { patches: vec![2], ..fits.clone() }, "1 patch sizes for the 4 steps"),
        (StudentConfig { patches: vec![2, 2, 2, 4], ..fits.clone() }, "patch size 4"),
        (StudentConfig { times: vec![1.0, f64::NAN, 0.0, 0.0], ..fits.clone() }, "NaN"),
    ];
    for (student, part) in wrong {
        let error = check(student).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
}
