//! The native bundle: a folder with a `model.json` and one safetensors file per network.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::dtype::{Dtype, FloatDtype};
use crate::error::{Error, Result};
use crate::files::{
    check_pointer, folder_of, is_plain_name, open_file, read_at_most, read_start, sha256,
};
use crate::formats::safetensors::{View, write_views};
use crate::layout::Layout;
use crate::load::{LoadReport, check, load, parameter};
use crate::replace::{check_writable, replace_folder, write_whole};

/// Name of the manifest in a bundle.
const MANIFEST: &str = "model.json";
/// Value of [`Manifest::format`].
const FORMAT: &str = "pyrograph";
/// Version of the format that this crate writes and reads.
const VERSION: u32 = 1;
/// Largest manifest accepted.
const MAX_MANIFEST_BYTES: u64 = 16 << 20;

/// The `model.json` of a bundle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `pyrograph`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// Kind of model; decides what `config` means.
    pub family: String,
    /// Configuration of the model, opaque here.
    pub config: serde_json::Value,
    /// Files of weights by the name of their network.
    #[serde(default)]
    pub parts: BTreeMap<String, PartEntry>,
    /// Licence of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Where the weights come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A file of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartEntry {
    /// Plain name of a file in the folder.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Its sha256 in hexadecimal.
    pub sha256: String,
    /// Type of its tensors.
    pub dtype: FloatDtype,
}

impl Manifest {
    /// A manifest without parts yet.
    ///
    /// # Errors
    /// If the configuration is no JSON value, such as a map with keys that are not texts.
    pub fn new(family: &str, config: &impl Serialize) -> Result<Self> {
        let config = serde_json::to_value(config)
            .map_err(|source| Error::Json { path: MANIFEST.into(), source })?;
        Ok(Self {
            format: FORMAT.into(),
            version: VERSION,
            family: family.into(),
            config,
            parts: BTreeMap::new(),
            licence: None,
            source: None,
        })
    }
}

/// The manifest of a folder, of this format and version, whatever becomes of its parts.
///
/// # Errors
/// No such file, broken JSON, another format or version.
pub fn read_manifest(folder: &Path) -> Result<Manifest> {
    let path = folder.join(MANIFEST);
    let manifest: Manifest = serde_json::from_slice(&read_at_most(&path, MAX_MANIFEST_BYTES)?)
        .map_err(|source| Error::Json { path, source })?;
    match (manifest.format.as_str(), manifest.version) {
        (FORMAT, VERSION) => Ok(manifest),
        (format, version) => Err(Error::Bundle {
            path: folder.to_owned(),
            reason: format!(
                "format {format} version {version}, expected {FORMAT} version {VERSION}"
            ),
        }),
    }
}

/// An opened bundle; its weights are read when asked for.
#[derive(Debug, Clone)]
pub struct Bundle {
    folder: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Reads the manifest and checks that the parts are there and have the right lengths. Their content is
    /// not read: see [`Bundle::verify`].
    ///
    /// # Errors
    /// Files that are not there, broken JSON, another format or version, names that leave the folder.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref().to_owned();
        let manifest = read_manifest(&folder)?;
        let fault = |reason| Error::Bundle { path: folder.clone(), reason };
        for part in manifest.parts.values() {
            if !is_plain_name(&part.file) {
                return Err(fault(format!("part `{}` is not a plain file name", part.file)));
            }
            let path = folder.join(&part.file);
            let (_, bytes) = open_file(&path)?;
            if bytes != part.bytes {
                check_pointer(&path, &read_start(&path, 512)?)?;
                return Err(fault(format!(
                    "{} has {bytes} bytes, the manifest says {}",
                    part.file, part.bytes
                )));
            }
        }
        Ok(Self { folder, manifest })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks the sha256 of a part.
    ///
    /// # Errors
    /// [`Error::Checksum`] if it differs; a part that is not in the manifest.
    pub fn verify(&self, part: &str) -> Result<()> {
        let PartEntry { file, sha256: expected, .. } = self.part(part)?;
        let path = self.folder.join(file);
        let found = sha256(&path)?;
        match found == *expected {
            true => Ok(()),
            false => Err(Error::Checksum { path, expected: expected.clone(), found }),
        }
    }

    fn part(&self, name: &str) -> Result<&PartEntry> {
        self.manifest.parts.get(name).ok_or_else(|| Error::Bundle {
            path: self.folder.clone(),
            reason: format!("{MANIFEST} lists no part `{name}`"),
        })
    }

    /// The tensors of a part.
    ///
    /// # Errors
    /// A part that is not in the manifest, or a broken file.
    pub fn checkpoint(&self, part: &str) -> Result<Checkpoint> {
        Checkpoint::open(self.folder.join(&self.part(part)?.file))
    }

    /// Fills a module from a part.
    ///
    /// # Errors
    /// See [`load()`](crate::load()).
    pub fn load<M: Module>(
        &self,
        part: &str,
        module: M,
        dtype: FloatDtype,
        device: &Device,
    ) -> Result<(M, LoadReport)> {
        load(module, &self.checkpoint(part)?, &Layout::native(), dtype, device)
    }
}

/// The weights of one network on their way to a file, and texts beside them.
pub struct Part<'a> {
    parameters: Vec<(String, Parameter<'a>)>,
    texts: BTreeMap<String, String>,
}

/// A parameter whose values are fetched when they are written, in that type if that saves a step.
struct Parameter<'a> {
    shape: Vec<usize>,
    fetch: Box<dyn Fn(FloatDtype) -> Result<TensorData> + 'a>,
}

