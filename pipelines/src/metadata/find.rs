//! Finding again what a picture was made from, by name and content.

use std::path::{Path, PathBuf};

use super::{ControlRecord, NoiseRecord, Record, Used};
use crate::control::ControlBranch;
use crate::error::{Error, Result};
use crate::request::{Controlled, Noise, Picture, StartPicture};
use crate::{adapter, branches, model};

/// How deep in the folders is searched.
const DEPTH: usize = 4;
/// Most entries of folders that are looked at.
const ENTRIES: usize = 20_000;

/// Extensions of start pictures and masks.
const PICTURES: [&str; 4] = ["png", "jpg", "jpeg", "webp"];
/// That of noise.
const NOISE: [&str; 1] = ["safetensors"];
/// Those of weights.
const WEIGHTS: [&str; 6] = ["safetensors", "pt", "pth", "ckpt", "bin", "gguf"];
/// Files of folders that can hold an autoencoder.
const AUTOENCODERS: [&str; 4] =
    ["config.json", "vae/config.json", "model.json", "model_index.json"];

/// Folders in which the files and models of a record are looked for, with the folders in them. Records hold no folders;
/// what has the right name is told from others by its fingerprint, and what was renamed is found by that alone: models
/// at any depth, all else beside its old place.
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
        let find =
            |vae| self.weights("the autoencoder", vae, None, self.parts(&AUTOENCODERS), &same);
        added.map(find).transpose()
    }

    /// The text encoder that was added to the model.
    ///
    /// # Errors
    /// As [`Search::model`].
    pub fn text_encoder(&self, record: &Record) -> Result<Option<PathBuf>> {
        let same = |path: &Path| model::text_fingerprint(path).ok();
        let find = |encoder| {
            let others =
                self.parts(&["config.json", "model_index.json", "text_encoder/config.json"]);
            self.weights("the text encoder", encoder, None, others, &same)
        };
        record.text_encoder.as_ref().map(find).transpose()
    }

    /// The file or folder of one of the adapters.
    ///
    /// # Errors
    /// As [`Search::model`].
    pub fn adapter(&self, record: &super::AdapterRecord) -> Result<PathBuf> {
        let (file, fingerprint) = (record.file.clone(), record.fingerprint.clone());
        let used = Used { file: Some(file), fingerprint: Some(fingerprint) };
        let same = |path: &Path| Some(adapter::checkpoint(path).ok()?.fingerprint());
        self.weights("the adapter", &used, None, self.parts(&adapter::FILES), &same)
    }

    /// The picture that a record starts from.
    ///
    /// # Errors
    /// [`Error::NotFoundAgain`], also if there is another picture of that name.
    pub fn picture(&self, record: &Record) -> Result<Option<StartPicture>> {
        let Some(start) = &record.picture else { return Ok(None) };
        let picture =
            Picture::File(self.content("the start picture", &start.picture, &PICTURES)?);
        Ok(Some(StartPicture { picture, strength: start.strength }))
    }

    /// The mask of a record.
    ///
    /// # Errors
    /// As [`Search::picture`].
    pub fn mask(&self, record: &Record) -> Result<Option<Picture>> {
        let mask = record.mask.as_ref().map(|mask| self.content("the mask", mask, &PICTURES));
        Ok(mask.transpose()?.map(Picture::File))
    }

    /// What controlled a picture, and the branches that see it.
    ///
    /// # Errors
    /// As [`Search::picture`].
    pub fn controls(&self, record: &Record) -> Result<Vec<Controlled>> {
        let found = |control: &ControlRecord| {
            let same = |path: &Path| branches::fingerprint(path).ok();
            let others = self.entries(DEPTH).filter(|path| path.join("model.json").is_file());
            let branch = self.weights("the branch", &control.branch, None, others, &same)?;
            let picture = self.content("what controls", &control.picture, &PICTURES)?;
            Ok(Controlled {
                branch: ControlBranch::Folder(branch),
                picture: Picture::File(picture),
                ready: control.ready,
                scale: control.scale,
                steps: control.steps,
            })
        };
        record.controls.iter().map(found).collect()
    }

    /// The noise of a record.
    ///
    /// # Errors
    /// As [`Search::picture`].
    pub fn noise(&self, record: &Record) -> Result<Option<Noise>> {
        let Some(NoiseRecord { noise, first }) = &record.noise else { return Ok(None) };
        let file = self.content("the noise", noise, &NOISE)?;
        Ok(Some(Noise::Part { file, first: *first }))
    }

    /// A file of this name and content, or of this content alone beside those of other names.
    fn content(&self, what: &'static str, used: &Used, extensions: &[&str]) -> Result<PathBuf> {
        let same = |path: &Path| pyrograph_weights::sha256(path).ok();
        let others =
            self.entries(1).filter(|path| path.is_file() && has_extension(path, extensions));
        let other = match self.find(used, None, &same) {
            Found::Same(path) => return Ok(path),
            Found::Other(path) => Some(path),
            Found::Nothing => None,
        };
        renamed(used, others, &same).ok_or_else(|| not_found(what, used, other))
    }

    /// Weights of this name, or else of another with the same content; the name alone is the last resort.
    fn weights(
        &self,
        what: &'static str,
        used: &Used,
        further: Option<PathBuf>,
        others: impl Iterator<Item = PathBuf>,
        fingerprint: &dyn Fn(&Path) -> Option<String>,
    ) -> Result<PathBuf> {
        match self.find(used, further, fingerprint) {
            Found::Same(path) => Ok(path),
            Found::Other(path) => Ok(renamed(used, others, fingerprint).unwrap_or(path)),
            Found::Nothing => {
                renamed(used, others, fingerprint).ok_or_else(|| not_found(what, used, None))
            }
        }
    }

    /// A part of a model beside those of other names: a file of weights, or a folder with one of these files.
    fn parts(&self, files: &'static [&'static str]) -> impl Iterator<Item = PathBuf> {
        self.entries(1).filter(move |path| match path.is_dir() {
            true => files.iter().any(|file| path.join(file).is_file()),
            false => has_extension(path, &WEIGHTS),
        })
    }

    /// A model of this name, here or shipped, or one of another name with the same weights.
    fn network(&self, what: &'static str, used: &Used) -> Result<PathBuf> {
        let fingerprint = |path: &Path| model::fingerprint(path).ok();
        let is_model = |path: &PathBuf| {
            let files = ["model.json", "model_index.json", "transformer/config.json"];
            files.iter().any(|file| path.join(file).is_file())
        };
        let shipped = |name: &str| model::find(Path::new(name)).ok();
        let others = self.entries(DEPTH).filter(is_model);
        let others = others.chain(model::SHIPPED.into_iter().filter_map(shipped));
        self.weights(what, used, used.file.as_deref().and_then(shipped), others, &fingerprint)
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
        let mut other = None;
        for path in direct.chain(self.entries(DEPTH).filter(has_name)) {
            let path = path.strip_prefix(".").map(Path::to_owned).unwrap_or(path);
            match used.holds(fingerprint(&path)) {
                true => return Found::Same(path),
                false => other = other.or(Some(path)),
            }
        }
        other.map_or(Found::Nothing, Found::Other)
    }

    /// What is in the folders, and in those in them, `depth` levels in all; looked at when it is asked for.
    fn entries(&self, depth: usize) -> impl Iterator<Item = PathBuf> + use<> {
        let folders = self.folders.clone();
        std::iter::once_with(move || below(folders, depth)).flatten()
    }
}

