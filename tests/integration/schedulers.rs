//! Scheduler configurations of diffusers: the same latents, and no key without a word.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use pyrograph::device::{Notice, Opened};
use pyrograph::model::{self, ModelConfig};
use pyrograph::{ClassPipeline, Error, Guidance, OpenOptions, Request};
use pyrograph_engine::diffusion::Spacing;
use pyrograph_weights::FloatDtype;
use serde_json::{Map, Value, json};

use crate::util::{Case, device, files, json as read_json, relative_difference, root, tolerance};

fn goldens() -> PathBuf {
    root().join("tests/fixtures/goldens")
}

/// The pipeline of the golden case, whose scheduler can be changed.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let copy = tempfile::tempdir().expect("a folder");
        let original = goldens().join("dit-pipeline");
        for part in ["", "transformer", "vae", "scheduler"] {
            std::fs::create_dir_all(copy.path().join(part)).expect("created");
            for file in files(&original.join(part)).filter(|path| path.is_file()) {
                let name = file.file_name().expect("a name");
                std::fs::copy(&file, copy.path().join(part).join(name)).expect("copied");
            }
        }
        Self(copy)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn set(&self, config: &Value) {
        let file = self.path().join("scheduler/scheduler_config.json");
        std::fs::write(file, config.to_string()).expect("written");
    }

    fn recognise(&self, config: &Value) -> Result<(ModelConfig, Vec<Notice>), Error> {
        self.set(config);
        model::recognise(self.path()).map(|found| (found.config, found.notices))
    }

    fn pipeline(&self, config: &Value) -> ClassPipeline {
        self.set(config);
        let recognised = model::recognise(self.path()).unwrap_or_else(|e| panic!("{config}: {e}"));
        let model = recognised.load(FloatDtype::F32, &device(), &mut |_| ()).expect("loaded");
        ClassPipeline::new(model, &device()).expect("a class model")
    }
}

fn request(steps: u64) -> Request<usize> {
    let guidance = Guidance { scale: Some(1.0), ..Guidance::default() };
    Request { steps: Some(steps as usize), guidance, ..Request::new([1]) }
}

fn latents(pipeline: &ClassPipeline, steps: u64) -> Tensor<4> {
    let made = pipeline.latents(&request(steps), &mut |_| ControlFlow::Continue(()));
    made.expect("latents")
}

#[test]
fn latents_equal_the_reference() {
    let (folder, golden) = (Folder::new(), goldens().join("schedulers"));
    let (case, settings) = (Case::open(&golden), read_json(&golden.join("case.json")));
    let mut far = Vec::new();
    for (name, settings) in settings.as_object().expect("an object of cases") {
        let pipeline = folder.pipeline(&settings["config"]);
        let found = latents(&pipeline, settings["steps"].as_u64().expect("a number"));
        let difference = relative_difference(found, case.tensor(name, &device()));
        println!("{name} {settings}: {difference:.1e} of the maximum");
        if difference > tolerance(2e-4) {
            far.push(format!("{name} {settings}: {difference:.1e}"));
        }
    }
    assert!(far.is_empty(), "{far:#?}");
}

/// Defaults of every class, by name.
fn classes() -> Map<String, Value> {
    let file = root().join("pipelines/src/model/schedulers.json");
    read_json(&file).as_object().expect("an object of classes").clone()
}

