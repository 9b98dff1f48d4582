use proptest::prelude::*;

use super::*;

fn features(rows: &[Vec<f32>]) -> Features {
    Features::new(rows).expect("finite rows")
}

fn normal(count: usize, width: usize, scale: f32, shift: f32, seed: u64) -> Vec<Vec<f32>> {
    let values = Generator::new(seed).normal(count * width);
    let row = |row: &[f32]| row.iter().map(|v| v * scale + shift).collect();
    values.chunks(width).map(row).collect()
}

fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    frechet(&features(a), &features(b), 0, 0).expect("a distance").value
}

/// Rows several times each.
fn repeated(rows: &[Vec<f32>], times: &[usize]) -> Vec<Vec<f32>> {
    let rows = rows.iter().zip(times);
    rows.flat_map(|(row, &times)| std::iter::repeat_n(row.clone(), times)).collect()
}

fn assert_near(found: f64, expected: f64, scale: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-7 * scale, "{what}: {found}, expected {expected}");
}

/// All sets of two images lie on a line, where the distance is that of two numbers and their deviations.
#[test]
fn sets_of_two_images() {
    let times = [[1, 1], [2, 2], [4, 4], [50, 50], [3, 1], [1, 100], [0, 2], [60, 70]];
    for width in [32, 1280, 2048] {
        let two = normal(2, width, 1.0, 1.0, width as u64);
        let apart: f64 =
            two[0].iter().zip(&two[1]).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        for a in times {
            for b in times {
                let [p, q] = [a, b].map(|[zero, one]: [usize; 2]| {
                    let (zero, one) = (zero as f64, one as f64);
                    let count = zero + one;
                    (one / count, (zero * one / (count * (count - 1.0))).sqrt())
                });
                let expected = apart * ((p.0 - q.0).powi(2) + (p.1 - q.1).powi(2));
                let found = distance(&repeated(&two, &a), &repeated(&two, &b));
                assert_near(found, expected, apart, &format!("{width}: {a:?} and {b:?}"));
            }
        }
    }
}

/// One image many times has no deviation: what is left is the distance to its mean and the other's trace.
#[test]
fn sets_of_one_image() {
    for (width, times) in (1..6).flat_map(|width| (2..9).map(move |times| (width, times))) {
        let one = normal(1, width, 20.0, 3.0, (width * times) as u64);
        let same = vec![one[0].clone(); times];
        for other in [normal(times, width, 20.0, 3.0, 7), vec![vec![7.5; width]; times]] {
            let mean = |j: usize| other.iter().map(|row| f64::from(row[j])).sum::<f64>();
            let expected: f64 = (0..width)
                .map(|j| {
                    let (count, mean) = (times as f64, mean(j) / times as f64);
                    let deviation = |row: &Vec<f32>| (f64::from(row[j]) - mean).powi(2);
                    let variance = other.iter().map(deviation).sum::<f64>() / (count - 1.0);
                    (f64::from(one[0][j]) - mean).powi(2) + variance
                })
                .sum();
            let what = format!("{width}, {times} times");
            assert_near(distance(&same, &other), expected, expected, &what);
            assert_near(distance(&other, &same), expected, expected, &what);
        }
    }
}

/// Deviations along the same orthogonal directions differ one by one.
#[test]
fn sets_of_few_directions() {
    for (width, rank, times) in [(2048, 2, 1), (1280, 2, 30), (64, 2, 40), (64, 5, 1), (64, 64, 3)]
    {
        // Pairs of opposite rows along each axis, with one feature each.
        let set = |length: &dyn Fn(usize) -> f32| {
            let row = |i: usize| -> Vec<f32> {
                let sign = if i.is_multiple_of(2) { 1.0 } else { -1.0 };
                (0..width).map(|j| if j == i / 2 { sign * length(j) } else { 0.0 }).collect()
            };
            repeated(&(0..2 * rank).map(row).collect::<Vec<_>>(), &vec![times; 2 * rank])
        };
        let lengths: [&dyn Fn(usize) -> f32; 2] = [&|j| 1.0 + j as f32, &|j| 3.0 / (1 + j) as f32];
        let share = (2 * times) as f64 / (2 * rank * times - 1) as f64;
        let apart = |j: usize| f64::from(lengths[0](j) - lengths[1](j)).powi(2) * share;
        let scale: f64 = (0..rank).map(|j| f64::from(lengths[0](j)).powi(2) * share).sum();
        let found = distance(&set(lengths[0]), &set(lengths[1]));
        assert_near(found, (0..rank).map(apart).sum(), scale, &format!("{width}, rank {rank}"));
    }
}

