//! Files as people have them: what trainers and other programs put around the tensors of a network, and what is wrong with some.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData, bf16};
use pyrograph::model::{self, Model, Parts};
use pyrograph_engine::nets::Net;
use pyrograph_weights::{Checkpoint, FloatDtype, write_safetensors};

use crate::flows;
use crate::util::{cases, device, fixtures, json};

/// Tensors by name: their values, which bf16 can hold, and shapes.
type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

fn read(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).expect("tensors");
    let rounded = |name: &String| {
        let (values, shape) = file.read_f32(name).expect("values");
        (values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect(), shape)
    };
    file.tensors().keys().map(|name| (name.clone(), rounded(name))).collect()
}

/// The same under further names.
fn under(prefix: &str, tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect()
}

/// All values of a network.
fn values(net: &Net) -> Vec<TensorData> {
    struct Values(Vec<TensorData>);
    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().into_data());
        }
    }
    let mut values = Values(Vec::new());
    net.visit(&mut values);
    values.0
}

/// A file with a `config.json` beside it that says what no file of its family does.
struct Family {
    name: String,
    folder: tempfile::TempDir,
    tensors: Tensors,
    /// A matrix of it.
    matrix: String,
    /// An autoencoder for it, in a file of its own, and the scale and shift of its latents.
    vae: PathBuf,
    latents: [f64; 2],
}

impl Family {
    fn all() -> Vec<Self> {
        let kinds = [
            ("flux2-single", "autoencoder-flux2", [1.0, 0.0]),
            ("z-image-single", "autoencoder-flux1", [0.3611, 0.1159]),
            ("sd3-single", "autoencoder-flux1", [1.5305, 0.0609]),
        ];
        let families = kinds.into_iter().flat_map(|(kind, vae, latents)| {
            cases(kind).into_iter().map(move |case| {
                let folder = tempfile::tempdir().expect("a folder");
                let known = json(&case.join("case.json"))["not_in_the_file"].clone();
                if known.is_object() {
                    let config = folder.path().join("config.json");
                    std::fs::write(config, known.to_string()).expect("written");
                }
                let tensors = read(&flows::single(&case));
                let matrices = tensors.iter().filter(|(_, (_, shape))| {
                    matches!(shape.as_slice(), [rows, columns] if rows != columns && *rows > 1)
                });
                let matrix = matrices.map(|(name, _)| name.clone()).nth(4).expect("matrices");
                let vae = fixtures().join("goldens").join(vae).join("vae.safetensors");
                Self { name: kind.into(), folder, tensors, matrix, vae, latents }
            })
        });
        families.collect()
    }

    /// Opens a file of these tensors, every second one in bf16 if they are `mixed`; what was said on the way is the second.
    fn open(
        &self,
        tensors: &Tensors,
        mixed: bool,
        parts: Parts<'_>,
    ) -> Result<(Model, Vec<String>), String> {
        let data = tensors.iter().enumerate().map(|(i, (name, (values, shape)))| {
            let half = || values.iter().map(|value| bf16::from_f32(*value)).collect::<Vec<_>>();
            let data = match mixed && i % 2 == 0 {
                true => TensorData::new(half(), shape.clone()),
                false => TensorData::new(values.clone(), shape.clone()),
            };
            (name.clone(), data)
        });
        let path = self.folder.path().join("model.safetensors");
        let data: Vec<_> = data.collect();
        write_safetensors(&path, &data, &BTreeMap::new()).expect("written");
        let mut said = Vec::new();
        let opened = model::recognise_with(&path, parts).and_then(|recognised| {
            recognised.load(FloatDtype::F32, &device(), &mut |notice| said.push(notice.to_string()))
        });
        opened.map(|model| (model, said)).map_err(|error| error.to_string())
    }

    fn opened(&self, what: &str, tensors: &Tensors, mixed: bool) -> (Model, Vec<String>) {
        let opened = self.open(tensors, mixed, Parts::default());
        opened.unwrap_or_else(|error| panic!("{}, {what}: {error}", self.name))
    }
}

