//! The engine's operations on the device of the tests, against their definitions in f64.

use burn::tensor::{Bool, FloatDType, Tensor, TensorData};
use pyrograph_engine::ops::{
    AttentionBias, AttentionSpec, HeadNorm, Packed, Pairs, Parts, Rotary, RowNorm, attention,
    modulate, norm_and_rotate,
};
use pyrograph_engine::random::Generator;

use crate::util::{device, device_name};

/// Types of the device, and how far what is computed in them may be from what is right, as a share of it or of 1.
fn types() -> &'static [(FloatDType, f64)] {
    match device_name().as_str() {
        "cpu" => &[(FloatDType::F32, 1e-5)],
        _ => &[(FloatDType::F32, 1e-5), (FloatDType::F16, 4e-3)],
    }
}

fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.cast(FloatDType::F32).into_data().try_to_vec().expect("f32")
}

fn assert_near(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let apart = (f64::from(*a) - b).abs() / b.abs().max(1.0);
        assert!(apart <= tolerance, "{what}, number {i}: {a} is not {b}");
    }
}

/// A tensor of random numbers, `[batch, rows, width]`, and its numbers as the type has them.
fn drawn(seed: u64, shape: [usize; 3], dtype: FloatDType) -> (Tensor<3>, Vec<f64>) {
    let values = Generator::new(seed).normal(shape.iter().product());
    let x = Tensor::<3>::from_data(TensorData::new(values, shape), &device()).cast(dtype);
    let held = numbers(x.clone()).into_iter().map(f64::from).collect();
    (x, held)
}

/// Norm, scale, shift and rotation of one row.
fn modulated(
    row: &[f64],
    norm: Option<RowNorm>,
    [scale, shift, angles]: [Option<&[f64]>; 3],
) -> Vec<f64> {
    let width = row.len() as f64;
    let (mean, epsilon) = match norm {
        Some(RowNorm::Layer(epsilon)) => (row.iter().sum::<f64>() / width, epsilon),
        Some(RowNorm::Rms(epsilon)) => (0.0, epsilon),
        None => (0.0, 0.0),
    };
    let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
    let gain = norm.map_or(1.0, |_| (square + epsilon).sqrt().recip());
    let at = |factor: Option<&[f64]>, i: usize, none| factor.map_or(none, |factor| factor[i]);
    let flat: Vec<f64> = (0..row.len())
        .map(|i| (row[i] - mean) * gain * at(scale, i, 1.0) + at(shift, i, 0.0))
        .collect();
    let Some(angles) = angles else { return flat };
    let half = angles.len();
    (0..row.len())
        .map(|i| {
            let (sin, cos) = angles[i % half].sin_cos();
            match i < half {
                true => flat[i] * cos - flat[i + half] * sin,
                false => flat[i - half] * sin + flat[i] * cos,
            }
        })
        .collect()
}

/// All forms, with factors of a row per image that are parts of one tensor, and of a row per token; wide rows and narrow
/// ones, and rows that are not next to each other.
#[test]
fn modulation_is_what_it_is_defined_to_be() {
    for &(dtype, tolerance) in types() {
        for case in 0..48 {
            let on = |bit: usize| case >> bit & 1 == 1;
            let norm = [None, Some(RowNorm::Layer(1e-6)), Some(RowNorm::Rms(1e-5))][case / 16];
            let width = if on(0) { 300 } else { 34 };
            let (batch, tokens) = (2, 5);
            let rows = if on(3) { tokens } else { 1 };
            let (x, values) = drawn(1, [batch, tokens + 2, width], dtype);
            let (factors, parts_of_rows) = drawn(2, [batch, rows, 3 * width], dtype);
            let sizes = [width, width, width / 2];
            let is_on = [on(1), on(2), on(1) ^ on(2)];
            let parts: [Option<Tensor<3>>; 3] = std::array::from_fn(|i| {
                is_on[i].then(|| factors.clone().narrow(2, i * width, sizes[i]))
            });
            let found = modulate(x.narrow(1, 1, tokens), norm, parts);
            assert_eq!(found.dims(), [batch, tokens, width]);
            for (i, found) in numbers(found).chunks_exact(width).enumerate() {
                let (image, token) = (i / tokens, i % tokens);
                let row = &values[(image * (tokens + 2) + token + 1) * width..][..width];
                let first = (image * rows + token % rows) * 3 * width;
                let factor: [Option<&[f64]>; 3] = std::array::from_fn(|i| {
                    is_on[i].then(|| &parts_of_rows[first + i * width..][..sizes[i]])
                });
                let expected = modulated(row, norm, factor);
                assert_near(&format!("{dtype:?}, case {case}"), found, &expected, tolerance);
            }
        }
    }
}

