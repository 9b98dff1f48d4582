//! Folders of models as people have them: of the Hugging Face cache, with weights in shards or variants, with what
//! file managers and archives leave in them.

use std::path::{Path, PathBuf};

use pyrograph_weights::read_at_most;

use super::minit2i;
use crate::error::{Error, Result};

/// Files of weights by their last part, in small letters.
const WEIGHTS: [&str; 6] = ["safetensors", "pt", "pth", "ckpt", "bin", "gguf"];
/// Folders in folders, as archives unpack to, that a model is looked for in.
const NESTED: usize = 3;
/// Largest file that names a revision.
const REVISION_BYTES: u64 = 1024;

/// The entries of a folder in the order of their names, but for hidden ones and those that macOS adds to archives.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::File { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && name != "__MACOSX" {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Where a model is whose folder is given: there, in the folder of a run, in the snapshot of a cache, or in the only file of weights or the only
/// folder that it holds.
///
/// # Errors
/// A folder that holds several, or none.
pub(crate) fn resolved(path: &Path) -> Result<PathBuf> {
    let mut at = path.to_owned();
    for _ in 0..NESTED {
        if !at.is_dir()
            || ["model.json", "model_index.json"].iter().any(|name| at.join(name).exists())
            || minit2i::is_in(&at)
        {
            break;
        }
        let of_run = at.join("model");
        at = if of_run.join("model.json").is_file() {
            of_run
        } else if is_cache(&at) {
            snapshot(&at)?
        } else {
            only(&at)?
        };
    }
    Ok(at)
}

/// Whether a folder is that of a repository in the cache of the Hugging Face hub.
fn is_cache(folder: &Path) -> bool {
    ["snapshots", "refs"].iter().all(|name| folder.join(name).is_dir())
}

/// The snapshot of a repository in the cache of the Hugging Face hub: that of its main branch, or the only one.
fn snapshot(repository: &Path) -> Result<PathBuf> {
    let snapshots = repository.join("snapshots");
    let main = repository.join("refs/main");
    if main.is_file() {
        let revision = read_at_most(&main, REVISION_BYTES)?;
        let folder = snapshots.join(String::from_utf8_lossy(&revision).trim());
        if folder.parent() == Some(&snapshots) && folder.is_dir() {
            return Ok(folder);
        }
    }
    let mut found = entries(&snapshots)?;
    found.retain(|path| path.is_dir());
    match <[PathBuf; 1]>::try_from(found) {
        Ok([folder]) => Ok(folder),
        Err(found) => Err(Error::NotAModel {
            path: repository.to_owned(),
            reason: format!("a cache with {} snapshots and none of `main`: name one", found.len()),
        }),
    }
}

fn only(folder: &Path) -> Result<PathBuf> {
    let fault = |reason: String| Error::NotAModel { path: folder.to_owned(), reason };
    let entries = entries(folder)?;
    let name =
        |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let is_index = |path: &Path| name(path).ends_with(".index.json");
    let is_weights = |path: &Path| {
        let name = name(path);
        let extension = name.rsplit_once('.').map(|(_, extension)| extension);
        path.is_file() && extension.is_some_and(|extension| WEIGHTS.contains(&extension))
    };
    let indices: Vec<_> = entries.iter().filter(|path| is_index(path)).collect();
    let weights: Vec<_> = entries.iter().filter(|path| is_weights(path)).collect();
    let folders: Vec<_> = entries.iter().filter(|path| path.is_dir()).collect();
    match (indices.as_slice(), weights.as_slice(), folders.as_slice()) {
        ([index], ..) => Ok(index.to_path_buf()),
        ([], [file], _) => Ok(file.to_path_buf()),
        ([], [], [inner]) => Ok(inner.to_path_buf()),
        ([], [], _) => Err(fault(
            "a folder with neither model.json nor model_index.json nor a file of weights".into(),
        )),
        (indices, weights, _) => {
            let several = if indices.is_empty() { weights } else { indices };
            let names: Vec<_> = several.iter().take(8).map(|path| name(path)).collect();
            let names = names.join(", ");
            Err(fault(format!("{} files of weights, name one: {names}", several.len())))
        }
    }
}

/// The weights of a part of a pipeline: an index or a file; safetensors before the rest, and without a variant such as
/// `fp16` before those with one.
///
/// # Errors
/// A folder without any.
pub(super) fn weights_file(part: &Path) -> Result<PathBuf> {
    weights_named(part, &["diffusion_pytorch_model."])
}

/// The weights of a text encoder, as [`weights_file`] finds those of a part.
///
/// # Errors
/// As there.
pub(super) fn text_weights_file(part: &Path) -> Result<PathBuf> {
    weights_named(part, &["model.", "pytorch_model."])
}

