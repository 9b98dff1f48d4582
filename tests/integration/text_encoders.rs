//! Text encoders against the transformers library.

use std::collections::BTreeMap;

use burn::tensor::{Bool, Tensor, TensorData};
use pyrograph::model::text::Template;
use pyrograph::model::text_encoder::TextEncoderSource;
use pyrograph::tokenizer::Tokenizer;
use pyrograph_engine::nets::TextEncoder;
use pyrograph_weights::{Checkpoint, FloatDtype, write_safetensors};

use crate::util::{Case, assert_close, cases, device, json, tolerance};

fn recognise(folder: &std::path::Path) -> TextEncoderSource {
    TextEncoderSource::recognise(folder).expect("an encoder")
}

fn load(source: &TextEncoderSource) -> TextEncoder {
    source.load(FloatDtype::F32, &device(), &mut |_| ()).expect("its weights")
}

/// Rows of `tokens` numbers.
fn rows(case: &Case, name: &str, tokens: usize) -> Vec<Vec<usize>> {
    case.ids(name).chunks(tokens).map(<[usize]>::to_vec).collect()
}

#[test]
fn t5_with_and_without_padding_and_gates() {
    for folder in cases("t5-gated").into_iter().chain(cases("t5-relu")) {
        let (case, device) = (Case::open(&folder), device());
        let mask: Tensor<2> = case.tensor("attention_mask", &device);
        let [_, tokens] = mask.dims();
        let ids = rows(&case, "input_ids", tokens);
        let padding = mask.clone().equal_elem(0.0);
        let encoder = load(&recognise(&folder));
        let depth = encoder.config().depth;
        let all: Vec<usize> = (0..depth).collect();
        for encoder in [encoder.clone(), encoder.folded()] {
            let states = encoder.forward(&ids, Some(padding.clone()), &all);
            for (i, state) in states.kept.into_iter().enumerate() {
                let name = format!("state_{i}");
                let expected = case.tensor(&name, &device);
                assert_close(&name, state, expected, tolerance(1e-5));
            }
            let expected = case.tensor("last_hidden_state", &device);
            assert_close("last", states.last, expected, tolerance(1e-5));
            let states = encoder.forward(&ids, None, &[]);
            let expected = case.tensor("last_hidden_state_without_mask", &device);
            assert_close("without a mask", states.last, expected, tolerance(1e-5));
            // The tokens of a text alone are what they are with padding.
            let own = mask.clone().narrow(0, 0, 1).sum().into_scalar::<f32>() as usize;
            let alone = encoder.forward(&[ids[0][..own].to_vec()], None, &[]).last;
            let expected: Tensor<3> = case.tensor("last_hidden_state", &device);
            let expected = expected.narrow(0, 0, 1).narrow(1, 0, own);
            assert_close("alone", alone, expected, tolerance(1e-5));
        }
    }
}

#[test]
fn clip_states_and_projections() {
    for folder in cases("clip-projection") {
        let (case, device) = (Case::open(&folder), device());
        for part in ["clip-l", "clip-g"] {
            let named = |name: &str| format!("{part}.{name}");
            let expected: Tensor<3> = case.tensor(&named("last_hidden_state"), &device);
            let ids = rows(&case, &named("input_ids"), expected.dims()[1]);
            let source = recognise(&folder.join(part));
            let (encoder, last_block) = (load(&source), source.config.depth - 1);
            let states = encoder.forward(&ids, None, &[last_block]);
            assert_close(part, states.last.clone(), expected, tolerance(1e-5));
            let before = case.tensor(&named("hidden_state_-2"), &device);
            assert_close("before the last block", states.kept[0].clone(), before, tolerance(1e-5));
            let pooled = encoder.pooled(&states.last, &source.ends(&ids));
            let expected = case.tensor(&named("text_embeds"), &device);
            assert_close("projected", pooled, expected, tolerance(1e-5));
        }
    }
}

#[test]
fn padding_and_order_of_clip() {
    for folder in cases("clip-text") {
        let (case, device) = (Case::open(&folder), device());
        let expected: Tensor<3> = case.tensor("last_hidden_state", &device);
        let [_, tokens, _] = expected.dims();
        let ids = rows(&case, "input_ids", tokens);
        let source = recognise(&folder);
        let encoder = load(&source);
        let last = encoder.forward(&ids, None, &[]).last;
        assert_close("states", last.clone(), expected, tolerance(1e-5));
        let pooled = encoder.pooled(&last, &source.ends(&ids));
        assert_close("pooled", pooled, case.tensor("pooler_output", &device), tolerance(1e-5));
        // What comes later changes nothing before it, padded or not.
        let mut other = ids.clone();
        other.iter_mut().for_each(|text| text[tokens - 1] = 1);
        let hidden: Vec<bool> = (0..ids.len() * tokens).map(|i| i % tokens == tokens - 1).collect();
        let hidden = TensorData::new(hidden, [ids.len(), tokens]);
        let hidden = Tensor::<2, Bool>::from_data(hidden, &device);
        for padding in [None, Some(hidden)] {
            let found = encoder.forward(&other, padding, &[]).last;
            let [found, expected] = [found, last.clone()].map(|x| x.narrow(1, 0, tokens - 1));
            assert_close("before", found, expected, 1e-6);
        }
    }
}

