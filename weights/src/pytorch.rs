//! PyTorch files: pickles are read as data and never executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use pytorch_reader::{DType as Stored, PickleValue, PytorchReader};

use crate::checkpoint::{Bytes, Checkpoint, TensorInfo};
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// Keys under which training checkpoints hold the weights, the best first.
const WEIGHT_KEYS: [&str; 4] = ["ema", "model", "state_dict", "model_state_dict"];
/// Prefixes that compiled and parallel models add to every name.
const PREFIXES: [&str; 2] = ["_orig_mod.", "module."];
/// First parts of the Python names that checkpoints of tensors and settings use.
const KNOWN_GLOBALS: [&str; 6] =
    ["torch", "numpy", "collections", "argparse.Namespace", "pathlib", "_codecs.encode"];

/// Whether the file starts like a zip archive, a pickle, or a tar archive of one.
pub(crate) fn is_pytorch(path: &Path) -> Result<bool> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let mut start = Vec::new();
    File::open(path).map_err(file)?.take(512).read_to_end(&mut start).map_err(file)?;
    let pickle = start.first() == Some(&0x80) && start.get(1).is_some_and(|version| *version <= 5);
    let tar = start.get(257..262) == Some(b"ustar");
    Ok(start.starts_with(b"PK\x03\x04") || pickle || tar)
}

pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let fault = |error: pytorch_reader::PytorchError| Error::Pytorch {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    let root = PytorchReader::read_pickle_data(path, None).map_err(fault)?;
    refuse_unknown_globals(path, &root)?;
    let PickleValue::Dict(entries) = &root else {
        return Err(Error::Pytorch {
            path: path.to_owned(),
            reason: "the pickle holds no dictionary of tensors".into(),
        });
    };
    let key =
        WEIGHT_KEYS.into_iter().find(|key| matches!(entries.get(*key), Some(PickleValue::Dict(_))));
    let reader = match key {
        Some(key) => PytorchReader::with_top_level_key(path, key),
        None => PytorchReader::new(path),
    };
    let mut checkpoint = Checkpoint::empty(path);
    for (name, tensor) in reader.map_err(fault)?.into_tensors() {
        let name = PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(&name).to_owned();
        let dtype = dtype(tensor.dtype()).ok_or_else(|| Error::Pytorch {
            path: path.to_owned(),
            reason: format!("`{name}` has type {:?}, which is not known", tensor.dtype()),
        })?;
        let info = TensorInfo { name, dtype, shape: tensor.shape().to_vec(), file: 0 };
        checkpoint.add(info, Bytes::Pytorch(Box::new(tensor)));
    }
    checkpoint.add_file(path, texts(&root));
    Ok(checkpoint)
}

fn dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::F64 => Dtype::F64,
        Stored::F32 => Dtype::F32,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::BF16,
        Stored::I64 => Dtype::I64,
        Stored::I32 => Dtype::I32,
        Stored::I16 => Dtype::I16,
        Stored::I8 => Dtype::I8,
        Stored::U8 => Dtype::U8,
        Stored::Bool => Dtype::Bool,
        _ => return None,
    })
}

/// Values that are not tensors have the name of their Python type; only names that checkpoints need are
/// accepted.
fn refuse_unknown_globals(path: &Path, value: &PickleValue) -> Result<()> {
    match value {
        PickleValue::Unsupported(name) => {
            let known = |prefix: &&str| {
                name == *prefix || name.strip_prefix(*prefix).is_some_and(|r| r.starts_with('.'))
            };
            // A name without a module is a plain value, such as a large integer or a tensor.
            match !name.contains('.') || KNOWN_GLOBALS.iter().any(known) {
                true => Ok(()),
                false => Err(Error::Global { path: path.to_owned(), global: name.clone() }),
            }
        }
        PickleValue::List(items) => items.iter().try_for_each(|v| refuse_unknown_globals(path, v)),
        PickleValue::Dict(items) => {
            items.values().try_for_each(|v| refuse_unknown_globals(path, v))
        }
        _ => Ok(()),
    }
}

/// Numbers and texts of the top level and of `args`, as texts.
fn texts(root: &PickleValue) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let PickleValue::Dict(entries) = root else { return found };
    let mut add = |name: String, value: &PickleValue| {
        let text = match value {
            PickleValue::Bool(value) => value.to_string(),
            PickleValue::Int(value) => value.to_string(),
            PickleValue::Float(value) => value.to_string(),
            PickleValue::String(value) => value.clone(),
            _ => return,
        };
        found.insert(name, text);
    };
    for (name, value) in entries {
        match value {
            PickleValue::Dict(inner) if name == "args" => {
                inner.iter().for_each(|(inner, value)| add(format!("args.{inner}"), value));
            }
            value => add(name.clone(), value),
        }
    }
    found
}
