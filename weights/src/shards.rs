//! Sharded checkpoints: an index that says which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Largest index accepted; that of a model with a million tensors is smaller.
const MAX_INDEX_BYTES: u64 = 100 << 20;

pub(crate) fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(file)?.len();
    if bytes > MAX_INDEX_BYTES {
        return Err(fault(path, format!("{bytes} bytes, expected at most {MAX_INDEX_BYTES}")));
    }
    let text = std::fs::read(path).map_err(file)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    Ok(index.weight_map)
}

/// The shards of an index; each is a plain file name in its folder.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let names: BTreeSet<String> = weight_map(path)?.into_values().collect();
    names
        .into_iter()
        .map(|name| match is_plain_name(&name) && name.ends_with(".safetensors") {
            true => Ok(path.with_file_name(name)),
            false => {
                Err(fault(path, format!("shard `{name}` is not a plain safetensors file name")))
            }
        })
        .collect()
}

/// Whether a name stays in its folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    plain && !name.contains(['/', '\\', '\0'])
}

/// Every tensor is in the shard that the index names, and nowhere else.
pub(crate) fn check(
    path: &Path,
    weight_map: &BTreeMap<String, String>,
    checkpoint: &Checkpoint,
) -> Result<()> {
    for (name, shard) in weight_map {
        let info = checkpoint.tensors().get(name);
        let found = info.map(|info| &checkpoint.files()[info.file]);
        match found.and_then(|file| file.file_name()) {
            Some(file) if *file == **shard => (),
            Some(file) => {
                let file = file.to_string_lossy();
                return Err(fault(path, format!("`{name}` is in {file}, the index says {shard}")));
            }
            None => return Err(fault(path, format!("`{name}` is not in {shard}"))),
        }
    }
    match checkpoint.tensors().keys().find(|name| !weight_map.contains_key(*name)) {
        Some(name) => Err(fault(path, format!("`{name}` is in a shard but not in the index"))),
        None => Ok(()),
    }
}

fn fault(path: &Path, reason: String) -> Error {
    Error::Index { path: path.to_owned(), reason }
}