/// Whatever stands around the names, and in whatever types the values are, the network is the same.
#[test]
fn files_of_any_layout_are_the_same_network() {
    for family in Family::all() {
        let (plain, said) = family.opened("plain", &family.tensors, false);
        assert!(said.is_empty() && plain.vae.is_none(), "{said:?}");
        let expected = values(&plain.net);
        assert!(expected.len() > 20, "{} parameters", expected.len());
        let same = |what: &str, tensors: &Tensors, mixed: bool| {
            let (model, said) = family.opened(what, tensors, mixed);
            assert!(values(&model.net) == expected, "{}, {what}", family.name);
            (model, said)
        };
        same("mixed types", &family.tensors, true);
        for prefix in [
            "model.diffusion_model.",
            "diffusion_model.",
            "model.",
            "model.model.",
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "transformer.",
            "net.",
        ] {
            same(prefix, &under(prefix, &family.tensors), false);
        }
        let mut averaged = under("model_ema.diffusion_model.", &family.tensors);
        let zeros = family.tensors.iter().map(|(name, (values, shape))| {
            (format!("model.diffusion_model.{name}"), (vec![0.0; values.len()], shape.clone()))
        });
        averaged.extend(zeros);
        same("averaged weights beside others", &averaged, false);

        // A whole model in one file.
        for part in ["first_stage_model.", "vae."] {
            let mut whole = under("model.diffusion_model.", &family.tensors);
            whole.extend(under(part, &read(&family.vae)));
            let (model, said) = same(part, &whole, true);
            assert!(said.is_empty(), "{said:?}");
            let vae = model.config.vae.expect("beside the network");
            assert_eq!([vae.scale, vae.shift], family.latents);
            assert_eq!(vae.squares.is_some(), family.name.starts_with("flux2"));
            let elsewhere = Parts { vae: Some(&family.vae), ..Parts::default() };
            let (lone, said) = family.open(&family.tensors, false, elsewhere).expect("a model");
            assert!(said.is_empty(), "{said:?}");
            assert_eq!(lone.config.vae.as_ref(), Some(&vae));
        }
        let mut whole = under("model.diffusion_model.", &family.tensors);
        let table = (vec![0.0; 6], vec![2, 3]);
        whole.insert("text_encoders.clip_l.transformer.x.weight".into(), table);
        let (_, said) = same("text encoders beside", &whole, false);
        assert!(said.len() == 1 && said[0].contains("text_encoders"), "{said:?}");
    }
}

/// What does not go together is refused by the name that stands in the file, with both shapes.
#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    for family in Family::all() {
        let refused = |what: &str, tensors: &Tensors, words: &[&str]| {
            let error = family.open(tensors, false, Parts::default()).map(drop).expect_err(what);
            let name = &family.name;
            assert!(words.iter().all(|word| error.contains(word)), "{name}, {what}: {error}");
        };
        let (matrix, (values, shape)) =
            family.tensors.get_key_value(&family.matrix).expect("a matrix");
        let with = |shape: &[usize]| {
            let mut tensors = family.tensors.clone();
            let count = shape.iter().product();
            tensors.insert(matrix.clone(), (vec![0.5; count], shape.to_vec()));
            tensors
        };
        let [rows, columns] = shape[..] else { panic!("a matrix") };
        assert_eq!(values.len(), rows * columns);
        let mut missing = family.tensors.clone();
        missing.remove(matrix);
        refused("missing", &missing, &[matrix, "missing"]);
        let mut extra = family.tensors.clone();
        extra.insert("surprise.weight".into(), (vec![1.0], vec![1]));
        refused("extra", &extra, &["surprise.weight", "unused"]);
        for other in [[columns, rows], [rows - 1, columns], [rows, columns + 1]] {
            // The sizes of a network are read from some of its tensors.
            refused("another shape", &with(&other), &["expected"]);
        }
        refused("more axes", &with(&[rows, columns, 2]), &["expected"]);
        let mut halves = under("model.diffusion_model.", &family.tensors);
        let moved = halves.remove(&format!("model.diffusion_model.{matrix}")).expect("there");
        halves.insert(matrix.clone(), moved);
        refused("one without the prefix", &halves, &[matrix, "missing"]);

        // An autoencoder of another family, beside the network and named.
        let other = match family.name.starts_with("flux2") {
            true => "autoencoder-flux1",
            false => "autoencoder-flux2",
        };
        let other = fixtures().join("goldens").join(other).join("vae.safetensors");
        let mut whole = under("model.diffusion_model.", &family.tensors);
        whole.extend(under("first_stage_model.", &read(&other)));
        refused("another autoencoder", &whole, &["statistics"]);
        let parts = Parts { vae: Some(&other), ..Parts::default() };
        let error = family.open(&family.tensors, false, parts).map(drop).expect_err("another");
        assert!(error.contains("statistics"), "{error}");
    }
}

/// The transformer of a pipeline without its scheduler, and an autoencoder.
#[test]
fn parts_of_models_are_told_by_name() {
    let goldens = fixtures().join("goldens");
    for (pipeline, name) in [
        ("dit-pipeline", "DiT"),
        ("pixart-sigma", "PixArt"),
        ("z-image", "Z-Image"),
        ("lumina2", "Lumina"),
        ("flux2-klein", "FLUX.2"),
        ("sd3", "Stable Diffusion 3"),
        ("sd35-medium", "Stable Diffusion 3"),
    ] {
        let folder = goldens.join(pipeline).join("transformer");
        let error = model::recognise(&folder).map(drop).expect_err(pipeline).to_string();
        assert!(error.contains(name) && error.contains("scheduler"), "{pipeline}: {error}");
    }
    let error = model::recognise(&goldens.join("autoencoder-flux1/vae.safetensors"));
    assert!(error.map(drop).expect_err("no model").to_string().contains("autoencoder"));
}
