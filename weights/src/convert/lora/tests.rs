//! Files of every spelling, and what is refused.

use std::path::Path;

use half::f16;
use tempfile::TempDir;

use super::super::dit_lora;
use super::*;
use crate::write_safetensors;

const HIDDEN: usize = 8;
const RANK: usize = 2;

/// Linear layers of a DiT of one block, patches of 2x2x4 and outputs of 2x2x8.
fn layers() -> Vec<(String, [usize; 2])> {
    let layers = [
        ("patch", [16, HIDDEN]),
        ("embedder.time.mlp.up", [32, HIDDEN]),
        ("embedder.time.mlp.down", [HIDDEN, HIDDEN]),
        ("blocks.0.modulation.dense", [HIDDEN, 6 * HIDDEN]),
        ("blocks.0.attention.qkv", [HIDDEN, 3 * HIDDEN]),
        ("blocks.0.attention.out", [HIDDEN, HIDDEN]),
        ("blocks.0.mlp.up", [HIDDEN, 4 * HIDDEN]),
        ("blocks.0.mlp.down", [4 * HIDDEN, HIDDEN]),
        ("head.modulation.dense", [HIDDEN, 2 * HIDDEN]),
        ("head.out", [HIDDEN, 32]),
    ];
    layers.map(|(name, widths)| (name.to_owned(), widths)).to_vec()
}

/// Names of these layers in the original code, in the order of [`layers`].
const ORIGINAL: [&str; 10] = [
    "x_embedder.proj",
    "t_embedder.mlp.0",
    "t_embedder.mlp.2",
    "blocks.0.adaLN_modulation.1",
    "blocks.0.attn.qkv",
    "blocks.0.attn.proj",
    "blocks.0.mlp.fc1",
    "blocks.0.mlp.fc2",
    "final_layer.adaLN_modulation.1",
    "final_layer.linear",
];

type Tensors = Vec<(String, TensorData)>;

fn matrix(seed: usize, shape: &[usize]) -> TensorData {
    let count = shape.iter().product::<usize>();
    // Exact in half precision.
    let value = |i: usize| ((i * 7 + seed * 13) % 31) as f32 / 16.0 - 1.0;
    TensorData::new((0..count).map(value).collect::<Vec<_>>(), shape.to_vec())
}

/// A pair of matrices under the names of a trainer.
fn pair(name: &str, [down, up]: [&str; 2], seed: usize, shapes: [&[usize]; 2]) -> Tensors {
    vec![
        (format!("{name}.{down}"), matrix(2 * seed, shapes[0])),
        (format!("{name}.{up}"), matrix(2 * seed + 1, shapes[1])),
    ]
}

const PEFT: [&str; 2] = ["lora_A.weight", "lora_B.weight"];
const KOHYA: [&str; 2] = ["lora_down.weight", "lora_up.weight"];

/// All layers, named by the original code.
fn original(spell: impl Fn(&str) -> String, ends: [&str; 2]) -> Tensors {
    let layers = layers();
    let pairs = ORIGINAL.iter().zip(&layers).enumerate().flat_map(|(i, (name, (_, [a, b])))| {
        let down: &[usize] =
            if *name == "x_embedder.proj" { &[RANK, 4, 2, 2] } else { &[RANK, *a] };
        pair(&spell(name), ends, i, [down, &[*b, RANK]])
    });
    pairs.collect()
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) -> Checkpoint {
    let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
    write_safetensors(path, tensors, &metadata).expect("a file");
    Checkpoint::open(path).expect("a file")
}

fn read_with(tensors: &Tensors, metadata: &[(&str, &str)], alpha: Option<f64>) -> Result<Lora> {
    let folder = TempDir::new().expect("a folder");
    let checkpoint = write(&folder.path().join("lora.safetensors"), tensors, metadata);
    read_lora(&checkpoint, &dit_lora(1, true), &layers(), alpha)
}

fn read(tensors: &Tensors) -> Result<Lora> {
    read_with(tensors, &[], None)
}

fn values(data: &TensorData) -> Vec<f32> {
    data.as_slice().map(<[f32]>::to_vec).expect("f32")
}

/// The layers, their matrices and places.
fn facts(lora: &Lora) -> Vec<(String, Vec<f32>, Vec<f32>, usize)> {
    let fact = |t: &LoraTerm| (t.layer.clone(), values(&t.down), values(&t.up), t.start);
    lora.terms.iter().map(fact).collect()
}

