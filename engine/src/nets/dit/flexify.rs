//! More patch sizes for a network that has one (FlexiDiT, Anagnostidis et al. 2025, section 3).

use super::patches::Ends;
use super::{Dit, DitConfig, Flexible, Sharing};
use crate::layers::Init;
use crate::layers::resize::{extend_embedding, extend_projection};
use crate::nets::ConfigError;

/// The same network with further patch sizes, not yet trained at them; the output at the native size is as
/// it was.
///
/// A fresh patch of a further size is embedded as its mean-pooled version would be at the native size, and
/// its output is that of the native size enlarged. `seed` is that of the adapters.
///
/// # Errors
/// A network that has further patch sizes already, and sizes that do not go with it.
pub fn flexify(net: Dit, flexible: Flexible, seed: u64) -> Result<Dit, ConfigError> {
    let config = net.config().clone();
    if config.flexible.is_some() {
        return Err(ConfigError::AlreadyFlexible { patches: config.patches() });
    }
    let native = config.patch;
    if let Some(&patch) = flexible.patches.iter().find(|&&patch| patch < native) {
        return Err(ConfigError::SmallPatch { patch, native });
    }
    let config = DitConfig { flexible: Some(flexible.clone()), ..config };
    config.check()?;
    let device = net.head.out.weight.lazy_device();
    let mut modes = config.init_modes(&Init::new(seed, &device));
    let extended = |patch: usize| Ends {
        patch: extend_embedding(&net.patch, native, patch),
        out: extend_projection(&net.head.out, native, patch),
    };
    let (patch, out) = match flexible.sharing {
        Sharing::Adapters { .. } => {
            for mode in &mut modes {
                mode.ends = Some(extended(mode.patch()));
            }
            (net.patch.clone(), net.head.out.clone())
        }
        Sharing::Kernels { underlying } if underlying == native => {
            (net.patch.clone(), net.head.out.clone())
        }
        Sharing::Kernels { underlying } => {
            let Ends { patch, out } = extended(underlying);
            (patch, out)
        }
    };
    Ok(net.with_modes(patch, out, modes, config))
}
