//! Checksums of files, stored in them.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::dtype::Dtype;
use crate::files::hexadecimal;

/// Key of the checksum among the texts of a file.
pub(crate) const CHECKSUM_KEY: &str = "pyrograph.sha256";

/// The sha256 of everything that a file means: its texts but for the checksum itself, then its tensors in the order of
/// their names.
pub(crate) struct Checksum(Sha256);

impl Checksum {
    pub(crate) fn new(texts: &BTreeMap<String, String>) -> Self {
        let mut checksum = Self(Sha256::new());
        for (key, text) in texts.iter().filter(|(key, _)| *key != CHECKSUM_KEY) {
            checksum.part(key.as_bytes());
            checksum.part(text.as_bytes());
        }
        checksum
    }

    /// The next tensor.
    pub(crate) fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
        self.part(format!("{name} {dtype} {shape:?}").as_bytes());
        self.part(bytes);
    }

    /// With its length, so that nothing can move from one part to the next.
    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// In hexadecimal.
    pub(crate) fn finish(self) -> String {
        hexadecimal(&self.0.finalize())
    }
}