/// What is in folders, the outer ones first; links and hidden names are left out.
fn below(folders: Vec<PathBuf>, depth: usize) -> Vec<PathBuf> {
    let mut level = folders;
    let mut all: Vec<PathBuf> = Vec::new();
    for _ in 0..depth {
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
    all
}

impl Used {
    /// Whether something of this fingerprint can be what was used.
    pub(super) fn holds(&self, found: Option<String>) -> bool {
        self.fingerprint.is_none() || self.fingerprint == found
    }
}

/// The first of `others` that holds what was used.
fn renamed(
    used: &Used,
    mut others: impl Iterator<Item = PathBuf>,
    fingerprint: &dyn Fn(&Path) -> Option<String>,
) -> Option<PathBuf> {
    // What came from memory was no file, and any file would do where nothing is known of the content.
    let known = used.file.is_some() && used.fingerprint.is_some();
    let found = others.find(|path| known && used.holds(fingerprint(path)))?;
    Some(found.strip_prefix(".").map(Path::to_owned).unwrap_or(found))
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|own| extensions.iter().any(|known| own.eq_ignore_ascii_case(known)))
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
        assert_eq!(search.content("the noise", &used, &NOISE).expect("found"), two);
        let error = |used: &Used| {
            search.content("the noise", used, &NOISE).expect_err("not found").to_string()
        };
        let other = Used { fingerprint: Some("0123456789ab".into()), ..used.clone() };
        assert!(error(&other).contains("another content"), "{}", error(&other));
        let gone = Used { file: Some("gone".into()), ..used };
        assert!(error(&gone).contains("`gone`"), "{}", error(&gone));
        assert!(error(&Used::memory(b"x")).contains("from memory"));
    }
}
