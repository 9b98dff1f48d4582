//! Low-rank adapters in training (LoRA, Hu et al. 2022).

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::{Adaptable, Adapter};
use crate::error::{Error, Result};
use crate::layers::{Fresh, Init, Lora, LowRank};
use crate::nets::Dit;

/// A frozen network with an adapter for some of its linear layers, which alone is trained.
#[derive(Module, Debug)]
pub struct Tuned {
    /// The network, which stays as it is.
    pub net: Dit,
    /// In the order of `layers`.
    pub loras: Vec<Lora>,
    /// What stands for a person, `[1, hidden]`, at first zero: see [`Adapter::token`].
    pub token: Option<Param<Tensor<2>>>,
    /// Names of the layers that have one, as in [`Adaptable::linear_layers`].
    #[module(skip)]
    layers: Vec<String>,
}

impl Tuned {
    /// Adapters of this rank, from the random numbers of a seed; at first they add nothing.
    ///
    /// # Errors
    /// A layer that the network does not have.
    pub fn new(
        net: Dit,
        layers: Vec<String>,
        rank: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let init = Init::new(seed, device);
        let widths: BTreeMap<String, [usize; 2]> = net.layer_widths().into_iter().collect();
        let fresh = |name: &String| {
            let [inputs, outputs] =
                *widths.get(name).ok_or_else(|| Error::NoLayer { name: name.clone() })?;
            Ok(Lora::new(inputs, outputs, rank, &init))
        };
        let loras = layers.iter().map(fresh).collect::<Result<_>>()?;
        Ok(Self { net: net.no_grad(), loras, token: None, layers })
    }

    /// The same with a token for a person.
    pub fn with_token(self, device: &Device) -> Self {
        let hidden = self.net.config().hidden;
        let token = Init::new(0, device).param(Fresh::Constant(0.0), [1, hidden]);
        Self { token: Some(token), ..self }
    }

    /// The network with its adapters on.
    pub fn bound(&self) -> Dit {
        let mut net = self.net.clone();
        let own: BTreeMap<&String, &Lora> = self.layers.iter().zip(&self.loras).collect();
        for (name, layer) in net.linear_layers() {
            if let Some(lora) = own.get(&name) {
                layer.tune((*lora).clone());
            }
        }
        net
    }

    /// Its adapters, off the autodiff device, to be [put on](Adaptable::put_on) or stored.
    pub fn adapter(&self) -> Adapter {
        let terms = self.layers.iter().zip(&self.loras).map(|(name, lora)| {
            let [down, up] = [&lora.down, &lora.up].map(|param| param.val().without_autodiff());
            (name.clone(), vec![LowRank { down, up, start: 0 }])
        });
        let token = self.token.as_ref().map(|token| token.val().without_autodiff());
        Adapter { terms: terms.collect(), token }
    }
}
