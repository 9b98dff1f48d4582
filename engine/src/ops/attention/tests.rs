use burn::tensor::{Device, TensorData};

use super::*;
use crate::ops;
use crate::ops::testing::{compare, difference};
use crate::testing::random;

/// Sources of these parts over `rows`, and a bias.
fn sources(parts: &[Parts], rows: &[Tensor<3>]) -> Vec<Packed> {
    let pairs = parts.iter().zip(rows);
    pairs.map(|(&parts, rows)| Packed { rows: rows.clone(), parts, bias: None }).collect()
}

/// Rows for sources of so many tokens.
fn rows(spec: &AttentionSpec, sources: &[(Parts, usize)], head: usize) -> Vec<Tensor<3>> {
    let width = |parts: Parts| spec.heads_of(parts).iter().sum::<usize>() * head;
    sources.iter().map(|&(parts, tokens)| random([2, tokens, width(parts)])).collect()
}

/// A mask that hides about a third, in a pattern without period.
fn mask<const D: usize>(shape: [usize; D]) -> Tensor<D, Bool> {
    random(shape).greater_elem(0.4)
}

#[test]
fn self_attention_with_earlier_tokens() {
    for (tokens, heads, head) in [(9, 2, 16), (300, 3, 24)] {
        let (width, past) = (heads * head, [[7, 0, 0], [5, 9, 140]]);
        for (cosine, past) in [false, true].into_iter().flat_map(|c| past.map(|past| (c, past))) {
            let mut inputs = vec![random([2, tokens, 3 * width])];
            for tokens in past.into_iter().filter(|tokens| *tokens > 0) {
                inputs.push(random([2, tokens, 2 * width]));
            }
            let spec = AttentionSpec { cosine, ..AttentionSpec::new(heads) };
            let parts = [Parts::Qkv, Parts::Kv, Parts::Kv, Parts::Kv];
            for inputs in [&inputs[..1], &inputs] {
                compare(
                    inputs,
                    |x| attention(sources(&parts, x), &spec, None),
                    |x| plain(sources(&parts, x), &spec, AttentionBias::default()),
                );
            }
        }
    }
}

#[test]
fn every_combination_of_sources_heads_and_bias() {
    use Parts::{Kv, Q, Qkv};
    let combinations: [&[(Parts, usize)]; 5] = [
        &[(Qkv, 140)],
        &[(Q, 7), (Kv, 150)],
        &[(Qkv, 6), (Qkv, 9)],
        &[(Kv, 3), (Qkv, 135), (Q, 4), (Kv, 8)],
        &[(Q, 130), (Kv, 1)],
    ];
    let specs = [(4, 4, false, None), (4, 2, true, None), (6, 1, false, Some(1.0))];
    for (combination, (heads, key_heads, cosine, scale)) in
        combinations.into_iter().flat_map(|c| specs.map(|spec| (c, spec)))
    {
        let spec = AttentionSpec { key_heads, cosine, scale, ..AttentionSpec::new(heads) };
        let parts: Vec<Parts> = combination.iter().map(|(parts, _)| *parts).collect();
        let count = |other: Parts| -> usize {
            combination.iter().filter(|(parts, _)| *parts != other).map(|(_, n)| n).sum()
        };
        let (queries, keys) = (count(Kv), count(Q));
        for (hidden, added) in [
            (None, None),
            (Some([2, 1, 1, keys]), None),
            (Some([1, heads, queries, keys]), None),
            (None, Some([1, heads, queries, keys])),
            (None, Some([2, 1, queries, keys])),
            (Some([2, 1, queries, keys]), Some([2, heads, 1, keys])),
        ] {
            let mut inputs = rows(&spec, combination, 8);
            let hidden = hidden.map(mask);
            let shape = added.unwrap_or_default();
            inputs.extend(
                added.map(|[batch, heads, rows, keys]| random([batch * heads, rows, keys])),
            );
            let bias = |x: &[Tensor<3>]| AttentionBias {
                hidden: hidden.clone(),
                added: added.map(|_| x[parts.len()].clone().reshape(shape)),
            };
            compare(
                &inputs,
                |x| attention(sources(&parts, x), &spec, Some(&bias(x))),
                |x| plain(sources(&parts, x), &spec, bias(x)),
            );
        }
    }
}

#[test]
fn a_query_that_sees_nothing_gets_zeros() {
    let spec = AttentionSpec::new(2);
    let hidden: Vec<bool> = (0..5 * 7).map(|i| i / 7 == 3 || i % 7 == 0).collect();
    let hidden =
        Tensor::<4, Bool>::from_data(TensorData::new(hidden, [1, 1, 5, 7]), &Device::flex());
    let inputs = [random([2, 5, 16]), random([2, 7, 32]), random([2, 5, 7])];
    let parts = [Parts::Q, Parts::Kv];
    let bias = |x: &[Tensor<3>]| AttentionBias {
        hidden: Some(hidden.clone()),
        added: Some(x[2].clone().reshape([1, 2, 5, 7])),
    };
    let fused = |x: &[Tensor<3>]| attention(sources(&parts, x), &spec, Some(&bias(x)));
    compare(&inputs, fused, |x| plain(sources(&parts, x), &spec, bias(x)));
    let each = fused(&inputs).abs().sum_dim(2).sum_dim(0).reshape([5]);
    let each: Vec<f32> = each.into_data().try_to_vec().expect("f32");
    for (query, sum) in each.into_iter().enumerate() {
        assert_eq!(sum == 0.0, query == 3, "query {query}: {sum}");
    }
}