/// Values that differ from a default of a key, as a file could have them.
fn others(key: &str, default: &Value) -> Vec<Value> {
    let named: &[&str] = match key {
        "beta_schedule" => &["linear", "scaled_linear", "squaredcos_cap_v2", "exp"],
        "prediction_type" => &["epsilon", "v_prediction", "sample"],
        "timestep_spacing" => &["leading", "trailing", "linspace"],
        "variance_type" => &["fixed_small", "fixed_large", "learned_range", "learned"],
        "solver_type" => &["midpoint", "heun", "bh1", "bh2"],
        "algorithm_type" => &["dpmsolver++", "sde-dpmsolver++", "dpmsolver"],
        "final_sigmas_type" => &["zero", "sigma_min"],
        "timestep_type" => &["discrete", "continuous"],
        "interpolation_type" => &["linear", "log_linear"],
        "sigma_schedule" => &["karras", "exponential"],
        "time_shift_type" => &["exponential", "linear"],
        _ => &[],
    };
    let all: Vec<Value> = match default {
        _ if key == "trained_betas" => vec![json!(vec![0.01; 1000])],
        Value::Bool(flag) => vec![json!(!flag)],
        Value::Number(number) if number.is_u64() => vec![json!(number.as_u64().expect("one") + 1)],
        Value::Number(number) => vec![json!(number.as_f64().expect("one") * 0.75)],
        Value::Array(_) => vec![json!([0])],
        Value::Null => vec![json!(1.5), json!("other")],
        _ => vec![json!("other")],
    };
    let named = named.iter().map(|name| json!(name));
    named.chain(all).filter(|value| value != default).collect()
}

/// Settings under which a key can have an effect.
fn contexts(key: &str) -> Vec<Value> {
    let more = match key {
        "clip_sample_range" => json!({ "clip_sample": true }),
        "clip_sample" => json!({ "thresholding": false }),
        "dynamic_thresholding_ratio" | "sample_max_value" => json!({ "thresholding": true }),
        "steps_offset" => json!({ "timestep_spacing": "leading" }),
        "sigma_min" | "sigma_max" => json!({ "use_karras_sigmas": true }),
        "timestep_type" | "rescale_betas_zero_snr" => json!({ "prediction_type": "v_prediction" }),
        "flow_shift" => json!({ "use_flow_sigmas": true }),
        "time_shift_type" | "base_shift" | "max_shift" | "base_image_seq_len"
        | "max_image_seq_len" => json!({ "use_dynamic_shifting": true }),
        "timestep_spacing" => json!({ "use_karras_sigmas": true }),
        _ => json!({}),
    };
    vec![json!({}), more]
}

fn config(class: &str, parts: &[&Value]) -> Value {
    let mut made = Map::from_iter([("_class_name".to_owned(), json!(class))]);
    for part in parts {
        made.extend(part.as_object().expect("keys").clone());
    }
    Value::Object(made)
}