/// Norms and positions of the heads of queries and keys; values, and rows of one part alone.
#[test]
fn heads_are_normalised_and_turned() {
    let (batch, tokens, width) = (2, 3, 12);
    for &(dtype, tolerance) in types() {
        for case in 0..24 {
            let on = |bit: usize| case >> bit & 1 == 1;
            let parts = [Parts::Qkv, Parts::Q, Parts::Kv][case / 8];
            let spec = AttentionSpec { key_heads: 2, ..AttentionSpec::new(4) };
            let [queries, keys, values] = match parts {
                Parts::Qkv => [4, 2, 2],
                Parts::Q => [4, 0, 0],
                Parts::Kv => [0, 2, 2],
            };
            let heads = queries + keys + values;
            let (rows, held) = drawn(3, [batch, tokens, heads * width], dtype);
            let (gains, gain) = drawn(4, [1, 2, width], FloatDType::F32);
            let (angles, angle) = drawn(5, [1, tokens, width / 2], FloatDType::F32);
            let norm = on(0).then(|| HeadNorm {
                gains: [0, 1].map(|i| gains.clone().narrow(1, i, 1).reshape([width])),
                epsilon: 1e-6,
            });
            let pairs = if on(1) { Pairs::Interleaved } else { Pairs::Halves };
            let turn = || Rotary { cos: angles.clone().cos(), sin: angles.clone().sin(), pairs };
            let rotary = on(2).then(turn);
            let packed = Packed { rows, parts, bias: None };
            let found = norm_and_rotate(packed, &spec, norm.as_ref(), rotary.as_ref()).rows;
            let mut expected = held.clone();
            for (i, row) in expected.chunks_exact_mut(width).enumerate() {
                let (token, head) = (i / heads % tokens, i % heads);
                if head >= queries + keys {
                    continue;
                }
                if norm.is_some() {
                    let square = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                    let gain = &gain[if head < queries { 0 } else { width }..][..width];
                    let by = (square + 1e-6).sqrt().recip();
                    row.iter_mut().zip(gain).for_each(|(x, gain)| *x *= by * gain);
                }
                for pair in (0..width / 2).filter(|_| rotary.is_some()) {
                    let [a, b] = match pairs {
                        Pairs::Interleaved => [2 * pair, 2 * pair + 1],
                        Pairs::Halves => [pair, pair + width / 2],
                    };
                    let (sin, cos) = angle[token * width / 2 + pair].sin_cos();
                    (row[a], row[b]) = (row[a] * cos - row[b] * sin, row[a] * sin + row[b] * cos);
                }
            }
            let what = format!("{dtype:?}, {parts:?}, case {case}");
            assert_near(&what, &numbers(found), &expected, tolerance);
        }
    }
}

/// Rows of `[batch, tokens, heads of a part · width]`, one part after the other.
struct Held<'a> {
    parts: [&'a [f64]; 3],
    tokens: [usize; 2],
    spec: &'a AttentionSpec,
    width: usize,
}

impl Held<'_> {
    fn row(&self, part: usize, [image, token, head]: [usize; 3]) -> &[f64] {
        let heads = if part == 0 { self.spec.heads } else { self.spec.key_heads };
        let row = image * self.tokens[usize::from(part > 0)] + token;
        &self.parts[part][(row * heads + head) * self.width..][..self.width]
    }

    /// What a head of a query mixes, with these added to its scores; none for a key that is hidden.
    fn mixed(&self, [image, token, head]: [usize; 3], bias: &[Option<f64>]) -> Vec<f64> {
        let width = self.width as f64;
        let key_head = head * self.spec.key_heads / self.spec.heads;
        let unit = |row: &[f64]| match self.spec.cosine {
            true => width.sqrt() / (row.iter().map(|x| x * x).sum::<f64>().sqrt() + 1e-4),
            false => 1.0,
        };
        let query = self.row(0, [image, token, head]);
        let shares: Vec<f64> = (0..self.tokens[1])
            .map(|key| {
                let row = self.row(1, [image, key, key_head]);
                let product: f64 = query.iter().zip(row).map(|(a, b)| a * b).sum();
                let scale = self.spec.scale.unwrap_or(width.sqrt().recip());
                let score = product * scale * unit(query) * unit(row);
                bias[key].map_or(0.0, |bias| (score + bias).exp())
            })
            .collect();
        let sum: f64 = shares.iter().sum();
        let share = |key: usize| if sum > 0.0 { shares[key] / sum } else { 0.0 };
        let value = |key: usize, i: usize| self.row(2, [image, key, key_head])[i];
        (0..self.width)
            .map(|i| (0..self.tokens[1]).map(|key| share(key) * value(key, i)).sum())
            .collect()
    }
}