fn weights_named(part: &Path, names: &[&str]) -> Result<PathBuf> {
    let rank = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let rest = names.iter().find_map(|start| name.strip_prefix(start))?;
        let rest: Vec<&str> = rest.split('.').collect();
        let (kind, variant, is_file) = match rest.as_slice() {
            [kind] => (*kind, "", true),
            [kind, "index", "json"] => (*kind, "", false),
            [variant, kind] => (*kind, *variant, true),
            [kind, "index", variant, "json"] | [variant, kind, "index", "json"] => {
                (*kind, *variant, false)
            }
            _ => return None,
        };
        // The shards themselves, `fp16-00001-of-00002`, are no variant.
        let is_known = ["safetensors", "bin"].contains(&kind) && !variant.contains('-');
        let rank = (kind == "bin", variant.to_owned(), is_file);
        (is_known && path.is_file()).then(|| (rank, path.clone()))
    };
    let found = entries(part)?.iter().filter_map(rank).min();
    found.map(|(_, path)| path).ok_or_else(|| Error::NotAModel {
        path: part.to_owned(),
        reason: format!("no weights: expected {0}safetensors or {0}bin, or their index", names[0]),
    })
}

/// The folder with the `config.json` of an autoencoder: `path` itself, or `vae` in a pipeline.
pub(super) fn autoencoder(path: &Path) -> Result<Option<PathBuf>> {
    let mut places = vec![path.to_owned(), path.join("vae")];
    if is_cache(path) {
        let snapshot = snapshot(path)?;
        places = vec![snapshot.clone(), snapshot.join("vae")];
    }
    Ok(places.into_iter().find(|place| place.join("config.json").is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
            std::fs::write(path, "x").expect("written");
        }
        folder
    }

    #[test]
    fn weights_are_found_under_any_of_their_names() {
        let shard = "diffusion_pytorch_model.fp16-00001-of-00002.safetensors";
        for files in [
            &["safetensors", "bin", "fp16.safetensors", "safetensors.index.fp16.json"][..],
            &["safetensors.index.json", "safetensors"],
            &["fp16.safetensors", "bin", "non_ema.bin"],
            &["safetensors.index.fp16.json", "bin.index.json"],
            &["bin.index.json", "fp16.bin"],
            &["bin", "bin.index.fp16.json"],
            &["fp16.bin", "non_ema.bin"],
            &["bin.index.fp16.json"],
            &["SAFETENSORS", "BIN"],
        ] {
            let name = |rest: &&str| format!("diffusion_pytorch_model.{rest}");
            let mut names: Vec<String> = files.iter().map(name).collect();
            names.extend([shard.into(), format!("._{}", names[0]), "config.json".into()]);
            names.push("__MACOSX/diffusion_pytorch_model.safetensors".into());
            let folder = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let found = weights_file(folder.path()).expect("weights");
            assert_eq!(found, folder.path().join(name(&files[0])));
        }
        assert!(weights_file(folder(&[shard]).path()).is_err());
    }

    #[test]
    fn a_cache_of_the_hub_leads_to_its_main_snapshot() {
        let folder = folder(&["snapshots/abc/model_index.json", "snapshots/def/model_index.json"]);
        let path = folder.path();
        std::fs::create_dir(path.join("refs")).expect("created");
        assert!(resolved(path).expect_err("two").to_string().contains("2 snapshots"));
        std::fs::write(path.join("refs/main"), "def\n").expect("written");
        assert_eq!(resolved(path).expect("main"), path.join("snapshots/def"));
        std::fs::write(path.join("refs/main"), "../..").expect("written");
        assert!(resolved(path).is_err());
        std::fs::remove_dir_all(path.join("snapshots/def")).expect("removed");
        assert_eq!(resolved(path).expect("the only one"), path.join("snapshots/abc"));
    }

    #[test]
    fn the_only_weights_in_a_folder_are_the_model() {
        for (files, expected) in [
            (&["DiT.PT", "readme.md", "._DiT.PT", "__MACOSX/._DiT.PT"][..], Some("DiT.PT")),
            (&["a-1-of-2.bin", "a-2-of-2.bin", "a.bin.index.json"], Some("a.bin.index.json")),
            (&["model/model_index.json", "__MACOSX/model/._x"], Some("model")),
            (&["a/b/x.safetensors"], Some("a/b/x.safetensors")),
            (&["a.pt", "b.pt"], None),
            (&["readme.md"], None),
            (&["model.json", "a.pt"], Some("")),
        ] {
            let folder = folder(files);
            let found = resolved(folder.path()).ok();
            assert_eq!(found, expected.map(|name| folder.path().join(name)), "{files:?}");
        }
    }
}