/// Every key of every class, away from its default: where it does not change the model, it is named.
#[test]
fn every_key_has_its_effect_or_is_named() {
    let (folder, mut followed) = (Folder::new(), 0);
    let mut silent = Vec::new();
    for (class, defaults) in classes() {
        let is_known = folder.recognise(&config(&class, &[])).is_ok();
        for (key, default) in defaults.as_object().expect("keys") {
            for value in others(key, default) {
                let set = json!({ key: value });
                let mut acts = false;
                for context in contexts(key) {
                    let plain = folder.recognise(&config(&class, &[&context]));
                    let found = folder.recognise(&config(&class, &[&context, &set]));
                    acts |= match (plain, found) {
                        (_, Err(error)) => error.to_string().contains(&**key) || !is_known,
                        (Ok((plain, _)), Ok((found, notices))) => {
                            let told = |notice: &Notice| match notice {
                                Notice::IdleKey { key: named, .. } => named == key,
                                Notice::OtherSampler { .. } => true,
                                _ => false,
                            };
                            plain != found || notices.iter().any(told)
                        }
                        // The context alone is refused.
                        (Err(_), Ok(_)) => false,
                    };
                    followed += 1;
                }
                if !acts {
                    silent.push(format!("{class}: {key} = {value}"));
                }
            }
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
    assert!(followed > 500, "only {followed} configurations");
}

#[test]
fn other_classes_and_keys_are_told_or_refused() {
    let folder = Folder::new();
    for class in ["PNDMScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler"] {
        let pipeline = folder.pipeline(&config(class, &[]));
        let largest: f32 = latents(&pipeline, 4).abs().max().into_scalar();
        assert!(largest.is_finite(), "{class}");
        let (_, notices) = folder.recognise(&config(class, &[])).expect("similar");
        let told = |notice: &Notice| notice.is_warning() && notice.to_string().contains(class);
        assert!(notices.iter().any(told), "{notices:?}");
    }
    let refused = |config: Value, words: &[&str]| {
        let error = folder.recognise(&config).expect_err("refused").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    let ddim = |keys: Value| config("DDIMScheduler", &[&keys]);
    refused(config("LCMScheduler", &[]), &["LCMScheduler"]);
    refused(config("ddim", &[]), &["ddim"]);
    refused(json!({ "beta_start": 0.1 }), &["_class_name"]);
    refused(json!([]), &["[]", "object"]);
    refused(ddim(json!({ "clip_samples": false })), &["clip_samples"]);
    refused(ddim(json!({ "clip_sample": "no" })), &["clip_sample", "\"no\"", "true or false"]);
    refused(ddim(json!({ "clip_sample_range": 0.0 })), &["clip", "0"]);
    refused(ddim(json!({ "num_train_timesteps": 1u64 << 40 })), &["1099511627776", "100000"]);
    refused(ddim(json!({ "num_train_timesteps": 1_000_000_000 })), &["1000000000", "100000"]);
    refused(ddim(json!({ "num_train_timesteps": -5 })), &["num_train_timesteps", "-5"]);
    refused(ddim(json!({ "beta_end": 1.5 })), &["beta_end", "1.5"]);
    refused(ddim(json!({ "rescale_betas_zero_snr": true })), &["zero_snr", "epsilon"]);
    refused(ddim(json!({ "trained_betas": [0.1, 0.2] })), &["2 values", "1000"]);
    let both = json!({ "use_karras_sigmas": true, "use_beta_sigmas": true });
    refused(config("EulerDiscreteScheduler", &[&both]), &["use_karras_sigmas", "use_beta_sigmas"]);

    // Keys that were defaults when they were written, and keys of a scheduler it was made from.
    let written = json!({ "_use_default_values": ["clip_sample"], "clip_sample": false });
    let (found, notices) = folder.recognise(&ddim(written)).expect("opened");
    assert_eq!((found, notices), folder.recognise(&ddim(json!({}))).expect("opened"));
    let dynamic = json!({ "thresholding": true, "clip_sample": false });
    assert_eq!(folder.recognise(&ddim(dynamic)).expect("opened").1, []);
    let handed_on = json!({ "clip_sample": false, "skip_prk_steps": true });
    let (_, notices) =
        folder.recognise(&config("EulerDiscreteScheduler", &[&handed_on])).expect("opened");
    assert!(matches!(&*notices, [Notice::IdleKey { key, .. }] if key == "skip_prk_steps"));
}

/// Cutting off belongs to the model: it acts with any sampler.
#[test]
fn estimates_stay_cut_off_with_another_sampler() {
    let folder = Folder::new();
    let clipped = folder.pipeline(&config("DDIMScheduler", &[]));
    for name in ["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "unipc"] {
        let sampler = Some(name.parse().expect("known"));
        let request = Request { sampler, ..request(5) };
        let made = clipped.latents(&request, &mut |progress| {
            let largest: f32 = progress.denoised.clone().abs().max().into_scalar();
            assert!(largest <= 1.0, "{name}: {largest}");
            ControlFlow::Continue(())
        });
        let largest: f32 = made.expect("latents").abs().max().into_scalar();
        assert!(largest < 4.0, "{name}: {largest}");
    }
}

/// The shipped model has no timesteps to place steps by.
#[test]
fn a_continuous_model_refuses_timesteps() {
    let on = Opened { device: device(), adapter: None };
    let options = OpenOptions::default();
    let pipeline = ClassPipeline::open_on("emoji-class", &on, &options).expect("the shipped model");
    for name in ["leading", "trailing", "linspace", "respaced"] {
        let spacing: Option<Spacing> = Some(name.parse().expect("known"));
        let error = pipeline.resolve(&Request { spacing, ..Request::new([0]) });
        let error = error.expect_err("refused").to_string();
        assert!(error.contains(name) && error.contains("needs a schedule of timesteps"), "{error}");
    }
    for (steps, ok) in [(0, false), (1, true), (10_000, true), (1_000_000_000, false)] {
        let found = pipeline.resolve(&Request { steps: Some(steps), ..Request::new([0]) });
        assert_eq!(found.is_ok(), ok, "{steps} steps");
    }
}
