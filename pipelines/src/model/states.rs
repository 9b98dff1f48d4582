//! States of texts that are kept on disk: what a large encoder made once it need not make again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use burn::tensor::{DType, Device, Tensor, TensorData};
use pyrograph_engine::device::is_host;
use pyrograph_engine::read;
use pyrograph_weights::{Checkpoint, sha256_of, write_safetensors};

use crate::error::Result;

/// Most bytes of one encoder's states. A text of 300 tokens of T5-XXL takes 5 MB.
const LIMIT: u64 = 256 << 20;
/// The one tensor of a file, `[tokens, width]`.
const NAME: &str = "states";

/// The states of one encoder, a file for each text. What cannot be read or written there is made again; the oldest
/// files give way to new ones.
#[derive(Debug)]
pub(super) struct States {
    folder: PathBuf,
    limit: u64,
}

impl States {
    /// In a folder of this encoder's own, by its weights, the kind of device and the version of this library.
    pub(super) fn new(cache: &Path, fingerprint: &str, device: &Device) -> Self {
        let kind = if is_host(device) { "cpu" } else { "gpu" };
        let name = format!("{fingerprint} {kind} {}", env!("CARGO_PKG_VERSION"));
        Self { folder: cache.join("texts").join(sha256_of(name.as_bytes())), limit: LIMIT }
    }

    /// No text can be read out of the name of its file.
    fn path(&self, ids: &[usize]) -> PathBuf {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| (*id as u64).to_le_bytes()).collect();
        self.folder.join(sha256_of(&bytes)).with_extension("safetensors")
    }

    /// The states of these tokens, `[1, tokens, width]`, if they are there, whole and finite.
    pub(super) fn get(&self, ids: &[usize], width: usize, device: &Device) -> Option<Tensor<3>> {
        let path = self.path(ids);
        let stored = Checkpoint::open(&path).ok()?;
        let is_whole = stored.verify().is_ok_and(|checked| checked);
        let (values, shape) = stored.read_f32(NAME).ok().filter(|_| is_whole)?;
        if shape != [ids.len(), width] || !values.iter().all(|value| value.is_finite()) {
            return None;
        }
        // So that what is used stays.
        let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(Tensor::from_data(TensorData::new(values, [1, ids.len(), width]), device))
    }

    /// Keeps the states of these tokens, `[1, tokens, width]`.
    ///
    /// # Errors
    /// A GPU that failed; a file that cannot be written only costs time.
    pub(super) fn put(&self, ids: &[usize], states: &Tensor<3>) -> Result<()> {
        let [_, tokens, width] = states.dims();
        let values = states.clone().reshape([tokens, width]);
        let values = read::data(values)?.convert_dtype(DType::F32);
        if fs::create_dir_all(&self.folder).is_ok() {
            let _ =
                write_safetensors(&self.path(ids), &[(NAME.into(), values)], &Default::default());
            self.shrink();
        }
        Ok(())
    }

    /// Removes the files that were used least lately, up to the limit.
    fn shrink(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let file = |entry: fs::DirEntry| {
            let data = entry.metadata().ok()?;
            Some((data.modified().ok()?, data.len(), entry.path()))
        };
        let mut files: Vec<_> = entries.flatten().filter_map(file).collect();
        files.sort();
        let mut left: u64 = files.iter().map(|(_, length, _)| length).sum();
        for (_, length, path) in files {
            if left <= self.limit {
                return;
            }
            if fs::remove_file(path).is_ok() {
                left -= length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_comes_back_and_what_is_damaged_does_not() {
        let (cache, device) = (tempfile::tempdir().expect("a folder"), Device::flex());
        let states = States::new(cache.path(), "ab", &device);
        let values: Tensor<3> =
            Tensor::from_floats([[[1.5, -2.0, 3.0], [0.0, 1e-9, 7.0]]], &device);
        assert!(states.get(&[4, 1], 3, &device).is_none());
        states.put(&[4, 1], &values).expect("kept");
        let found = states.get(&[4, 1], 3, &device).expect("kept");
        assert_eq!(found.into_data(), values.clone().into_data());
        // Other tokens, another width, other weights.
        assert!(states.get(&[1, 4], 3, &device).is_none());
        assert!(states.get(&[4, 1], 2, &device).is_none());
        assert!(States::new(cache.path(), "ac", &device).get(&[4, 1], 3, &device).is_none());
        let path = states.path(&[4, 1]);
        let mut bytes = fs::read(&path).expect("a file");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&path, bytes).expect("written");
        assert!(states.get(&[4, 1], 3, &device).is_none());
        states.put(&[4, 1], &values).expect("kept");
        assert!(states.get(&[4, 1], 3, &device).is_some());
    }

    #[test]
    fn the_least_used_gives_way() {
        let (cache, device) = (tempfile::tempdir().expect("a folder"), Device::flex());
        let mut states = States::new(cache.path(), "ab", &device);
        let values: Tensor<3> = Tensor::zeros([1, 2, 64], &device);
        states.put(&[0], &values).expect("kept");
        let length = fs::metadata(states.path(&[0])).expect("a file").len();
        states.limit = 3 * length;
        let wait = || std::thread::sleep(std::time::Duration::from_millis(20));
        for id in 1..4 {
            wait();
            states.put(&[id, id], &values).expect("kept");
            wait();
            // The first of these is used all the time.
            assert!(states.get(&[1, 1], 64, &device).is_some());
        }
        let left = |ids: &[usize]| states.path(ids).exists();
        assert_eq!(
            [left(&[0]), left(&[1, 1]), left(&[2, 2]), left(&[3, 3])],
            [false, true, true, true]
        );
        states.put(&[4, 4], &values).expect("kept");
        assert_eq!([left(&[1, 1]), left(&[2, 2]), left(&[3, 3])], [true, false, true]);
    }
}
