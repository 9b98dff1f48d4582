//! LoRA files, and which of them are on a network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use pyrograph_engine::layers::LowRank;
use pyrograph_engine::nets::{self, Adaptable, DitConfig, Net, Norm, Tuned};
use pyrograph_weights::convert::{
    Lora, LoraTerm, dit_lora, flux2_lora, lumina2_lora, minit2i_lora, pixart_lora, read_lora,
    sd3_lora, z_image_lora,
};
use pyrograph_weights::{Checkpoint, Layout};

use crate::error::{Error, Result};
use crate::hooks::Notice;
use crate::model::{flux2, sd3, z_image};
use crate::train::lora::LORA;

/// A LoRA that was read for a network; copies share its matrices.
#[derive(Debug, Clone)]
pub struct Adapter {
    path: PathBuf,
    alpha: Option<f64>,
    fingerprint: String,
    ranks: [usize; 2],
    /// Fingerprint of the only network that it is for, if it says so.
    base: Option<String>,
    terms: Arc<nets::Adapter>,
}

/// Names of the weights in a folder of PEFT or diffusers, or of a training run.
pub(crate) const FILES: [&str; 5] = [
    LORA,
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.bin",
];

/// The tensors of a LoRA, in a file or a folder.
pub(crate) fn checkpoint(path: &Path) -> Result<Checkpoint> {
    let inside = FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    Ok(Checkpoint::open(inside.as_deref().unwrap_or(path))?)
}

/// The spellings of a network's layers that LoRA files have: our own, the original code's and that of diffusers; of a
/// student of so many `steps`.
pub(crate) fn layouts(net: &DitConfig, steps: usize) -> [Layout; 3] {
    match &net.text {
        Some(text) if matches!(net.norm, Norm::Sandwich { .. }) => match text.multiple {
            Some(_) => z_image_lora(net.patch, z_image::heads(net)),
            None => lumina2_lora(z_image::heads(net)),
        },
        Some(_) if matches!(net.norm, Norm::Rms { .. }) => minit2i_lora(),
        Some(text) if text.closing => sd3_lora(sd3::blocks(net)),
        Some(_) if net.modulation.common => flux2_lora(flux2::widths(net)),
        Some(_) => pixart_lora(),
        None => dit_lora(steps, net.embedder_per_block),
    }
}

impl Adapter {
    /// Reads the LoRA in a safetensors or PyTorch file, or in a folder of PEFT or diffusers, for a network on
    /// `device`.
    ///
    /// The names are those of the original DiT or PixArt, of diffusers or our own, as PEFT, diffusers, kohya's scripts and
    /// OneTrainer write them. `alpha` replaces what the file says; where neither says anything alpha is the rank,
    /// and `notify` hears of it.
    ///
    /// # Errors
    /// Files that cannot be read, other kinds of adapters (LoKr, LoHa, DoRA), tensors that the network has no place
    /// for, or one of another shape, and values that are not finite.
    pub fn open(
        path: &Path,
        net: &Net,
        alpha: Option<f64>,
        device: &Device,
        notify: &mut dyn FnMut(Notice),
    ) -> Result<Self> {
        let checkpoint = checkpoint(path)?;
        let config = net.config();
        let steps = config.student.as_ref().map_or(1, |student| student.steps());
        let layouts = layouts(&config.dit, steps);
        let Lora { terms: read, alpha_assumed, token, base } =
            read_lora(&checkpoint, &layouts, &net.layer_widths(), alpha)?;
        if alpha_assumed {
            notify(Notice::AlphaAssumed { file: path.to_owned() });
        }
        let ranks = read.iter().map(|term| term.down.shape()[1]);
        let ranks = [ranks.clone().min(), ranks.max()].map(Option::unwrap_or_default);
        let tensor = |data: TensorData| Tensor::<2>::from_data(data, device);
        let [_, hidden] = config.dit.condition_widths();
        if let Some(token) = token.as_ref().filter(|token| token.shape()[1] != hidden) {
            let (path, found) = (path.to_owned(), token.shape()[1]);
            return Err(Error::NotAModel {
                path,
                reason: format!("a token of width {found}, the model has {hidden}"),
            });
        }
        let mut terms = nets::Adapter { token: token.map(tensor), ..nets::Adapter::default() };
        for LoraTerm { layer, down, up, start } in read {
            let term = LowRank { down: tensor(down), up: tensor(up), start };
            terms.terms.entry(layer).or_default().push(term);
        }
        let fingerprint = checkpoint.fingerprint();
        let (path, terms) = (path.to_owned(), Arc::new(terms));
        Ok(Self { path, alpha, fingerprint, ranks, base, terms })
    }

