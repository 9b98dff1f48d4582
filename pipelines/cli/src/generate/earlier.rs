//! A picture whose settings are repeated.

use std::path::{Path, PathBuf};

use pyrograph::metadata::{Record, Search, Used, VERSION};
use pyrograph::pipeline::Origin;
use pyrograph::weights::folder_of;

use crate::common::Common;

/// A picture that was made before.
pub(crate) struct Earlier {
    /// Its file.
    pub(super) picture: PathBuf,
    /// What it holds.
    pub(super) record: Record,
    /// Where what it was made from can be.
    pub(super) search: Search,
}

impl Earlier {
    /// What a picture needs is looked for here, beside it, and beside the model that is named.
    pub(super) fn read(picture: &Path, model: Option<&Path>) -> anyhow::Result<Self> {
        let beside = model.filter(|model| model.exists()).map(folder_of);
        let folders = [Path::new("."), folder_of(picture)].into_iter().chain(beside);
        let search = Search::new(folders.map(Path::to_owned));
        Ok(Self { picture: picture.to_owned(), record: Record::read(picture)?, search })
    }

    /// Says what is no longer as it was.
    pub(super) fn compare(&self, origin: &Origin, common: &Common) {
        let Record { version, weights, vae, text_encoder, guide, device, .. } = &self.record;
        if version != VERSION {
            common.say(&format!(
                "the picture was made by version {version}, this is {VERSION}: it may come out differently"
            ));
        }
        if *device != origin.device {
            let now = &origin.device;
            common.say(&format!(
                "the picture was made on {device}: on {now} it can differ by rounding"
            ));
        }
        if *weights != origin.weights {
            common.say(&format!(
                "warning: the picture was made by weights {weights}, those of {} are {}",
                origin.name, origin.weights
            ));
        }
        let parts = [
            ("autoencoder", vae, &origin.vae),
            ("text encoder", text_encoder, &origin.text_encoder),
            ("guide model", guide, &origin.guide),
        ];
        for (what, before, now) in parts {
            let fingerprint = |used: &Option<Used>| used.as_ref()?.fingerprint.clone();
            let (before, now) = (fingerprint(before), fingerprint(now));
            if let Some(before) = before.filter(|before| Some(before) != now.as_ref()) {
                let now = now.as_deref().unwrap_or("none");
                common.say(&format!("warning: the {what} was {before} for the picture, now {now}"));
            }
        }
    }
}
