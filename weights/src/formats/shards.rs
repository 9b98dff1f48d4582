//! Sharded checkpoints: an index that says which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::files::{has_extension, is_plain_name, read_at_most};
use crate::open::open_file;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Largest index accepted; that of a model with a million tensors is smaller.
const MAX_INDEX_BYTES: u64 = 100 << 20;

/// Opens the shards of an index, which are plain file names in its folder. Every tensor must be in the shard
/// that the index names, and nowhere else.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    let fault = |reason| Error::Index { path: path.to_owned(), reason };
    let Index { weight_map } = serde_json::from_slice(&read_at_most(path, MAX_INDEX_BYTES)?)
        .map_err(|source| Error::Json { path: path.to_owned(), source })?;
    let (mut tensors, mut metadata) = (BTreeMap::new(), BTreeMap::new());
    for shard in weight_map.values().collect::<BTreeSet<_>>() {
        if !is_plain_name(shard) || has_extension(Path::new(shard), "json") {
            let reason = format!("shard `{shard}` is not a plain name of a weight file");
            return Err(fault(reason));
        }
        let (found, texts) = open_file(&path.with_file_name(shard))?.into_parts();
        for (name, info) in found {
            match weight_map.get(&name) {
                Some(named) if named == shard => tensors.insert(name, info),
                Some(named) => {
                    let reason = format!("`{name}` is in {shard}, the index says {named}");
                    return Err(fault(reason));
                }
                None => return Err(fault(format!("`{name}` is in {shard} but not in the index"))),
            };
        }
        metadata.extend(texts);
    }
    match weight_map.iter().find(|(name, _)| !tensors.contains_key(*name)) {
        Some((name, shard)) => Err(fault(format!("`{name}` is not in {shard}"))),
        None => Ok(Checkpoint::new(path, tensors, metadata)),
    }
}