#[test]
fn every_spelling_gives_the_same_terms() {
    let plain = read(&original(str::to_owned, PEFT)).expect("a LoRA");
    assert!(plain.alpha_assumed);
    let found: Vec<&str> = plain.terms.iter().map(|term| term.layer.as_str()).collect();
    assert_eq!(found, layers().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    for prefix in DOTTED {
        for ends in SUFFIXES.chunks_exact(2).map(|pair| [pair[0].0, pair[1].0].map(|end| &end[1..]))
        {
            let lora = read(&original(|name| format!("{prefix}{name}"), ends)).expect("a LoRA");
            assert_eq!(facts(&lora), facts(&plain), "{prefix} {ends:?}");
        }
    }
    for prefix in UNDERSCORED {
        let spell = |name: &str| format!("{prefix}{}", name.replace('.', "_"));
        let lora = read(&original(spell, KOHYA)).expect("a LoRA");
        assert_eq!(facts(&lora), facts(&plain), "{prefix}");
    }
    let halves = original(str::to_owned, PEFT).into_iter().map(|(name, data)| {
        let halves = values(&data).iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>();
        (name, TensorData::new(halves, data.shape().to_vec()))
    });
    assert_eq!(facts(&read(&halves.collect()).expect("a LoRA")), facts(&plain));
}

#[test]
fn matrices_are_brought_into_our_order() {
    let lora = read(&original(str::to_owned, PEFT)).expect("a LoRA");
    let term = |name: &str| lora.terms.iter().find(|term| term.layer == name).expect("a term");
    // Linear layers are transposed.
    let (out, source) = (term("blocks.0.mlp.down"), matrix(14, &[RANK, 32]));
    assert_eq!(
        (out.down.shape().to_vec(), out.up.shape().to_vec()),
        (vec![32, RANK], vec![RANK, 8])
    );
    assert_eq!(values(&out.down)[5 * RANK + 1], values(&source)[32 + 5]);
    // Inputs of a patch: row, column, channel instead of channel, row, column.
    let (patch, source) = (term("patch"), matrix(0, &[RANK, 4, 2, 2]));
    let [row, column, channel, rank] = [1, 0, 3, 1];
    let ours = values(&patch.down)[((row * 2 + column) * 4 + channel) * RANK + rank];
    assert_eq!(ours, values(&source)[((rank * 4 + channel) * 2 + row) * 2 + column]);
    // Outputs of the modulation: scale, shift, gate instead of shift, scale, gate.
    let (head, source) = (term("head.modulation.dense"), matrix(17, &[2 * HIDDEN, RANK]));
    let [scale, channel, rank] = [0, 3, 1];
    let ours = values(&head.up)[rank * 2 * HIDDEN + scale * HIDDEN + channel];
    assert_eq!(ours, values(&source)[(HIDDEN + channel) * RANK + rank]);
}

#[test]
fn queries_keys_and_values_of_their_own_are_parts_of_ours() {
    let name = |part: &str| format!("transformer.transformer_blocks.0.attn1.to_{part}");
    let shapes: [&[usize]; 2] = [&[RANK, HIDDEN], &[HIDDEN, RANK]];
    let some = [("v", 2), ("q", 0)].map(|(part, seed)| pair(&name(part), PEFT, seed, shapes));
    let lora = read(&some.concat()).expect("a LoRA");
    let places: Vec<_> = lora.terms.iter().map(|term| (term.layer.as_str(), term.start)).collect();
    assert_eq!(places, [("blocks.0.attention.qkv", 0), ("blocks.0.attention.qkv", 2 * HIDDEN)]);
    assert_eq!(values(&lora.terms[1].down)[RANK], values(&matrix(4, &[RANK, HIDDEN]))[1]);
    // An embedder that all blocks share is not that of the first.
    let emb = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2";
    let tensors = pair(emb, PEFT, 0, shapes);
    assert_eq!(read(&tensors).expect("a LoRA").terms[0].layer, "embedder.time.mlp.down");
    let folder = TempDir::new().expect("a folder");
    let checkpoint = write(&folder.path().join("lora.safetensors"), &tensors, &[]);
    let fault = read_lora(&checkpoint, &dit_lora(1, false), &layers(), None).expect_err("shared");
    assert!(fault.to_string().contains(emb), "{fault}");
}

fn one(name: &str) -> Tensors {
    pair(name, KOHYA, 1, [&[RANK, HIDDEN], &[HIDDEN, RANK]])
}

/// By what the stored matrix was multiplied.
fn factor(lora: &Lora) -> f32 {
    let stored = values(&matrix(3, &[HIDDEN, RANK]));
    values(&lora.terms[0].up)[0] / stored[0]
}

#[test]
fn alpha_comes_from_where_it_is() {
    let layer = "transformer_blocks.0.attn1.to_out.0";
    let tensors = one(layer);
    let with_alpha =
        [tensors.clone(), vec![(format!("{layer}.alpha"), TensorData::from([3.0f32]))]].concat();
    let settings = r#"{"r": 2, "lora_alpha": 8, "alpha_pattern": {"attn1.to_out.0": 5.0}}"#;
    let root = r#"{"transformer.lora_alpha": 4, "transformer.use_rslora": true}"#;
    let pattern =
        r#"{"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_q": 1, "attn1.to_out.0": 6}}"#;
    let key = "lora_adapter_metadata";
    let check = |tensors: &Tensors, metadata: &[(&str, &str)], alpha, expected: f32, assumed| {
        let lora = read_with(tensors, metadata, alpha).expect("a LoRA");
        assert!((factor(&lora) - expected).abs() < 1e-6, "{} is not {expected}", factor(&lora));
        assert_eq!(lora.alpha_assumed, assumed);
    };
    check(&tensors, &[], None, 1.0, true);
    check(&tensors, &[], Some(7.0), 3.5, false);
    check(&with_alpha, &[], None, 1.5, false);
    check(&with_alpha, &[(key, root)], None, 1.5, false);
    check(&with_alpha, &[], Some(7.0), 3.5, false);
    check(&tensors, &[(key, root)], None, 4.0 / 2f32.sqrt(), false);
    check(&tensors, &[(key, pattern)], None, 3.0, false);
    check(&tensors, &[(key, r#"{"r": 2, "lora_alpha": 1}"#)], None, 0.5, false);
    check(&tensors, &[(key, r#"{"text_encoder.lora_alpha": 4}"#)], None, 1.0, true);

    let folder = TempDir::new().expect("a folder");
    let named = |name: &str| {
        std::fs::write(folder.path().join("adapter_config.json"), settings).expect("a file");
        let checkpoint = write(&folder.path().join(name), &tensors, &[]);
        read_lora(&checkpoint, &dit_lora(1, true), &layers(), None).expect("a LoRA")
    };
    assert_eq!(factor(&named("adapter_model.safetensors")), 2.5);
    // Settings beside a file of another name may be of anything.
    assert!(named("other.safetensors").alpha_assumed);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of files, one after the other")]
fn what_is_no_lora_of_this_network_is_refused_by_name() {
    let good = one("blocks.0.attn.proj");
    let with =
        |name: &str, data: TensorData| [good.clone(), vec![(name.to_owned(), data)]].concat();
    let scalar = || TensorData::from([1.0f32]);
    let mut nan = good.clone();
    nan[1].1 = TensorData::new(vec![f32::NAN; RANK * HIDDEN], vec![HIDDEN, RANK]);
    let shapes = |down: &[usize], up: &[usize]| pair("blocks.0.attn.proj", KOHYA, 0, [down, up]);
    let proj = "blocks.0.attn.proj";
    let cases: Vec<(Tensors, Vec<&str>)> = vec![
        (with("lycoris_blocks_0_mlp_fc1.lokr_w1", scalar()), vec!["lokr_w1", "LoKr"]),
        (with("lora_unet_blocks_0_mlp_fc1.hada_w1_a", scalar()), vec!["hada_w1_a", "LoHa"]),
        (with("blocks.0.attn.proj.dora_scale", scalar()), vec!["dora_scale", "DoRA"]),
        (with("blocks.0.attn.proj.diff", scalar()), vec!["diff", "whole weights"]),
        (with("lora_te_text_model.lora_down.weight", scalar()), vec!["unused (1)", "lora_te_text"]),
        (
            with("blocks.1.attn.proj.alpha", scalar()),
            vec!["unused (1)", "blocks.1.attn.proj.alpha"],
        ),
        (with("blocks.0.attn.proj.bias", scalar()), vec!["unused (1)", "attn.proj.bias"]),
        (
            with("blocks.0.mlp.fc1.lora_up.weight", scalar()),
            vec!["missing (1)", "mlp.fc1", "[rank, in]"],
        ),
        (
            with("blocks.0.attn.proj.alpha", matrix(0, &[2])),
            vec!["attn.proj.alpha", "[2]", "one number"],
        ),
        (
            with("blocks.0.attn.proj.alpha", TensorData::from([f32::INFINITY])),
            vec!["alpha of `blocks.0", "inf"],
        ),
        (
            with("blocks.0.attn.proj.lora_A.weight", matrix(0, &[RANK, HIDDEN])),
            vec!["of the same layer", "lora_A"],
        ),
        (
            [good.clone(), one("diffusion_model.blocks.0.attn.proj")].concat(),
            vec!["of the same layer", "diffusion_model"],
        ),
        (nan, vec!["lora_up", "NaN"]),
        (shapes(&[RANK, 9], &[HIDDEN, RANK]), vec![proj, "[2, 9]", "8 inputs"]),
        (shapes(&[RANK, HIDDEN], &[HIDDEN + 1, RANK]), vec![proj, "[9, 2]", "[8, 2]"]),
        (shapes(&[RANK, HIDDEN], &[HIDDEN, RANK + 1]), vec![proj, "[8, 3]", "[8, 2]"]),
        (shapes(&[9, HIDDEN], &[HIDDEN, 9]), vec![proj, "[9, 8]", "rank to 8"]),
        (shapes(&[0, HIDDEN], &[HIDDEN, 0]), vec![proj, "[0, 8]", "rank to 8"]),
        (shapes(&[RANK], &[HIDDEN, RANK]), vec![proj, "shape [2]"]),
        (Vec::new(), vec!["no tensors"]),
    ];
    for (tensors, said) in cases {
        let fault = read(&tensors).expect_err("refused").to_string();
        assert!(said.iter().all(|said| fault.contains(said)), "{said:?} not in: {fault}");
    }
    let key = "lora_adapter_metadata";
    for (text, said) in [
        (r#"{"transformer.lora_alpha": 4, "transformer.use_dora": true}"#, "DoRA"),
        (r#"{"transformer.lora_alpha": 4, "transformer.peft_type": "LOHA"}"#, "LOHA"),
        (r#"{"unet.lora_alpha": 4, "unet.alpha_pattern": {"to_(q|k)": 1}}"#, "to_(q|k)"),
        (r#"{"unet.lora_alpha": 4, "unet.alpha_pattern": {"proj": 1, "attn.proj": 2}}"#, "2 and 1"),
        ("{", "JSON"),
    ] {
        let fault = read_with(&good, &[(key, text)], None).expect_err("refused").to_string();
        assert!(fault.contains(said), "{said} not in: {fault}");
    }
}

/// What is written is read back as it was, under names that diffusers and PEFT know, whatever the order of a layer's parts there.
#[test]
fn what_is_written_comes_back() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("lora.safetensors");
    let layers = layers();
    let layouts = dit_lora(1, true);
    for layout in &layouts {
        // An embedding of patches is no plain linear layer of theirs; those of the blocks' time codes have other places.
        let trained = layers
            .iter()
            .filter(|(name, _)| name.starts_with("blocks") || name == "head.modulation.dense");
        let terms: Vec<LoraTerm> = trained
            .enumerate()
            .map(|(i, (layer, [inputs, outputs]))| LoraTerm {
                layer: layer.clone(),
                down: matrix(2 * i, &[*inputs, RANK]),
                up: matrix(2 * i + 1, &[RANK, *outputs]),
                start: 0,
            })
            .collect();
        write_lora(&path, layout, &terms, None).expect("written");
        let file = Checkpoint::open(&path).expect("a file");
        let Lora { terms: read, alpha_assumed, .. } =
            read_lora(&file, &layouts, &layers, None).expect("a LoRA");
        assert!(!alpha_assumed, "{}", layout.name);
        for term in &terms {
            // A layer that is several there comes back in as many terms, which share what reduces the input.
            let own: Vec<&LoraTerm> =
                read.iter().filter(|other| other.layer == term.layer).collect();
            assert!(own.iter().all(|own| own.down == term.down), "{}", term.layer);
            for row in 0..RANK {
                let values = |matrix: &TensorData| matrix.iter::<f32>().collect::<Vec<f32>>();
                let joined: Vec<f32> = own
                    .iter()
                    .flat_map(|own| {
                        let width = own.up.shape()[1];
                        values(&own.up)[row * width..][..width].to_vec()
                    })
                    .collect();
                let width = term.up.shape()[1];
                assert_eq!(joined, values(&term.up)[row * width..][..width], "{}", term.layer);
            }
        }
    }
    let patch = LoraTerm {
        layer: "patch".into(),
        down: matrix(0, &[16, RANK]),
        up: matrix(1, &[RANK, HIDDEN]),
        start: 0,
    };
    let error =
        write_lora(&path, &layouts[1], &[patch], None).expect_err("a convolution").to_string();
    assert!(error.contains("patch"), "{error}");
}
