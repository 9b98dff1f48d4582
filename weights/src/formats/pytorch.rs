//! PyTorch files: pickles are read as data and never executed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use pytorch_reader::{PickleValue, PytorchError, PytorchReader};

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::tensor::{TensorInfo, Values};

/// Keys under which training checkpoints hold the weights, the best first.
const WEIGHT_KEYS: [&str; 4] = ["ema", "model", "state_dict", "model_state_dict"];
/// Prefixes that compiled and parallel models add to every name.
const PREFIXES: [&str; 2] = ["_orig_mod.", "module."];
/// First parts of the Python names that checkpoints of tensors and settings use.
const KNOWN_GLOBALS: [&str; 6] =
    ["torch", "numpy", "collections", "argparse.Namespace", "pathlib", "_codecs.encode"];
/// Bytes that a tensor may have in any file. A larger one must be smaller than its file: a few bytes can
/// say that a tensor repeats one number without end.
const SMALL_BYTES: u64 = 64 << 20;

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
    let fault = |reason: String| Error::Pytorch { path: path.to_owned(), reason };
    let failed = |error: PytorchError| fault(error.to_string());
    let root = PytorchReader::read_pickle_data(path, None).map_err(failed)?;
    refuse_unknown_globals(path, &root)?;
    let PickleValue::Dict(entries) = &root else {
        return Err(fault("the pickle holds no dictionary of tensors".into()));
    };
    let key =
        WEIGHT_KEYS.into_iter().find(|key| matches!(entries.get(*key), Some(PickleValue::Dict(_))));
    let reader = match key {
        Some(key) => PytorchReader::with_top_level_key(path, key),
        None => PytorchReader::new(path),
    };
    let file = |source| Error::File { path: path.to_owned(), source };
    let most = std::fs::metadata(path).map_err(file)?.len().max(SMALL_BYTES);
    let mut tensors = BTreeMap::new();
    for (name, tensor) in reader.map_err(failed)?.into_tensors() {
        let name = PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(&name).to_owned();
        let dtype = Dtype::of_pytorch(tensor.dtype()).ok_or_else(|| {
            fault(format!("`{name}` has type {:?}, which is not known", tensor.dtype()))
        })?;
        let (bytes, shape) = (tensor.byte_len() as u64, tensor.shape().to_vec());
        if bytes > most {
            return Err(fault(format!(
                "`{name}` with shape {shape:?} has {bytes} bytes, expected at most {most}"
            )));
        }
        tensors.insert(name, TensorInfo { dtype, shape, values: Values::Pytorch(tensor) });
    }
    Ok(Checkpoint::new(path, tensors, texts(&root)))
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