/// The parts of rows, side by side as numbers.
fn parts_of(values: &[f64], row: usize, at: usize, count: usize) -> Vec<f64> {
    values.chunks_exact(row).flat_map(|row| &row[at..at + count]).copied().collect()
}

/// Rows of one attention, on the device and as numbers.
struct Rows {
    spec: AttentionSpec,
    width: usize,
    tokens: usize,
    /// `[2, tokens, parts]`, and keys and values from before, `[2, EARLIER, parts]`.
    own: (Tensor<3>, Vec<f64>),
    before: (Tensor<3>, Vec<f64>),
}

/// Tokens that were seen before.
const EARLIER: usize = 4;
const BATCH: usize = 2;

impl Rows {
    fn new(spec: AttentionSpec, width: usize, tokens: usize, dtype: FloatDType) -> Self {
        let held = 2 * spec.key_heads * width;
        let own = drawn(6, [BATCH, tokens, spec.heads * width + held], dtype);
        let before = drawn(7, [BATCH, EARLIER, held], dtype);
        Self { spec, width, tokens, own, before }
    }

    /// Numbers of a row before its keys, and those of keys and values.
    fn widths(&self) -> [usize; 2] {
        [self.spec.heads, 2 * self.spec.key_heads].map(|heads| heads * self.width)
    }

    /// Keys, or values behind them, those from before behind all others of an image.
    fn seen(&self, cached: bool, which: usize) -> Vec<f64> {
        let [queries, held] = self.widths();
        let half = held / 2;
        let own = parts_of(&self.own.1, queries + held, queries + which * half, half);
        if !cached {
            return own;
        }
        let more = parts_of(&self.before.1, held, which * half, half);
        let images = own.chunks_exact(self.tokens * half).zip(more.chunks_exact(EARLIER * half));
        images.flat_map(|(a, b)| [a, b].concat()).collect()
    }

    /// What is right, with a bias for each query and key.
    fn expected(&self, cached: bool, bias: impl Fn(usize, usize) -> Option<f64>) -> Vec<f64> {
        let [queries, held] = self.widths();
        let query = parts_of(&self.own.1, queries + held, 0, queries);
        let [keys, values] = [0, 1].map(|which| self.seen(cached, which));
        let seen = self.tokens + if cached { EARLIER } else { 0 };
        let reference = Held {
            parts: [&query, &keys, &values],
            tokens: [self.tokens, seen],
            spec: &self.spec,
            width: self.width,
        };
        let places = (0..BATCH * self.tokens * self.spec.heads).map(|place| {
            let (row, head) = (place / self.spec.heads, place % self.spec.heads);
            [row / self.tokens, row % self.tokens, head]
        });
        let mixed = places.map(|place| {
            let bias: Vec<_> = (0..seen).map(|key| bias(place[1], key)).collect();
            reference.mixed(place, &bias)
        });
        mixed.flatten().collect()
    }

    fn sources(&self, cached: bool) -> Vec<Packed> {
        let before = cached.then(|| Packed::kv(self.before.0.clone()));
        std::iter::once(Packed::qkv(self.own.0.clone())).chain(before).collect()
    }
}

fn is_hidden(query: usize, key: usize) -> bool {
    query == 1 || (query + 2 * key).is_multiple_of(5)
}

fn added(query: usize, key: usize) -> f64 {
    ((3 * query + key) % 7) as f64 * 0.25
}

/// What is added, and what is hidden.
fn biases(tokens: usize, keys: usize) -> (Tensor<4>, Tensor<4, Bool>) {
    let places = || (0..tokens).flat_map(|query| (0..keys).map(move |key| (query, key)));
    let shape = [1, 1, tokens, keys];
    let masks: Vec<bool> = places().map(|(query, key)| is_hidden(query, key)).collect();
    let added: Vec<f32> = places().map(|(query, key)| added(query, key) as f32).collect();
    let added = Tensor::from_data(TensorData::new(added, shape), &device());
    (added, Tensor::from_data(TensorData::new(masks, shape), &device()))
}