impl Part<'static> {
    /// All float parameters of a module under their own names.
    pub fn module<M: Module>(module: &M) -> Self {
        #[derive(Default)]
        struct Collect {
            path: Vec<String>,
            found: Vec<(String, Parameter<'static>)>,
        }
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _name: &str, _container_type: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let tensor = param.val();
                let shape = param.lazy_shape().to_vec();
                let fetch = Box::new(move |_| {
                    tensor
                        .try_to_data()
                        .map_err(|error| Error::Device { reason: error.to_string() })
                });
                self.found.push((self.path.join("."), Parameter { shape, fetch }));
            }
        }
        let mut collect = Collect::default();
        module.visit(&mut collect);
        Self { parameters: collect.found, texts: BTreeMap::new() }
    }
}

impl<'a> Part<'a> {
    /// The parameters that a module of this kind would be [loaded](load()) with, without loading them.
    ///
    /// # Errors
    /// As there, but for the values, which are read when they are written.
    pub fn stored<M: Module>(
        module: M,
        checkpoint: &'a Checkpoint,
        layout: &'a Layout,
    ) -> Result<Self> {
        let shapes = check(module, checkpoint, layout)?;
        let parameter = |(name, shape): (String, Vec<usize>)| {
            let (own, expected) = (name.clone(), shape.clone());
            let fetch =
                Box::new(move |dtype| parameter(checkpoint, layout, &own, &expected, dtype));
            (name, Parameter { shape, fetch })
        };
        let parameters = shapes.into_iter().map(parameter).collect();
        Ok(Self { parameters, texts: BTreeMap::new() })
    }

    /// Adds a text, which [`Checkpoint::metadata`] of the part will have.
    pub fn with_text(mut self, key: &str, text: String) -> Self {
        self.texts.insert(key.to_owned(), text);
        self
    }
}

/// A parameter and the type it is written in.
struct Typed<'a>(Parameter<'a>, FloatDtype);

impl View for Typed<'_> {
    fn dtype(&self) -> Dtype {
        self.1.stored()
    }

    fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    fn data(&self) -> Result<Cow<'_, [u8]>> {
        let Self(parameter, dtype) = self;
        let data = (parameter.fetch)(*dtype)?;
        let data = match data.dtype() == dtype.burn() {
            true => data,
            false => {
                let values = data.try_into_vec_as().expect("floats become f32");
                dtype.data(values, parameter.shape.clone())
            }
        };
        Ok(Cow::Owned(data.as_bytes().to_vec()))
    }
}

/// Checks, before any work, that a bundle can be saved at a path: with `overwrite`, it replaces another bundle or an
/// empty folder, but nothing that holds more than that.
///
/// # Errors
/// [`Error::Exists`] without `overwrite`, [`Error::NotOurs`] for anything else that is there, and a folder that cannot
/// be written.
pub fn check_target(folder: &Path, overwrite: bool) -> Result<()> {
    if !folder.exists() && !folder.is_symlink() {
        return check_writable(folder_of(folder));
    }
    if !overwrite {
        return Err(Error::Exists { path: folder.to_owned() });
    }
    let not_ours = |reason: String| Error::NotOurs { path: folder.to_owned(), reason };
    if !folder.is_dir() {
        return Err(not_ours("it is not a folder".into()));
    }
    let failed = |source| Error::File { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(failed)?.map(|entry| Ok(entry?.file_name()));
    let mut names = entries.collect::<std::io::Result<BTreeSet<_>>>().map_err(failed)?;
    if names.is_empty() {
        return check_writable(folder_of(folder));
    }
    let manifest = read_manifest(folder).map_err(|_| not_ours("it is no bundle".into()))?;
    names.remove(OsStr::new(MANIFEST));
    for PartEntry { file, bytes, .. } in manifest.parts.values() {
        let found = std::fs::symlink_metadata(folder.join(file)).ok().filter(Metadata::is_file);
        if found.as_ref().map(Metadata::len) != Some(*bytes) {
            let reason = format!("{file} is not the file of {bytes} bytes that its manifest names");
            return Err(not_ours(reason));
        }
        names.remove(OsStr::new(file));
    }
    match names.first() {
        None => check_writable(folder_of(folder)),
        Some(name) => Err(not_ours(format!("besides a bundle it holds {}", name.display()))),
    }
}

/// Writes a bundle: into a temporary folder beside the target, which then takes its place in one step.
///
/// # Errors
/// See [`check_target`], and everything the disk refuses; what was there is then unchanged, and nothing half-written
/// is left.
pub fn save_bundle(
    folder: &Path,
    mut manifest: Manifest,
    parts: Vec<(&str, Part<'_>)>,
    dtype: FloatDtype,
    overwrite: bool,
) -> Result<()> {
    check_target(folder, overwrite)?;
    replace_folder(folder, |fresh| {
        for (name, part) in parts {
            let file = format!("{name}.safetensors");
            let path = fresh.join(&file);
            let Part { parameters, texts } = part;
            let views = parameters.into_iter().map(|(name, values)| (name, Typed(values, dtype)));
            write_views(&path, views.collect(), &texts)?;
            let (_, bytes) = open_file(&path)?;
            let entry = PartEntry { file, bytes, sha256: sha256(&path)?, dtype };
            manifest.parts.insert(name.to_owned(), entry);
        }
        let text = serde_json::to_string_pretty(&manifest)
            .map_err(|source| Error::Json { path: folder.join(MANIFEST), source })?;
        write_whole(&fresh.join(MANIFEST), (text + "\n").as_bytes())
    })
}