/// Questions in both forms, padded behind: their tokens, and the stream behind some of the blocks.
#[test]
fn qwen3_states_and_templates() {
    for folder in cases("qwen3-encoder") {
        let (case, settings, device) =
            (Case::open(&folder), json(&folder.join("case.json")), device());
        let tokenizer = Tokenizer::open(&folder).expect("a tokenizer");
        let encoder = load(&recognise(&folder));
        let depth = encoder.config().depth;
        let wanted = settings["rows"].as_array().expect("rows").iter();
        let wanted: Vec<usize> = wanted.map(|row| row.as_u64().expect("a row") as usize).collect();
        for template in settings["templates"].as_array().expect("templates") {
            let named = |name: &str| {
                let key = template["key"].as_str().expect("a name");
                format!("{key}.{name}")
            };
            let mask: Tensor<2> = case.tensor(&named("attention_mask"), &device);
            let [_, tokens] = mask.dims();
            let ids = rows(&case, &named("input_ids"), tokens);
            let is_thinking = template["enable_thinking"].as_bool().expect("a flag");
            let ours = if is_thinking { Template::Qwen3 } else { Template::Qwen3Unthinking };
            let prompts = settings["prompts"].as_array().expect("prompts");
            for (prompt, expected) in prompts.iter().zip(&ids) {
                let text = ours.filled(prompt.as_str().expect("a text"));
                let mut found = tokenizer.encode(&text, tokens).expect("tokens").ids;
                found.resize(tokens, tokenizer.pad());
                assert_eq!(&found, expected, "{text}");
            }
            let states: BTreeMap<String, usize> = case
                .names()
                .filter_map(|name| {
                    let number = name.strip_prefix(&named("hidden_"))?.parse::<isize>();
                    let number = number.expect("a number of blocks");
                    let behind = if number < 0 { depth as isize + 1 + number } else { number };
                    Some((name.clone(), behind as usize))
                })
                .collect();
            let mut behind: Vec<usize> = states.values().copied().collect();
            behind.sort();
            let at = wanted.iter().map(|&row| ids[row].clone()).collect::<Vec<_>>();
            let masks = wanted.iter().map(|&row| mask.clone().narrow(0, row, 1)).collect();
            let padding = Tensor::cat(masks, 0).equal_elem(0.0);
            let found = encoder.clone().folded().forward(&at, Some(padding), &behind);
            for (name, number) in states {
                let place = behind.iter().position(|found| *found == number).expect("kept");
                // Behind the last block it is normalised.
                let state = if number == depth { &found.last } else { &found.kept[place] };
                let expected = case.tensor(&name, &device);
                assert_close(&name, state.clone(), expected, tolerance(1e-5));
            }
        }
    }
}

/// One file of all shards, as part of a language model: what it does not tell is that of the published ones.
#[test]
fn single_files_of_qwen3_open() {
    for folder in cases("qwen3-encoder") {
        let work = tempfile::tempdir().expect("a folder");
        let shards = Checkpoint::open(folder.join("model.safetensors.index.json")).expect("shards");
        let read = |name: &String| {
            let (values, shape) = shards.read_f32(name).expect("floats");
            let name = name.strip_prefix("model.").unwrap_or(name);
            (format!("model.{name}"), TensorData::new(values, shape))
        };
        let of_stream = |name: &&String| !name.starts_with("lm_head");
        let mut tensors: Vec<_> = shards.tensors().keys().filter(of_stream).map(read).collect();
        tensors.push(("lm_head.weight".into(), TensorData::new(vec![0.0_f32; 4], [2, 2])));
        let path = work.path().join("qwen3.safetensors");
        write_safetensors(&path, &tensors, &Default::default()).expect("written");
        let (whole, mut found) = (recognise(&folder), recognise(&path));
        (found.config.places, found.config.epsilon) = (whole.config.places, whole.config.epsilon);
        assert_eq!(found.config, whole.config);
        let ids = [vec![3, 1, 4, 1, 5]];
        let [a, b] = [whole, found].map(|source| load(&source).states(&ids, None));
        assert_eq!(a.into_data(), b.into_data());
    }
}

/// Half precision, 8-bit floats in four spellings, and blocks of few bits under llama.cpp's names: each stands for other
/// numbers, and the states are those of its own.
#[test]
fn single_files_of_t5_open_in_every_type() {
    for folder in cases("t5-files") {
        let (case, device) = (Case::open(&folder), device());
        let mask: Tensor<2> = case.tensor("attention_mask", &device);
        let ids = rows(&case, "input_ids", mask.dims()[1]);
        let padding = mask.equal_elem(0.0);
        let settings = json(&folder.join("case.json"));
        let files = settings["files"].as_object().expect("files");
        assert!(!files.is_empty());
        for (file, kind) in files {
            let states = load(&recognise(&folder.join(file)));
            let states = states.forward(&ids, Some(padding.clone()), &[]).last;
            let expected = case.tensor(kind.as_str().expect("a name"), &device);
            assert_close(file, states, expected, tolerance(1e-5));
        }
    }
}