#[test]
fn hidden_keys_are_as_if_they_were_not_there() {
    let spec = AttentionSpec::new(3);
    let (queries, keys) = (random([2, 5, 24]), random([2, 11, 48]));
    let hidden: Vec<bool> = (0..22).map(|i| i % 11 >= 8).collect();
    let hidden = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [2, 11]), &Device::flex());
    let call =
        |keys, bias| attention(vec![Packed::q(queries.clone()), Packed::kv(keys)], &spec, bias);
    let padding = AttentionBias::hidden_keys(hidden);
    let found = call(keys.clone(), Some(&padding));
    assert!(difference(found, call(keys.narrow(1, 0, 8), None)) < 1e-6);
}

#[test]
fn grouped_heads_are_repeated_heads() {
    let grouped = AttentionSpec { key_heads: 2, ..AttentionSpec::new(6) };
    let (queries, keys) = (random([2, 5, 48]), random([2, 11, 32]));
    // Heads 0 0 0 1 1 1 of the keys, then of the values.
    let heads: Tensor<4> = keys.clone().reshape([2, 11, 4, 8]);
    let heads = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3].map(|head| heads.clone().narrow(2, head, 1));
    let repeated = Tensor::cat(heads.to_vec(), 2).reshape([2, 11, 96]);
    let call =
        |keys, spec| attention(vec![Packed::q(queries.clone()), Packed::kv(keys)], spec, None);
    let (found, expected) = (call(keys, &grouped), call(repeated, &AttentionSpec::new(6)));
    assert!(difference(found, expected) < 1e-6);
}

/// Of one query and two keys by hand; a cap far above the scores changes nothing.
#[test]
fn capped_scores() {
    let row =
        |values: [f32; 2]| Tensor::<1>::from_floats(values, &Device::flex()).reshape([1, 1, 2]);
    let keys = Tensor::cat(vec![row([3.0, 1.0]), row([-2.0, 5.0])], 1);
    let call = |softcap| {
        let spec = AttentionSpec { scale: Some(1.0), softcap, ..AttentionSpec::new(1) };
        let queries = Packed::q(Tensor::full([1, 1, 1], 1.5, &Device::flex()));
        let found = attention(vec![queries, Packed::kv(keys.clone())], &spec, None);
        found.into_scalar::<f32>()
    };
    let [first, second] = [4.5_f32, -3.0].map(|score| (2.0 * (score / 2.0).tanh()).exp());
    let expected = (first + 5.0 * second) / (first + second);
    assert!((call(Some(2.0)) - expected).abs() < 1e-6);
    assert!((call(Some(1e4)) - call(None)).abs() < 1e-6);
}

#[test]
fn half_precision_agrees() {
    let spec = AttentionSpec { cosine: true, ..AttentionSpec::new(2) };
    let (rows, added) = (random([2, 9, 48]), random([1, 2, 9, 9]));
    let bias = AttentionBias { hidden: Some(mask([2, 1, 9, 9])), added: Some(added) };
    let call = |rows| attention(vec![Packed::qkv(rows)], &spec, Some(&bias));
    let found = call(rows.clone().cast(FloatDType::BF16)).cast(FloatDType::F32);
    assert!(difference(found, call(rows)) < 0.03);
}

#[test]
#[should_panic(expected = "a bias of [2, 1, 1, 4] for scores of [2, 3, 5, 5]")]
fn a_bias_has_to_fit() {
    let hidden = AttentionBias::hidden_keys(mask([2, 4]));
    attention(vec![Packed::qkv(random([2, 5, 72]))], &AttentionSpec::new(3), Some(&hidden));
}

#[test]
#[should_panic(expected = "attention of 5 queries to 0 keys")]
fn there_have_to_be_keys() {
    attention(vec![Packed::q(random([2, 5, 24]))], &AttentionSpec::new(3), None);
}

/// Products of bf16 are off by their rounding, forward and backward, and by nothing where there are no tile units.
#[test]
fn products_of_bf16() {
    use Parts::{Kv, Q, Qkv};
    let spec = AttentionSpec { key_heads: 2, ..AttentionSpec::new(4) };
    let rounding = AttentionSpec { rounds: true, ..spec };
    let (least, most) = if in_tiles() { (1e-5, 2e-2) } else { (0.0, 0.0) };
    for combination in [&[(Qkv, 200)][..], &[(Q, 7), (Kv, 150)]] {
        let inputs = rows(&spec, combination, 24);
        let parts: Vec<Parts> = combination.iter().map(|(parts, _)| *parts).collect();
        let call =
            |spec: &AttentionSpec, rows: &[Tensor<3>]| attention(sources(&parts, rows), spec, None);
        let off = difference(call(&rounding, &inputs), call(&spec, &inputs));
        assert!((least..=most).contains(&off), "{combination:?}: {off:e}");

        let gradients = |mixed: bool| -> Vec<Tensor<3>> {
            let leaves: Vec<Tensor<3>> =
                inputs.iter().map(|x| x.clone().autodiff().require_grad()).collect();
            let y = if mixed { ops::mixed(|| call(&spec, &leaves)) } else { call(&spec, &leaves) };
            let found = (y.clone() * y).sum().backward();
            leaves.iter().map(|x| x.grad(&found).expect("every input has a gradient")).collect()
        };
        for (found, expected) in gradients(true).into_iter().zip(gradients(false)) {
            let off = difference(found, expected);
            assert!((least..=most).contains(&off), "{combination:?}, gradients: {off:e}");
        }
    }
}
