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

/// Padded behind, within a window and beyond: tokens, and the stream behind every block.
#[test]
fn gemma2_states() {
    for folder in cases("gemma2-encoder") {
        let (case, settings, device) =
            (Case::open(&folder), json(&folder.join("case.json")), device());
        let mask: Tensor<2> = case.tensor("attention_mask", &device);
        let [_, tokens] = mask.dims();
        let ids = rows(&case, "input_ids", tokens);
        let tokenizer = Tokenizer::open(&folder).expect("a tokenizer");
        let prompts = settings["prompts"].as_array().expect("prompts");
        let prompts = prompts.iter().map(|prompt| prompt.as_str().expect("a text"));
        for (prompt, expected) in prompts.clone().zip(&ids) {
            let mut found = tokenizer.encode(prompt, tokens).expect("tokens").ids;
            found.resize(tokens, tokenizer.pad());
            assert_eq!(&found, expected, "{prompt}");
        }
        let template = settings["template"].as_str().expect("a text");
        assert_eq!(Template::Lumina2.filled("a cat"), format!("{template}a cat"));

        let encoder = load(&recognise(&folder));
        let depth = encoder.config().depth;
        let all: Vec<usize> = (0..depth).collect();
        for encoder in [encoder.clone(), encoder.folded()] {
            let states = encoder.forward(&ids, Some(mask.clone().equal_elem(0.0)), &all);
            for (i, state) in states.kept.into_iter().chain([states.last]).enumerate() {
                // What stands behind the end of a text is not read.
                let real = mask.clone().unsqueeze_dim::<3>(2);
                let name = format!("hidden_{i}");
                let expected = case.tensor::<3>(&name, &device) * real.clone();
                assert_close(&name, state * real, expected, tolerance(1e-5));
            }
        }
    }
}

/// A Gemma 2 of this width, of which its configuration says only that, and the file of its weights.
pub fn write_gemma2(folder: &std::path::Path, hidden: usize) -> std::path::PathBuf {
    const HEAD: usize = 256;
    std::fs::create_dir_all(folder).expect("made");
    let config = serde_json::json!({
        "model_type": "gemma2", "hidden_size": hidden, "vocab_size": 500, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let mut tensors = Vec::new();
    let mut add = |name: &str, shape: &[usize]| {
        let (count, at) = (shape.iter().product::<usize>(), tensors.len());
        let value = |i: usize| ((i * 37 + at * 11) % 101) as f32 / 101.0 - 0.5;
        let data = TensorData::new((0..count).map(value).collect::<Vec<f32>>(), shape.to_vec());
        tensors.push((format!("model.{name}.weight"), data));
    };
    add("embed_tokens", &[500, hidden]);
    add("norm", &[hidden]);
    for block in 0..2 {
        for norm in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            add(&format!("layers.{block}.{norm}_layernorm"), &[hidden]);
        }
        for (layer, shape) in [
            ("self_attn.q_proj", [2 * HEAD, hidden]),
            ("self_attn.k_proj", [HEAD, hidden]),
            ("self_attn.v_proj", [HEAD, hidden]),
            ("self_attn.o_proj", [hidden, 2 * HEAD]),
            ("mlp.gate_proj", [20, hidden]),
            ("mlp.up_proj", [20, hidden]),
            ("mlp.down_proj", [hidden, 20]),
        ] {
            add(&format!("layers.{block}.{layer}"), &shape);
        }
    }
    let path = folder.join("model.safetensors");
    write_safetensors(&path, &tensors, &Default::default()).expect("written");
    path
}

/// What a file does not tell is that of the published ones.
#[test]
fn single_files_of_gemma2_open() {
    let work = tempfile::tempdir().expect("a folder");
    let path = write_gemma2(work.path(), 24);
    let (whole, found) = (recognise(work.path()), recognise(&path));
    assert_eq!(found.config, whole.config);
    let ids = [vec![3, 1, 4, 1, 5]];
    let [a, b] = [whole, found].map(|source| load(&source).states(&ids, None));
    assert_eq!(a.into_data(), b.into_data());
}

/// llama.cpp keeps whole factors of norms, and notes what the tensors do not tell.
#[test]
fn gguf_files_of_gemma2_open() {
    for folder in cases("gemma2-encoder") {
        let work = tempfile::tempdir().expect("a folder");
        let path = work.path().join("gemma2.gguf");
        let config = json(&folder.join("config.json"));
        std::fs::write(&path, gguf(&folder, &config)).expect("written");
        let (whole, mut found) = (recognise(&folder), recognise(&path));
        assert!(whole.config.centred && !found.config.centred);
        // It is in no file of llama.cpp.
        found.config.scores.divisor = whole.config.scores.divisor;
        (found.config.centred, found.config.epsilon) = (true, whole.config.epsilon);
        assert_eq!(found.config, whole.config);
        found.config.centred = false;
        let ids = [vec![3, 1, 4, 1, 5, 9, 2, 6, 5, 3]];
        let [a, b] = [whole, found].map(|source| load(&source).states(&ids, None));
        assert_close("states", b, a, tolerance(1e-5));
    }
}

/// The weights in a folder as llama.cpp writes them.
fn gguf(folder: &std::path::Path, config: &serde_json::Value) -> Vec<u8> {
    const NAMES: [(&str, &str); 12] = [
        ("model.layers.", "blk."),
        ("embed_tokens", "token_embd"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
        ("model.", ""),
        ("layers.", "blk."),
    ];
    let stored = Checkpoint::open(folder.join("model.safetensors")).expect("weights");
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let number = |key: &str| config[key].as_f64().expect("a number");
    let entries = [
        ("attention.key_length", 4_u32, (number("head_dim") as u32).to_le_bytes()),
        ("attention.sliding_window", 4, (number("sliding_window") as u32).to_le_bytes()),
        ("attn_logit_softcapping", 6, (number("attn_logit_softcapping") as f32).to_le_bytes()),
        ("attention.layer_norm_rms_epsilon", 6, (number("rms_norm_eps") as f32).to_le_bytes()),
    ];
    let (mut infos, mut data, count) = (Vec::new(), Vec::new(), stored.tensors().len() as u64);
    for name in stored.tensors().keys() {
        let (mut values, shape) = stored.read_f32(name).expect("floats");
        if name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        let mut theirs = name.clone();
        NAMES.iter().for_each(|(from, to)| theirs = theirs.replace(from, to));
        let theirs = if theirs == "norm.weight" { "output_norm.weight".into() } else { theirs };
        infos.extend([text(&theirs), (shape.len() as u32).to_le_bytes().to_vec()].concat());
        shape.iter().rev().for_each(|side| infos.extend((*side as u64).to_le_bytes()));
        infos.extend(0_u32.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes(), &count.to_le_bytes()].concat();
    file.extend((entries.len() as u64 + 1).to_le_bytes());
    file.extend(
        [text("general.architecture"), 8_u32.to_le_bytes().to_vec(), text("gemma2")].concat(),
    );
    for (key, kind, value) in entries {
        let key = text(&format!("gemma2.{key}"));
        file.extend([&key[..], &kind.to_le_bytes(), &value].concat());
    }
    file.extend(infos);
    file.resize(file.len().next_multiple_of(32), 0);
    [file, data].concat()
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
