//! Options for patch sizes over the steps of a generation.

use anyhow::{Context, bail};
use clap::Args;
use pyrograph::Error;
use pyrograph::engine::nets::DitConfig;
use pyrograph::patches::PatchPlan;

/// What to do with a flexible model.
#[derive(Args)]
#[group(multiple = true)]
pub(crate) struct Patches {
    /// Share of the full compute, such as 60%: larger patches in as many first steps as that takes
    #[arg(long, value_parser = parse_share, conflicts_with_all = ["weak_steps", "patch_schedule"])]
    compute: Option<f64>,
    /// First steps with larger patches
    #[arg(long, value_name = "STEPS", conflicts_with = "patch_schedule")]
    weak_steps: Option<usize>,
    /// First steps of the guiding call with larger patches; beyond --weak-steps it is conditional too
    #[arg(long, value_name = "STEPS", conflicts_with_all = ["patch_schedule", "compute"])]
    weak_steps_guidance: Option<usize>,
    /// Larger patch size of --weak-steps [default: the next after the model's own]
    #[arg(long, value_name = "PATCH", conflicts_with_all = ["patch_schedule", "compute"])]
    weak_patch: Option<usize>,
    /// Patch sizes and their steps from noise to data, such as 8:12,4:8, or 8:12,4:8/8 with those of guidance
    #[arg(long, value_name = "PATCH:STEPS,..")]
    patch_schedule: Option<String>,
}

impl Patches {
    /// The plan asked for, if any, for latents of `size`.
    pub(crate) fn plan(
        &self,
        net: &DitConfig,
        size: [usize; 2],
        steps: usize,
    ) -> anyhow::Result<Option<PatchPlan>> {
        if let Some(text) = &self.patch_schedule {
            return Ok(Some(PatchPlan::parse(text, steps)?));
        }
        if let Some(share) = self.compute {
            return Ok(Some(PatchPlan::for_compute(net, size, share, steps)?));
        }
        if self.weak_steps.is_none() && self.weak_steps_guidance.is_none() {
            return match self.weak_patch {
                Some(_) => bail!("--weak-patch has no effect without --weak-steps"),
                None => Ok(None),
            };
        }
        let main = self.weak_steps.unwrap_or(0);
        let guide = self.weak_steps_guidance.unwrap_or(main);
        if main > steps || guide > steps || guide < main {
            bail!(
                "{main} weak steps and {guide} of guidance, expected no more than the {steps} steps of \
                 the run, and no fewer of guidance"
            );
        }
        let next = net.patches().into_iter().find(|&patch| patch > net.patch);
        let Some(weak) = self.weak_patch.or(next) else {
            return Err(Error::OnePatchSize { patch: net.patch }.into());
        };
        if weak <= net.patch {
            bail!("weak patches of {weak}, the model's own are of {}", net.patch);
        }
        Ok(Some(PatchPlan::weak_first([net.patch, weak], main, guide, steps)))
    }
}

/// A share of compute, such as `60%` or `0.6`.
pub(crate) fn parse_share(text: &str) -> anyhow::Result<f64> {
    let (number, unit) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let value = number.trim().parse::<f64>().ok().map(|value| value / unit);
    value
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .with_context(|| format!("`{text}`, expected up to 100% or up to 1"))
}
