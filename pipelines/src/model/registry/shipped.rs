//! The shipped models inside the program.

use std::path::{Path, PathBuf};

use pyrograph_weights::write_whole;

use crate::error::{Error, Result};
use crate::health::cache_folder;

/// A file and its content.
type Packed = (&'static str, &'static [u8]);

macro_rules! packed {
    ($model:literal, $($file:literal),+) => {
        ($model, &[$((
            $file,
            include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../assets/models/", $model, "/", $file)),
        )),+])
    };
}

/// The files of each model; its description comes last, so that it is there only with all others.
const MODELS: [(&str, &[Packed]); 4] = [
    packed!("emoji-class", "dit.safetensors", "model.json"),
    packed!("emoji-4step", "dit.safetensors", "model.json"),
    packed!("efficientnet-lite0", "efficientnet_lite0.safetensors"),
    packed!("face", "detector.safetensors", "landmarks.safetensors", "recogniser.safetensors"),
];

/// The path of a shipped model, or of a file of one, in the user's cache folder, or in that of temporary files if that
/// one cannot be written; `None` if there is no such model.
pub(super) fn unpacked(path: &Path) -> Result<Option<PathBuf>> {
    let Some((name, files)) = MODELS.iter().find(|(name, _)| path.starts_with(name)) else {
        return Ok(None);
    };
    let unpacked = |folder: PathBuf| -> Result<PathBuf> {
        let folder = folder.join("models");
        unpack(&folder.join(name), files)?;
        Ok(folder.join(path))
    };
    let temporary = || unpacked(std::env::temp_dir().join("pyrograph"));
    let found = match cache_folder().map(unpacked) {
        Some(Ok(path)) => path,
        Some(Err(refused)) => temporary().map_err(|_| refused)?,
        None => temporary()?,
    };
    Ok(Some(found).filter(|path| path.exists()))
}

/// Writes the files that are not there yet, or not as they should be.
fn unpack(folder: &Path, files: &[Packed]) -> Result<()> {
    std::fs::create_dir_all(folder)
        .map_err(|source| Error::File { path: folder.to_owned(), source })?;
    for (name, content) in files {
        let path = folder.join(name);
        if std::fs::read(&path).is_ok_and(|found| found == *content) {
            continue;
        }
        write_whole(&path, content)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_written_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let files: [Packed; 2] = [("weights", b"12345"), ("model.json", b"{}")];
        let at = |name: &str| folder.path().join("new/model").join(name);
        let unpack = || unpack(&folder.path().join("new/model"), &files).expect("room for it");
        let read = |name: &str| std::fs::read(at(name)).expect("a file");
        unpack();
        let written = |name: &str| at(name).metadata().expect("a file").modified().expect("a time");
        let before = written("weights");
        std::fs::write(at("model.json"), "{").expect("damaged");
        unpack();
        assert_eq!((read("weights"), read("model.json")), (b"12345".to_vec(), b"{}".to_vec()));
        assert_eq!(written("weights"), before);
        std::fs::write(at("weights"), "12346").expect("damaged");
        unpack();
        assert_eq!(read("weights"), b"12345");
    }

    #[test]
    fn every_model_is_complete() {
        for (name, files) in MODELS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/models").join(name);
            let entries = std::fs::read_dir(folder).expect("a shipped model");
            let mut there: Vec<String> = entries
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
                .filter(|file| file != "README.md")
                .collect();
            there.sort();
            let mut packed: Vec<&str> = files.iter().map(|(file, _)| *file).collect();
            packed.sort();
            assert_eq!(there, packed, "{name}");
        }
    }
}
