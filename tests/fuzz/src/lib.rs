//! What the fuzz targets share: files and folders made of an input, and reading all there is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use pyrograph::model::Recognised;
use pyrograph::weights::{Checkpoint, write_safetensors};

/// The folder of this process, empty at first.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("pyrograph-fuzz-{}", std::process::id()));
    // Another process may have had the number.
    let _ = std::fs::remove_dir_all(&folder);
    folder
});

/// Writes files into the folder of this process, the paths of the files being relative to it.
pub fn folder(files: &[(&str, &[u8])]) -> PathBuf {
    for (name, bytes) in files {
        let path = FOLDER.join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        std::fs::write(path, bytes).expect("written");
    }
    FOLDER.clone()
}

/// A safetensors file without tensors.
pub fn no_tensors() -> Vec<u8> {
    let path = folder(&[("empty.safetensors", b"")]).join("empty.safetensors");
    write_safetensors(&path, &[], &BTreeMap::new()).expect("written");
    std::fs::read(path).expect("read")
}

/// Reads every tensor of a checkpoint. What is read must have the size that was announced.
pub fn read_all(path: &Path) {
    let Ok(checkpoint) = Checkpoint::open(path) else { return };
    checkpoint.fingerprint();
    for (name, info) in checkpoint.tensors() {
        if let Ok((values, shape)) = checkpoint.read_f32(name) {
            assert_eq!((values.len(), &shape), (shape.iter().product(), &info.shape));
        }
    }
}

/// Does with a model what needs no weights: places the steps of its own settings.
pub fn place_steps(model: &Recognised) {
    let settings = model.config.defaults.settings(0);
    let _ = settings.grid(&model.config.process);
}
