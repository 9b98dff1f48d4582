//! Pictures that a branch sees while it learns to control images by them.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use image::RgbImage;
use pyrograph_engine::diffusion::Process;
use pyrograph_engine::nets::{Conditioning, Control, DitConfig, Steered};
use pyrograph_engine::portrait::conditions::ControlKind;
use pyrograph_engine::random::Generator;
use pyrograph_engine::train::Batch;

use super::ControlShape;
use crate::control::ControlConfig;
use crate::data::{Dataset, Encoder};
use crate::error::{Error, Result};
use crate::eval;
use crate::image::to_images;
use crate::train::config::TrainConfig;
use crate::train::identity::Sources;

/// What stands beside the images of a run.
pub(in crate::train) struct Beside {
    pub(in crate::train) config: ControlConfig,
    /// Pictures, or their latents; without, they are made of the pixels of each batch.
    pictures: Option<Dataset>,
}

/// Folder of the latents of the pictures in that of a run.
const FOLDER: &str = "control";

impl ControlShape {
    /// What stands beside the images of a run with these branches, whose latents are kept in `folder`; `data` is not yet as
    /// it is trained on.
    ///
    /// # Errors
    /// A missing picture, files that cannot be read or written.
    pub(in crate::train) fn beside(
        &self,
        kind: ControlKind,
        (net, config): (&DitConfig, &TrainConfig),
        (data, encoder): (&Dataset, Option<&Encoder>),
        (folder, sources): (&Path, &mut Sources),
        device: &Device,
    ) -> Result<Beside> {
        let pictures = match (&self.pictures, encoder) {
            (Some(drawn), _) => Some(data.drawn(drawn)?),
            (None, Some(_)) => Some(data.seen(kind)?),
            (None, None) => None,
        };
        if self.pictures.is_some()
            && let Some(pictures) = &pictures
        {
            sources.insert("control.pictures".to_owned(), pictures.fingerprint().into());
        }
        let folder = folder.join(FOLDER);
        if pictures.is_some() && encoder.is_some() {
            std::fs::create_dir_all(&folder)
                .map_err(|source| Error::File { path: folder.clone(), source })?;
        }
        let prepared = |pictures: Dataset| {
            pictures.for_training(config.flip, config.augment, encoder.cloned(), &folder, device)
        };
        let base = sources.get("init").and_then(|base| base.as_str()).unwrap_or_default();
        let config =
            ControlConfig { kind, depth: self.depth, base: base.to_owned(), patch: net.patch };
        Ok(Beside { config, pictures: pictures.map(prepared).transpose()? })
    }
}

impl Beside {
    /// What a branch sees of the images of these numbers.
    ///
    /// # Errors
    /// Pixels that are not finite.
    pub(in crate::train) fn shown(
        &self,
        data: &Dataset,
        indices: &[usize],
    ) -> Result<Vec<RgbImage>> {
        let device = &Device::flex();
        match &self.pictures {
            Some(seen) => eval::pictures(seen, indices, device),
            None => {
                let (flips, colours) = (vec![false; indices.len()], vec![0; indices.len()]);
                to_images(self.config.kind.of(data.pixels(indices, &flips, &colours, device)))
            }
        }
    }

    /// What a network is told of a batch of these images, besides, by the pictures beside them; `random` is as it was when the
    /// batch was drawn.
    pub(in crate::train) fn steer(
        &self,
        steered: &Steered<Control>,
        process: &Process,
        batch: Batch,
        indices: &[usize],
        random: &mut Generator,
    ) -> Batch {
        let device = batch.clean.device();
        let picture: Tensor<4> = match &self.pictures {
            Some(pictures) => pictures.clean(indices, random, &device),
            None => self.config.kind.of(batch.clean.clone()),
        };
        let Steered { net, branches } = steered;
        let nothing = &batch.null;
        let control =
            branches.of_picture(net, process, picture.autodiff(), nothing, self.config.patch);
        let with = |told: &Conditioning| Conditioning { control: control.clone(), ..told.clone() };
        Batch { told: with(&batch.told), null: with(&batch.null), ..batch }
    }
}