    /// What was learnt in this run and is in no file.
    pub(crate) fn learnt(tuned: &Tuned) -> Self {
        let ranks = tuned.loras.iter().map(|lora| lora.down.dims()[1]);
        Self {
            path: PathBuf::new(),
            alpha: None,
            fingerprint: String::new(),
            ranks: [ranks.clone().min(), ranks.max()].map(Option::unwrap_or_default),
            base: None,
            terms: Arc::new(tuned.adapter()),
        }
    }

    /// The file or folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses an adapter of a person for a network of another fingerprint.
    pub(crate) fn check_base(&self, weights: &str) -> Result<()> {
        match &self.base {
            Some(base) if base != weights => Err(Error::NotAModel {
                path: self.path.clone(),
                reason: format!("made for the network {base}, this one is {weights}"),
            }),
            _ => Ok(()),
        }
    }

    /// What replaced the file's own alpha.
    pub fn alpha(&self) -> Option<f64> {
        self.alpha
    }

    /// See [`Checkpoint::fingerprint`].
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What it adds.
    pub(crate) fn terms(&self) -> &nets::Adapter {
        &self.terms
    }

    /// The lowest and the highest rank.
    pub fn ranks(&self) -> [usize; 2] {
        self.ranks
    }

    /// Names of the layers that it changes.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.terms.terms.keys().map(String::as_str)
    }
}

/// One adapter among those that are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AdapterId(u64);

/// An adapter that is on.
#[derive(Debug, Clone)]
pub struct PutOn {
    /// By which it is named.
    pub id: AdapterId,
    /// What is on.
    pub adapter: Adapter,
    /// Factor on all that it adds; 0 is as if it were off.
    pub weight: f64,
}

/// The adapters on a network, in the order in which they were put on.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    on: Vec<PutOn>,
    next: u64,
}

impl Adapters {
    /// All that are on.
    pub fn list(&self) -> &[PutOn] {
        &self.on
    }

    /// What stands for the people of all that are on, `[1, hidden]`.
    pub(crate) fn token(&self) -> Option<Tensor<2>> {
        let own = |on: &PutOn| Some(on.adapter.terms.token.clone()? * on.weight);
        self.on.iter().filter_map(own).reduce(|sum, token| sum + token)
    }

    /// Puts one more on; the same adapter may be on several times.
    ///
    /// # Errors
    /// A weight that is not finite, and an adapter that was read for another network.
    pub fn put_on(
        &mut self,
        net: &mut impl Adaptable,
        adapter: Adapter,
        weight: f64,
    ) -> Result<AdapterId> {
        let id = AdapterId(self.next);
        let mut on = self.on.clone();
        on.push(PutOn { id, adapter, weight });
        self.change(net, on)?;
        self.next += 1;
        Ok(id)
    }

    /// Changes the weight of one.
    ///
    /// # Errors
    /// An adapter that is not on, a weight that is not finite.
    pub fn set_weight(
        &mut self,
        net: &mut impl Adaptable,
        id: AdapterId,
        weight: f64,
    ) -> Result<()> {
        let mut on = self.on.clone();
        on[self.position(id)?].weight = weight;
        self.change(net, on)
    }

    /// Takes one off; with none left on, the network is what it was, bit for bit.
    ///
    /// # Errors
    /// An adapter that is not on.
    pub fn take_off(&mut self, net: &mut impl Adaptable, id: AdapterId) -> Result<Adapter> {
        let mut on = self.on.clone();
        let taken = on.remove(self.position(id)?);
        self.change(net, on)?;
        Ok(taken.adapter)
    }

    fn position(&self, id: AdapterId) -> Result<usize> {
        let position = self.on.iter().position(|on| on.id == id);
        position.ok_or(Error::AdapterOff { id: id.0 })
    }

    fn change(&mut self, net: &mut impl Adaptable, on: Vec<PutOn>) -> Result<()> {
        if let Some(PutOn { adapter, weight, .. }) = on.iter().find(|on| !on.weight.is_finite()) {
            let (path, weight) = (adapter.path.clone(), *weight);
            return Err(Error::AdapterWeight { path, weight });
        }
        let weighted: Vec<_> = on.iter().map(|on| (&*on.adapter.terms, on.weight)).collect();
        net.put_on(&weighted)?;
        self.on = on;
        Ok(())
    }
}
