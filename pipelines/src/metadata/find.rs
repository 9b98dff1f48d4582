//! Finding again what a picture was made from, by name and content.

use std::path::{Path, PathBuf};

use super::{NoiseRecord, Record, Used};
use crate::adapter;
use crate::error::{Error, Result};
use crate::model;
use crate::request::{Noise, Picture, StartPicture};

/// How deep in the folders is searched.
const DEPTH: usize = 4;
/// Most entries of folders that are looked at.
const ENTRIES: usize = 20_000;

/// Folders in which the files and models of a record are looked for, with the folders in them. Records hold no folders;
/// what has the right name is told from others by its fingerprint, and a model that was renamed is found by that alone.
#[derive(Debug, Clone)]
pub struct Search {
    folders: Vec<PathBuf>,
}

/// What has the right name.
enum Found {
    /// And the right content.
    Same(PathBuf),
    /// But not the right content.
    Other(PathBuf),
    /// Nothing has.
    Nothing,
}

impl Search {
    /// In these folders, the most likely one first.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { folders: folders.into_iter().collect() }
    }

    /// The model of a record: one with other weights where only the name is found.
    ///
    /// # Errors
    /// [`Error::NotFoundAgain`].
    pub fn model(&self, record: &Record) -> Result<PathBuf> {
        let (file, fingerprint) = (record.model.clone(), record.weights.clone());
        self.network("the model", &Used { file: Some(file), fingerprint: Some(fingerprint) })
    }

    /// The model that guided.
    ///
    /// # Errors
    /// As [`Search::model`].
    pub fn guide(&self, record: &Record) -> Result<Option<PathBuf>> {
        record.guide.as_ref().map(|guide| self.network("the guide model", guide)).transpose()
    }

    /// The autoencoder that was added to the model.
    ///
    /// # Errors
    /// As [`Search::model`].
    pub fn vae(&self, record: &Record) -> Result<Option<PathBuf>> {
        let added = record.vae.as_ref().filter(|vae| vae.file.is_some());
        let same = |path: &Path| model::vae_fingerprint(path).ok();
        added.map(|vae| self.by_name("the autoencoder", vae, &same)).transpose()
    }

    /// The text encoder that was added to the model.
    ///
    /// # Errors
    /// As [`Search::model`].
    pub fn text_encoder(&self, record: &Record) -> Result<Option<PathBuf>> {
        let same = |path: &Path| model::text_fingerprint(path).ok();
        let added = record.text_encoder.as_ref();
        added.map(|encoder| self.by_name("the text encoder", encoder, &same)).transpose()
    }

    /// The file or folder of one of the adapters.
    ///
    /// # Errors
    /// As [`Search::model`].
    pub fn adapter(&self, record: &super::AdapterRecord) -> Result<PathBuf> {
        let (file, fingerprint) = (record.file.clone(), record.fingerprint.clone());
        let used = Used { file: Some(file), fingerprint: Some(fingerprint) };
        let same = |path: &Path| Some(adapter::checkpoint(path).ok()?.fingerprint());
        self.by_name("the adapter", &used, &same)
    }

    /// The picture that a record starts from.
    ///
    /// # Errors
    /// [`Error::NotFoundAgain`], also if there is another picture of that name.
    pub fn picture(&self, record: &Record) -> Result<Option<StartPicture>> {
        let Some(start) = &record.picture else { return Ok(None) };
        let picture = Picture::File(self.content("the start picture", &start.picture)?);
        Ok(Some(StartPicture { picture, strength: start.strength }))
    }

    /// The mask of a record.
    ///
    /// # Errors
    /// As [`Search::picture`].
    pub fn mask(&self, record: &Record) -> Result<Option<Picture>> {
        let mask = record.mask.as_ref().map(|mask| self.content("the mask", mask));
        Ok(mask.transpose()?.map(Picture::File))
    }

    /// The noise of a record.
    ///
    /// # Errors
    /// As [`Search::picture`].
    pub fn noise(&self, record: &Record) -> Result<Option<Noise>> {
        let Some(NoiseRecord { noise, first }) = &record.noise else { return Ok(None) };
        let file = self.content("the noise", noise)?;
        Ok(Some(Noise::Part { file, first: *first }))
    }

    fn content(&self, what: &'static str, used: &Used) -> Result<PathBuf> {
        let same = |path: &Path| pyrograph_weights::sha256(path).ok();
        match self.find(used, None, &same) {
            Found::Same(path) => Ok(path),
            Found::Other(other) => Err(not_found(what, used, Some(other))),
            Found::Nothing => Err(not_found(what, used, None)),
        }
    }

    fn by_name(
        &self,
        what: &'static str,
        used: &Used,
        fingerprint: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<PathBuf> {
        match self.find(used, None, fingerprint) {
            Found::Same(path) | Found::Other(path) => Ok(path),
            Found::Nothing => Err(not_found(what, used, None)),
        }
    }

    /// A model of this name, here or shipped, or one of another name with the same weights.
    fn network(&self, what: &'static str, used: &Used) -> Result<PathBuf> {
        let fingerprint = |path: &Path| model::fingerprint(path).ok();
        let is_model = |path: &PathBuf| {
            ["model.json", "model_index.json"].iter().any(|file| path.join(file).is_file())
        };
        let shipped = used.file.as_ref().and_then(|name| model::find(Path::new(name)).ok());
        let renamed = || {
            let others = model::SHIPPED.iter().filter_map(|name| model::find(Path::new(name)).ok());
            let mut models = self.entries().filter(is_model).chain(others);
            models.find(|path| used.fingerprint.is_some() && used.holds(fingerprint(path)))
        };
        match self.find(used, shipped, &fingerprint) {
            Found::Same(path) => Ok(path),
            Found::Other(path) => Ok(renamed().unwrap_or(path)),
            Found::Nothing => renamed().ok_or_else(|| not_found(what, used, None)),
        }
    }

    /// What has the name, in the folders, at `further`, or deeper: the first of the right content if there is one.
    fn find(
        &self,
        used: &Used,
        further: Option<PathBuf>,
        fingerprint: &dyn Fn(&Path) -> Option<String>,
    ) -> Found {
        let Some(name) = used.file.as_deref().filter(|name| !name.is_empty()) else {
            return Found::Nothing;
        };
        // Names of earlier versions can be paths.
        let direct = self.folders.iter().map(|folder| folder.join(name));
        let direct = direct.filter(|path| path.exists()).chain(further);
        let has_name = |path: &PathBuf| path.file_name().is_some_and(|own| own == name);
        let below = std::iter::once_with(|| self.entries().filter(has_name)).flatten();
        let mut other = None;
        for path in direct.chain(below) {
            let path = path.strip_prefix(".").map(Path::to_owned).unwrap_or(path);
            match used.holds(fingerprint(&path)) {
                true => return Found::Same(path),
                false => other = other.or(Some(path)),
            }
        }
        other.map_or(Found::Nothing, Found::Other)
    }

    /// What is in the folders, and in those in them, the outer ones first; links and hidden names are left out.
    fn entries(&self) -> impl Iterator<Item = PathBuf> {
        let mut level = self.folders.clone();
        let mut all: Vec<PathBuf> = Vec::new();
        for _ in 0..DEPTH {
            let read = level.iter().filter_map(|folder| std::fs::read_dir(folder).ok());
            let shown = read.flatten().flatten().filter(|entry| {
                let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
                !is_hidden && !entry.file_type().is_ok_and(|kind| kind.is_symlink())
            });
            let room = ENTRIES.saturating_sub(all.len());
            let mut found: Vec<PathBuf> = shown.take(room).map(|entry| entry.path()).collect();
            found.sort();
            level = found.iter().filter(|path| path.is_dir()).cloned().collect();
            all.append(&mut found);
        }
        all.into_iter()
    }
}

impl Used {
    /// Whether something of this fingerprint can be what was used.
    pub(super) fn holds(&self, found: Option<String>) -> bool {
        self.fingerprint.is_none() || self.fingerprint == found
    }
}

fn not_found(what: &'static str, used: &Used, other: Option<PathBuf>) -> Error {
    Error::NotFoundAgain { what, used: used.clone(), other }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_name_and_content() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, text).expect("written");
            path
        };
        write("a/noise", "one");
        let two = write("b/deep/noise", "two");
        let search = Search::new([folder.path().to_owned()]);
        let used = Used::file(&two).expect("a file");
        assert_eq!(search.content("the noise", &used).expect("found"), two);
        let error =
            |used: &Used| search.content("the noise", used).expect_err("not found").to_string();
        let other = Used { fingerprint: Some("0123456789ab".into()), ..used.clone() };
        assert!(error(&other).contains("another content"), "{}", error(&other));
        let gone = Used { file: Some("gone".into()), ..used };
        assert!(error(&gone).contains("`gone`"), "{}", error(&gone));
        assert!(error(&Used::memory(b"x")).contains("from memory"));
    }
}
