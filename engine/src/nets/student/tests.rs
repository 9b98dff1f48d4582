//! Students against one pass over all tokens with a dense mask, and against the published numbers.

use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use super::{History, Memory, Points, Student, distillable};
use crate::layers::Attend;
use crate::nets::modes::BlockMode;
use crate::nets::{Dit, DitConfig, Flexible, Sharing};
use crate::ops::AttentionBias;
use crate::testing::Draws;
use crate::train::params;

const HISTORIES: [History; 4] = [History::Newest, History::Previous, History::Noise, History::All];

fn student(steps: usize, history: History, history_layers: usize) -> Student {
    Student {
        times: Student::even_times(steps, 999.0),
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

fn small(preserved: bool) -> DitConfig {
    let base = match preserved {
        true => DitConfig::mp_dit(32, 4, 4),
        false => DitConfig::dit(32, 4, 4),
    };
    DitConfig { size: [8, 8], classes: 3, learned_variance: false, ..base }
}

fn labels() -> Tensor<1, Int> {
    Tensor::from_data([0, 2], &Device::flex())
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
fn dense(net: &Dit, points: &[Tensor<4>], labels: &Tensor<1, Int>) -> Vec<Tensor<4>> {
    let student = net.config.student.as_ref().expect("a student");
    let device = points[0].device();
    let counts: Vec<usize> = student.patches.iter().map(|patch| 64 / patch / patch).collect();
    let block_of: Vec<usize> =
        counts.iter().enumerate().flat_map(|(i, &count)| vec![i; count]).collect();
    let mask = |history: bool| {
        let sees = |q: usize, k: usize| q == k || history && student.sees(q, k);
        let hidden: Vec<bool> =
            block_of.iter().flat_map(|&q| block_of.iter().map(move |&k| !sees(q, k))).collect();
        let total = block_of.len();
        let hidden = TensorData::new(hidden, [1, 1, total, total]);
        AttentionBias::hidden(Tensor::<4, Bool>::from_data(hidden, &device))
    };
    let (with, without) = (mask(true), mask(false));
    let conditions: Vec<Tensor<3>> = student
        .times
        .iter()
        .map(|time| {
            let time = Tensor::full([2], *time, &device);
            net.condition(&net.embedder, time, labels.clone())
        })
        .collect();
    let per_token = conditions.iter().zip(&counts).map(|(c, &n)| c.clone().expand([2, n, 32]));
    let per_token: Tensor<3> = Tensor::cat(per_token.collect(), 1);
    let embedded =
        points.iter().zip(&student.patches).map(|(x, &patch)| net.embed(x.clone(), patch));
    let mut tokens: Tensor<3> = Tensor::cat(embedded.collect(), 1);
    for (i, block) in net.blocks.iter().enumerate() {
        let mask = if i < student.history_layers { &with } else { &without };
        let attend = Attend::Biased(mask);
        tokens = block.forward(tokens, per_token.clone(), attend, BlockMode::default());
    }
    let mut first = 0;
    let mut outputs = Vec::new();
    for (step, condition) in conditions.into_iter().enumerate() {
        let own = tokens.clone().narrow(1, first, counts[step]);
        let head = step.checked_sub(1).and_then(|later| net.later_heads.get(later));
        outputs.push(net.unembed(own, condition, [8, 8], student.patches[step], head));
        first += counts[step];
    }
    outputs
}

#[test]
fn steps_with_caches_equal_one_masked_pass() {
    for preserved in [false, true] {
        for (history, layers) in HISTORIES.into_iter().flat_map(|h| [0, 2, 4].map(|n| (h, n))) {
            let net =
                net(DitConfig { student: Some(student(4, history, layers)), ..small(preserved) });
            let points = points(4);
            let expected = dense(&net, &points, &labels());
            for (step, (a, b)) in net.steps(points, &labels()).iter().zip(&expected).enumerate() {
                let worst = difference(a, b);
                assert!(worst < 1e-5, "{history:?}, {layers} layers, step {step}: {worst:e}");
            }
        }
    }
}

#[test]
fn gradients_equal_those_of_one_masked_pass() {
    let net = net(DitConfig { student: Some(student(3, History::All, 2)), ..small(true) }).train();
    let device = Device::flex().autodiff();
    let points: Vec<Tensor<4>> = points(3).into_iter().map(|x| x.to_device(&device)).collect();
    let labels = labels().to_device(&device);
    let gradients = |outputs: Vec<Tensor<4>>| {
        let loss = outputs.into_iter().map(|y| y.square().mean()).reduce(|a, b| a + b);
        params::gradients(&net, &loss.expect("steps").backward())
    };
    let found = gradients(net.steps(points.clone(), &labels));
    let expected = gradients(dense(&net, &points, &labels));
    for ((name, a), b) in params::names(&net).iter().zip(&found).zip(&expected) {
        let scale: f32 = b.clone().abs().max().into_scalar();
        let worst: f32 = (a.clone() - b.clone()).abs().max().into_scalar();
        assert!(worst <= 1e-4 * scale.max(1e-6), "{name}: {worst:e} of {scale:e}");
    }
}

#[test]
fn a_step_changes_none_before_it_and_all_that_see_it() {
    for (history, layers) in [(History::All, 2), (History::All, 0), (History::Newest, 2)] {
        let net = net(DitConfig { student: Some(student(4, history, layers)), ..small(false) });
        let points = points(4);
        let before = net.steps(points.clone(), &labels());
        for changed in 0..4 {
            let mut points = points.clone();
            points[changed] = points[changed].clone() + 1.0;
            for (step, after) in net.steps(points, &labels()).into_iter().enumerate() {
                let same: bool = after.equal(before[step].clone()).all().into_scalar();
                let sees = student(4, history, layers).sees(step, changed);
                assert_eq!(same, step != changed && !sees, "{changed} and {step}");
            }
        }
    }
}

#[test]
fn without_history_each_step_is_the_network_at_its_time() {
    let teacher = net(small(false));
    let student = student(4, History::All, 0);
    let times = student.times.clone();
    let net = distillable(teacher.clone(), student).expect("steps that fit");
    assert_eq!(net.later_heads.len(), 3);
    let points = points(4);
    let found = net.steps(points.clone(), &labels());
    for ((x, y), time) in points.into_iter().zip(found).zip(times) {
        let expected = teacher.forward(x, Tensor::full([2], time, &Device::flex()), labels(), 2);
        assert!(difference(&y, &expected) < 1e-6);
    }
}

#[test]
fn students_start_as_their_teacher_at_any_patch_size() {
    for sharing in [Sharing::Kernels { underlying: 4 }, Sharing::Adapters { rank: 2 }] {
        let flexible = Some(Flexible { patches: vec![4], sharing, corners: false });
        let teacher = net(DitConfig { flexible, ..small(false) });
        let student = Student { patches: vec![4, 4, 2], ..student(3, History::Newest, 2) };
        let (times, patches) = (student.times.clone(), student.patches.clone());
        let net = distillable(teacher.clone(), student).expect("steps that fit");
        let points = points(3);
        let found = net.steps(points.clone(), &labels());
        for (step, (x, y)) in points.into_iter().zip(&found).enumerate() {
            let time = Tensor::full([2], times[step], &Device::flex());
            let expected = teacher.forward(x, time, labels(), patches[step]);
            assert!(difference(y, &expected) < 1e-5, "step {step}");
        }
        let folded = net.folded().steps(self::points(3), &labels());
        assert_eq!(folded.len(), 3);
    }
}

#[test]
fn history_reaches_across_patch_sizes() {
    let flexible =
        Flexible { patches: vec![4], sharing: Sharing::Kernels { underlying: 4 }, corners: false };
    let student = Student { patches: vec![4, 2, 2], ..student(3, History::All, 2) };
    // Without norms, whose affines the dense pass does not know.
    let config = DitConfig { flexible: Some(flexible), student: Some(student), ..small(true) };
    let net = net(config);
    let points = points(3);
    let expected = dense(&net, &points, &labels());
    for (a, b) in net.folded().steps(points, &labels()).iter().zip(&expected) {
        assert!(difference(a, b) < 1e-5);
    }
}

#[test]
fn one_step_needs_no_history() {
    let with = |history| DitConfig { student: Some(student(1, history, 3)), ..small(true) };
    let all = net(with(History::All));
    let mut newest = all.clone();
    newest.config = with(History::Newest);
    let noise = points(1);
    let (all, newest) = (all.steps(noise.clone(), &labels()), newest.steps(noise, &labels()));
    let (all, newest) = (all[0].clone(), newest[0].clone());
    assert!(all.equal(newest).all().into_scalar::<bool>());
}

#[test]
fn memory_is_bounded_and_given_back() {
    for (history, most) in HISTORIES.into_iter().zip([0, 1, 1, 3]) {
        let net = net(DitConfig { student: Some(student(4, history, 2)), ..small(false) });
        let mut memory = Memory::default();
        for (step, x) in points(4).into_iter().enumerate() {
            net.step(x, labels(), step, &mut memory);
            let held: usize = memory.caches.iter().map(|cache| cache.tokens()).sum();
            assert!(held <= 2 * most * 16, "{history:?}, step {step}: {held} tokens");
        }
        assert!(memory.caches.is_empty());
    }
}

#[test]
fn operations_and_parameters_are_the_published_ones() {
    let (hidden, depth, heads) = DitConfig::preset("XL").expect("a published size");
    let gmacs = |history, layers| {
        let student = Some(student(4, history, layers));
        let config = DitConfig { student, ..DitConfig::dit(hidden, depth, heads) };
        config.student_flops([32, 32]).iter().sum::<f64>() / 2e9
    };
    let plain = gmacs(History::Newest, 6);
    assert!((plain - 474.48).abs() < 0.01, "{plain}");
    assert!((gmacs(History::All, 6) - plain - 5.436).abs() < 0.001);
    assert!(((gmacs(History::All, 6) / plain - 1.0) * 100.0 - 1.146).abs() < 0.001);
    for history in [History::Previous, History::Noise] {
        assert!((gmacs(history, 6) - plain - 5.436 / 2.0).abs() < 0.001);
    }
    assert!((gmacs(History::All, 28) - plain - 25.37).abs() < 0.01);

    let student = Some(student(4, History::All, 6));
    let config = DitConfig { student, ..DitConfig::dit(hidden, depth, heads) };
    // The published total includes the fixed table of positions.
    assert_eq!(config.parameters() + 256 * hidden, 683_209_856);
}

#[test]
fn the_products_of_every_step_are_those_of_the_formula() {
    for history in HISTORIES {
        for preserved in [false, true] {
            let config = DitConfig { student: Some(student(4, history, 2)), ..small(preserved) };
            let net = net(config.clone()).folded();
            let mut memory = Memory::default();
            let expected = config.student_flops(config.size);
            for (step, (x, flops)) in points(4).into_iter().zip(expected).enumerate() {
                let (x, label) = (x.narrow(0, 0, 1), labels().narrow(0, 0, 1));
                let counted = crate::ops::counted(|| {
                    net.step(x, label, step, &mut memory);
                });
                assert_eq!(counted as f64, flops / 2.0, "{history:?}, step {step}");
            }
        }
    }
}

#[test]
fn impossible_students_are_refused() {
    let check = |student| DitConfig { student: Some(student), ..small(false) }.check();
    let fits = student(4, History::All, 4);
    assert_eq!(check(fits.clone()), Ok(()));
    let wrong = [
        (student(9, History::All, 2), "9 steps, expected 1 to 8"),
        (student(4, History::All, 5), "5 blocks, the network has 4"),
        (Student { patches: vec![2], ..fits.clone() }, "1 patch sizes for the 4 steps"),
        (Student { patches: vec![2, 2, 2, 4], ..fits.clone() }, "patch size 4"),
        (Student { times: vec![1.0, f64::NAN, 0.0, 0.0], ..fits.clone() }, "NaN"),
    ];
    for (student, part) in wrong {
        let error = check(student).expect_err(part);
        assert!(error.contains(part), "{error}");
    }
    let net = net(DitConfig { student: Some(fits.clone()), ..small(false) });
    assert!(distillable(net, fits).expect_err("twice").contains("4 steps already"));
}
