//! More patch sizes for a network (FlexiDiT, Anagnostidis et al. 2025, section 3).

use super::patches::{Ends, Mode};
use super::{Dit, DitConfig, Flexible, Sharing};
use crate::layers::Init;
use crate::layers::resize::{extend_embedding, extend_projection};
use crate::nets::ConfigError;

/// The same network with further patch sizes, not yet trained at them; the output at the sizes that it has is as it
/// was.
///
/// A fresh patch of a further size is embedded as its mean-pooled version would be at the native size, and
/// its output is that of the native size enlarged; in a network whose sizes share their kernels already, both are
/// resized from these. `seed` is that of the adapters.
///
/// # Errors
/// Sizes that do not go with the network, and, of one that is flexible already, a description that leaves out a
/// size or shares otherwise.
pub fn flexify(net: Dit, flexible: Flexible, seed: u64) -> Result<Dit, ConfigError> {
    let old = net.config().clone();
    if let Some(has) = &old.flexible {
        let kept = has.patches.iter().all(|patch| flexible.patches.contains(patch));
        if !kept || (has.sharing, has.corners) != (flexible.sharing, flexible.corners) {
            return Err(ConfigError::AlreadyFlexible { patches: old.patches() });
        }
    }
    let native = old.patch;
    if let Some(&patch) = flexible.patches.iter().find(|&&patch| patch < native) {
        return Err(ConfigError::SmallPatch { patch, native });
    }
    let config = DitConfig { flexible: Some(flexible.clone()), ..old.clone() };
    config.check()?;
    let extended = |patch: usize| Ends {
        patch: extend_embedding(&net.patch, native, patch),
        out: extend_projection(&net.head.out, old.window(native), old.window(patch)),
    };
    let modes = modes(&net, &config, seed, extended);
    let (patch, out) = match flexible.sharing {
        Sharing::Kernels { underlying } if old.flexible.is_none() && underlying != native => {
            let Ends { patch, out } = extended(underlying);
            (patch, out)
        }
        _ => (net.patch.clone(), net.head.out.clone()),
    };
    Ok(net.with_modes(patch, out, modes, config))
}

/// The same network with a smaller native patch size, not yet trained at it; what was native is a further size, at which
/// and at all others the output is as it was.
///
/// All sizes share their kernels, from which those of the new one are resized.
///
/// # Errors
/// A size that is not below the native one or does not divide the image, and a network whose further sizes have adapters
/// or which stores its positions.
pub fn refine(net: Dit, patch: usize) -> Result<Dit, ConfigError> {
    let old = net.config().clone();
    if patch >= old.patch {
        let expected = format!("below the native one, {}", old.patch);
        return Err(ConfigError::value("patch size", patch, expected));
    }
    let flexible = match &old.flexible {
        Some(has) if matches!(has.sharing, Sharing::Adapters { .. }) => {
            return Err(ConfigError::AlreadyFlexible { patches: old.patches() });
        }
        Some(has) => Flexible { patches: old.patches(), ..has.clone() },
        None => {
            let sharing = Sharing::Kernels { underlying: old.patch };
            Flexible { patches: vec![old.patch], sharing, corners: false }
        }
    };
    let config = DitConfig {
        patch,
        position_patch: old.position_patch.or(Some(old.patch)),
        flexible: Some(flexible),
        ..old
    };
    config.check()?;
    let modes = modes(&net, &config, 0, |_| unreachable!("all sizes share their kernels"));
    let (patch, out) = (net.patch.clone(), net.head.out.clone());
    Ok(net.with_modes(patch, out, modes, config))
}

/// The further patch sizes of `config`: those that the network has as they are, others fresh, with the layers at their ends
/// that `extended` makes where they have some of their own.
fn modes(net: &Dit, config: &DitConfig, seed: u64, extended: impl Fn(usize) -> Ends) -> Vec<Mode> {
    let device = net.head.out.weight.lazy_device();
    let mut modes = config.init_modes(&Init::new(seed, &device));
    for mode in &mut modes {
        match net.modes.iter().find(|known| known.patch() == mode.patch()) {
            Some(known) => *mode = known.clone(),
            None if mode.ends.is_some() => mode.ends = Some(extended(mode.patch())),
            None => (),
        }
    }
    modes
}