/// Heads of many widths, fewer of keys, unit lengths, numbers of keys that are no whole blocks.
fn attentions(dtype: FloatDType) -> impl Iterator<Item = Rows> {
    let sizes = [(8, 2, 2, 5), (12, 4, 2, 35), (72, 1, 1, 19), (128, 2, 1, 9), (6, 2, 2, 7)];
    sizes.into_iter().enumerate().map(move |(case, (width, heads, key_heads, tokens))| {
        let (cosine, scale) = (case == 1, (case == 2).then_some(0.3));
        let spec = AttentionSpec { key_heads, cosine, scale, ..AttentionSpec::new(heads) };
        Rows::new(spec, width, tokens, dtype)
    })
}

/// Of one source, with keys from before, with a bias, hidden keys, and a query that sees none.
#[test]
fn attention_is_a_weighted_mean_of_values() {
    for &(dtype, tolerance) in types() {
        for rows in attentions(dtype) {
            for cached in [false, true] {
                let keys = rows.tokens + if cached { EARLIER } else { 0 };
                let (bias, mask) = biases(rows.tokens, keys);
                let both = AttentionBias { hidden: Some(mask), added: Some(bias.clone()) };
                let check = |what: &str, told: Option<AttentionBias>, expected: Vec<f64>| {
                    let found = attention(rows.sources(cached), &rows.spec, told.as_ref());
                    let what = format!("{dtype:?}, {}, cached {cached}, {what}", rows.width);
                    assert_near(&what, &numbers(found), &expected, tolerance);
                };
                check("plain", None, rows.expected(cached, |_, _| Some(0.0)));
                let more = AttentionBias::added(bias);
                check("added", Some(more), rows.expected(cached, |q, k| Some(added(q, k))));
                let seen = |q, k| (!is_hidden(q, k)).then(|| added(q, k));
                check("hidden", Some(both.clone()), rows.expected(cached, seen));
                // Rows without their bias, and that beside them, in the attention or before it.
                let shifted = rows.sources(cached).into_iter().map(|source| {
                    let shift: Tensor<3> = source.rows.clone().narrow(0, 0, 1).narrow(1, 0, 1);
                    let shift = shift * 0.5;
                    let bias = Some(shift.clone().flatten(0, 2));
                    Packed { rows: source.rows.clone() - shift, bias, ..source }
                });
                let shifted = attention(shifted.collect(), &rows.spec, Some(&both));
                let seen = |q, k| (!is_hidden(q, k)).then(|| added(q, k));
                let what = format!("{dtype:?}, {}, cached {cached}, shifted", rows.width);
                assert_near(
                    &what,
                    &numbers(shifted),
                    &rows.expected(cached, seen),
                    2.0 * tolerance,
                );
                // The same keys of all queries, and all of them.
                for first in [2, 0] {
                    let hides: Vec<bool> = (0..keys).map(|key| key >= first).collect();
                    let hiding = AttentionBias::hiding(hides, [1, keys], &device());
                    let seen = |_, key| (key < first).then_some(0.0);
                    check("hiding", Some(hiding), rows.expected(cached, seen));
                }
            }
        }
    }
}

/// Queries of one source and keys of another, and tokens of two sources, are those of one.
#[test]
fn attention_of_several_sources_is_that_of_one() {
    for &(dtype, tolerance) in types() {
        for rows in attentions(dtype) {
            let ([queries, held], own) = (rows.widths(), &rows.own.0);
            let whole = numbers(attention(rows.sources(false), &rows.spec, None));
            let whole: Vec<f64> = whole.into_iter().map(f64::from).collect();
            let part = |first, count| own.clone().narrow(2, first, count);
            let crossed = vec![Packed::q(part(0, queries)), Packed::kv(part(queries, held))];
            let first = own.clone().narrow(1, 0, 2);
            let others = own.clone().narrow(1, 2, rows.tokens - 2);
            for (what, sources) in
                [("crossed", crossed), ("joint", [first, others].map(Packed::qkv).to_vec())]
            {
                let found = numbers(attention(sources, &rows.spec, None));
                assert_near(&format!("{dtype:?}, {what}"), &found, &whole, tolerance);
            }
        }
    }
}