/// The square root of a symmetric matrix of full rank.
fn root(matrix: &DMatrix<f64>) -> DMatrix<f64> {
    let eigen = matrix.clone().symmetric_eigen();
    let roots = DMatrix::from_diagonal(&eigen.eigenvalues.map(f64::sqrt));
    &eigen.eigenvectors * roots * eigen.eigenvectors.transpose()
}

/// The published formula, for covariances of full rank.
fn by_covariances(a: &Features, b: &Features) -> f64 {
    let [(m, a), (n, b)] = [a, b].map(|set| {
        let mean = set.0.row_mean();
        let mut centred = set.0.clone();
        centred.row_iter_mut().for_each(|mut row| row -= &mean);
        (mean, centred.transpose() * &centred / (set.count() as f64 - 1.0))
    });
    let half = root(&a);
    (m - n).norm_squared() + a.trace() + b.trace() - 2.0 * root(&(&half * &b * &half)).trace()
}

/// A set of random size, width, rank and scale, with duplicates; and another order of it.
fn any_set(width: usize) -> impl Strategy<Value = (Vec<Vec<f32>>, Vec<Vec<f32>>)> {
    let few = 1usize..6;
    (few.clone(), 1usize..12, any::<u64>(), 0.01f32..100.0).prop_flat_map(
        move |(rank, count, seed, scale)| {
            let directions = normal(rank, width, scale, 0.0, seed);
            let shares = normal(count, rank, 1.0, 0.3, seed ^ 1);
            let row = |shares: &Vec<f32>| -> Vec<f32> {
                let value = |j: usize| shares.iter().zip(&directions).map(|(s, d)| s * d[j]).sum();
                (0..width).map(value).collect()
            };
            let rows: Vec<Vec<f32>> = shares.iter().map(row).collect();
            (proptest::collection::vec(2usize..4, count)).prop_flat_map(move |times| {
                let rows = repeated(&rows, &times);
                (Just(rows.clone()), Just(rows).prop_shuffle())
            })
        },
    )
}

fn extent(rows: &[Vec<f32>]) -> f64 {
    let squares = rows.iter().flatten().map(|value| f64::from(*value).powi(2));
    squares.sum::<f64>() / rows.len() as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_frechet_distance_of_sets_of_any_rank(
        (a, b) in (1usize..40).prop_flat_map(|width| (any_set(width), any_set(width)))
    ) {
        let ((a, reordered), (b, _)) = (a, b);
        let scale = extent(&a) + extent(&b);
        let apart = distance(&a, &b);
        prop_assert!(apart.is_finite() && apart >= 0.0);
        assert_near(distance(&b, &a), apart, scale, "the other way round");
        assert_near(distance(&reordered, &b), apart, scale, "in another order");
        assert_near(distance(&a, &reordered), 0.0, scale, "of equal sets");
        let (a, reordered) = (features(&a), features(&reordered));
        let same = coverage(&a, &reordered, 1000);
        // Neighbourhoods up to the farthest hold everything else, unless all is the same.
        let all = if same.duplicated == 0 { 1.0 } else { 0.0 };
        prop_assert_eq!([same.precision, same.recall, same.coverage], [all; 3]);
    }

    #[test]
    fn both_formulas_agree(width in 1usize..12, seeds: [u64; 2], scale in 0.1f32..10.0) {
        let a = features(&normal(6 * width + 2, width, 1.0, 0.5, seeds[0]));
        let b = features(&normal(5 * width + 3, width, scale, 0.0, seeds[1]));
        let found = frechet(&a, &b, 0, 0).expect("a distance").value;
        let scale = (1.0 + f64::from(scale).powi(2)) * width as f64;
        assert_near(found, by_covariances(&a, &b), 10.0 * scale, "both formulas");
    }
}

#[test]
fn the_distance_of_known_gaussians() {
    let set = |count, scale, shift, seed| features(&normal(count, 4, scale, shift, seed));
    let (a, b) = (set(20_000, 1.0, 0.0, 1), set(20_000, 2.0, 0.5, 2));
    // Means 0.5 apart in 4 dimensions, deviations 1 and 2: 4 · 0.25 + 4 · (2 − 1)².
    let found = frechet(&a, &b, 10, 0).expect("a distance");
    assert!((found.value - 5.0).abs() < 0.15, "{found:?}");
    let margin = found.margin.expect("10 samples");
    assert!(margin > 0.01 && margin < 0.3, "{found:?}");
    assert!(kernel(&a, &set(2000, 1.0, 0.0, 3), 5, 0).value.abs() < 0.01);
}

#[test]
fn a_margin_needs_two_samples() {
    let a = features(&normal(20, 8, 1.0, 0.0, 1));
    for samples in 0..4 {
        let found = [frechet(&a, &a, samples, 0).expect("a distance"), kernel(&a, &a, samples, 0)];
        for estimate in found {
            assert_eq!(estimate.margin.is_some(), samples > 1, "{samples}");
            let line = serde_json::to_value(estimate).expect("JSON");
            assert_eq!(line.get("margin").is_some(), samples > 1, "{line}");
            assert!(line["value"].is_f64());
        }
    }
    assert_eq!(format!("{:.1}", Estimate::mean(&[1.5])), "1.5");
    assert_eq!(format!("{:.1}", Estimate::mean(&[1.0, 1.0])), "1.0 ± 0.0");
}

#[test]
fn a_copy_covers_everything_and_something_else_nothing() {
    for (count, k) in [(100, 3), (5, 3), (3, 3), (2, 3), (30, 1)] {
        let a = features(&normal(count, 8, 1.0, 0.0, 1));
        let found = coverage(&a, &a, k);
        let Coverage { precision, recall, density, coverage, duplicated } = found;
        // The k nearest, counting the image itself, without the one on the border.
        assert_eq!([precision, recall, density, coverage], [1.0; 4], "{count} {k}");
        assert_eq!(duplicated, 0);
        let far = super::coverage(&a, &features(&normal(count, 8, 1.0, 50.0, 2)), k);
        assert_eq!([far.precision, far.recall, far.density, far.coverage], [0.0; 4]);
        assert!(nearest(&a, &a).iter().enumerate().all(|(i, (j, d))| i == *j && *d == 0.0));
    }
}

/// As in the reference implementation: nothing is nearer than the k-th neighbour where that is a duplicate.
#[test]
fn neighbourhoods_of_duplicates_are_empty() {
    let two = normal(2, 16, 1.0, 0.0, 1);
    for (times, empty) in [([3, 3], 0_usize), ([3, 4], 4), ([50, 50], 100)] {
        let set = features(&repeated(&two, &times));
        let found = coverage(&set, &set, 3);
        assert_eq!(found.duplicated, 2 * empty, "{times:?}");
        let covered = (set.count() - empty) as f64 / set.count() as f64;
        assert_eq!([found.precision, found.recall, found.coverage], [covered; 3], "{times:?}");
        assert!(nearest_others(&set).iter().all(|distance| *distance == 0.0));
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    assert!(Features::new(&[vec![1.0], vec![1.0, 2.0]]).is_none());
    assert!(Features::new(&[vec![1.0], vec![f32::NAN]]).is_none());
    assert!(Features::new(&[vec![1.0]]).is_none());
}

/// Classes around centres of their own are found, also one of few images among many; labels at random are not.
#[test]
fn probes_find_what_features_tell() {
    let (width, classes) = (24, 4);
    let centres = normal(classes, width, 1.0, 0.0, 1);
    let draw = |seed: u64, counts: [usize; 4]| -> (Vec<Vec<f32>>, Vec<usize>) {
        let labels: Vec<usize> =
            (0..classes).flat_map(|class| vec![class; counts[class]]).collect();
        let noise = normal(labels.len(), width, 0.6, 0.0, seed);
        let row = |(noise, label): (Vec<f32>, &usize)| {
            noise.iter().zip(&centres[*label]).map(|(a, b)| 100.0 * (a + b) + 7.0).collect()
        };
        (noise.into_iter().zip(&labels).map(row).collect(), labels)
    };
    let hits = |probe: &Probe, rows: &[Vec<f32>], labels: &[usize]| {
        let ranks = probe.ranks(&features(rows), labels);
        ranks.iter().filter(|rank| **rank == 0).count() as f64 / ranks.len() as f64
    };
    let (rows, labels) = draw(2, [400, 300, 200, 20]);
    let probe = Probe::fit(&features(&rows), &labels, classes, 0.01).expect("a probe");
    for only in 0..classes {
        let mut counts = [0; 4];
        counts[only] = 100;
        let (rows, labels) = draw(3 + only as u64, counts);
        let share = hits(&probe, &rows, &labels);
        assert!(share > 0.9, "{share} of class {only}");
    }
    let (other, _) = draw(9, [100; 4]);
    let random: Vec<usize> = (0..400).map(|i| (i * 7 + i / 3) % classes).collect();
    let fitted = Probe::fit(&features(&other), &random, classes, 0.01).expect("a probe");
    let (fresh, _) = draw(10, [100; 4]);
    let share = hits(&fitted, &fresh, &random.iter().rev().copied().collect::<Vec<_>>());
    assert!((0.15..0.35).contains(&share), "{share} of labels at random");
    // A feature that never changes, and a class that has no image.
    let constant: Vec<Vec<f32>> = rows.iter().map(|row| [&row[..], &[5.0]].concat()).collect();
    let probe = Probe::fit(&features(&constant), &labels, classes + 1, 0.01).expect("a probe");
    assert!(hits(&probe, &constant, &labels) > 0.9);
}
