//! Patch sizes over the steps of a generation (FlexiDiT sections 7, 8 and 10 of the paper).

use pyrograph_engine::nets::DitConfig;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A guidance scale `s` for the null class is one of `1 + (s − 1) / 2.5` for a weaker conditional call.
const WEAK_GUIDANCE: f64 = 2.5;

/// Patch sizes of the conditional call and of the guiding one.
///
/// Where both are the same, guidance is that of the null class; where the guiding call has larger patches,
/// it is conditional too, and the scale is adapted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchPlan {
    /// Patch size and number of steps, from noise to data.
    pub main: Vec<(usize, usize)>,
    /// The same of the guiding call.
    pub guide: Vec<(usize, usize)>,
}

/// Steps in a row with the same patch sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phase {
    /// Of the conditional call.
    pub main: usize,
    /// Of the guiding call.
    pub guide: usize,
    /// First step after it.
    pub end: usize,
}

impl Phase {
    /// The guidance scale that has the effect of `scale` for the null class.
    pub fn scale(&self, scale: f64) -> f64 {
        match self.main == self.guide {
            true => scale,
            false => 1.0 + (scale - 1.0) / WEAK_GUIDANCE,
        }
    }
}

impl PatchPlan {
    /// The same sizes for both calls.
    pub fn both(sizes: Vec<(usize, usize)>) -> Self {
        Self { guide: sizes.clone(), main: sizes }
    }

    /// One size for all steps.
    pub fn constant(patch: usize, steps: usize) -> Self {
        Self::both(vec![(patch, steps)])
    }

    /// The first `main` steps of the conditional call, and `guide` of the guiding one, with larger patches.
    pub fn weak_first([native, weak]: [usize; 2], main: usize, guide: usize, steps: usize) -> Self {
        let sizes =
            |count: usize| vec![(weak, count.min(steps)), (native, steps.saturating_sub(count))];
        Self { main: sizes(main), guide: sizes(guide) }
    }

    /// Reads `PATCH:STEPS,..` from noise to data, such as `8:12,4:8`; the last number of steps can be left
    /// out. The sizes of the guiding call follow after a `/` where they are others: `8:12,4:8/8`.
    ///
    /// # Errors
    /// Anything else, and steps that do not add up.
    pub fn parse(text: &str, steps: usize) -> Result<Self> {
        match text.split_once('/') {
            None => Ok(Self::both(parse_sizes(text, steps)?)),
            Some((main, guide)) => {
                Ok(Self { main: parse_sizes(main, steps)?, guide: parse_sizes(guide, steps)? })
            }
        }
    }

    /// The plan that uses larger patches for as few first steps as bring the compute down to `share` of
    /// that at the native size.
    ///
    /// # Errors
    /// A share that even the largest patches exceed, or outside (0, 1].
    pub fn for_compute(
        net: &DitConfig,
        size: [usize; 2],
        share: f64,
        steps: usize,
    ) -> Result<Self> {
        if steps == 0 {
            return Err(Error::Patches { reason: "0 steps".into() });
        }
        let larger: Vec<usize> = net.patches().into_iter().filter(|&p| p > net.patch).collect();
        let fits = |plan: &Self| plan.share(net, size, steps) <= share;
        let all = Self::constant(net.patch, steps);
        if fits(&all) && (share <= 1.0 || !larger.is_empty()) {
            return Ok(all);
        }
        let (mut previous, mut lowest) = (net.patch, 1.0);
        for patch in larger {
            let with = |count| Self::both(vec![(patch, count), (previous, steps - count)]);
            if fits(&with(steps)) {
                // The share falls with every step: the fewest are found by halving.
                let (mut few, mut enough) = (0, steps);
                while few + 1 < enough {
                    let middle = few + (enough - few) / 2;
                    match fits(&with(middle)) {
                        true => enough = middle,
                        false => few = middle,
                    }
                }
                return Ok(with(enough));
            }
            lowest = with(steps).share(net, size, steps);
            previous = patch;
        }
        if net.patches().len() == 1 {
            return Err(Error::OnePatchSize { patch: net.patch });
        }
        let (share, lowest) = (100.0 * share, 100.0 * lowest);
        let reason =
            format!("compute of {share:.1} %, expected {lowest:.1} to 100 with this model");
        Err(Error::Patches { reason })
    }

    /// Runs of equal sizes over `steps` steps.
    ///
    /// # Errors
    /// Steps that do not add up, sizes that the network does not have or that do not divide `size`, and a
    /// guiding call of smaller patches than the conditional one.
    pub fn phases(&self, net: &DitConfig, size: [usize; 2], steps: usize) -> Result<Vec<Phase>> {
        let known = net.patches();
        let fault = |reason: String| Err(Error::Patches { reason });
        for sizes in [&self.main, &self.guide] {
            let counts = sizes.iter().map(|(_, count)| *count);
            let total = counts.fold(0, usize::saturating_add);
            if total != steps {
                return fault(format!("patch sizes for {total} steps, the run has {steps}"));
            }
            for (patch, _) in sizes {
                if !known.contains(patch) {
                    return fault(format!("patch size {patch}, the model has {known:?}"));
                }
                if size.iter().any(|side| side % patch != 0) {
                    return fault(format!(
                        "patch size {patch} does not divide {}x{}",
                        size[0], size[1]
                    ));
                }
            }
        }
        let at = |sizes: &[(usize, usize)], step: usize| {
            let mut end = 0;
            let found = sizes.iter().find(|(_, count)| {
                end += count;
                step < end
            });
            found.expect("every step has a size").0
        };
        let mut phases: Vec<Phase> = Vec::new();
        for step in 0..steps {
            let (main, guide) = (at(&self.main, step), at(&self.guide, step));
            if guide < main {
                return fault(format!(
                    "step {step} is guided with patches of {guide}, its own are of {main}"
                ));
            }
            match phases.last_mut() {
                Some(last) if (last.main, last.guide) == (main, guide) => last.end = step + 1,
                _ => phases.push(Phase { main, guide, end: step + 1 }),
            }
        }
        Ok(phases)
    }

    /// Compute of all steps as a share of that at the native size, as FlexiDiT counts it: token-wise layers
    /// and attention of both calls; that to a text changes it by little.
    pub fn share(&self, net: &DitConfig, size: [usize; 2], steps: usize) -> f64 {
        let used = |sizes: &[(usize, usize)]| -> f64 {
            sizes.iter().map(|&(patch, count)| net.trunk_flops(size, patch, 0) * count as f64).sum()
        };
        let native = 2.0 * steps as f64 * net.trunk_flops(size, net.patch, 0);
        (used(&self.main) + used(&self.guide)) / native
    }
}

/// The patch sizes of one call, and their steps.
fn parse_sizes(text: &str, steps: usize) -> Result<Vec<(usize, usize)>> {
    let fault = |reason: &str| Error::Patches { reason: format!("`{text}`: {reason}") };
    let number = |text: &str| text.trim().parse().map_err(|_| fault("expected PATCH:STEPS,.."));
    let mut sizes: Vec<(usize, usize)> = Vec::new();
    let mut left = steps;
    for item in text.split(',') {
        let (patch, count) = match item.split_once(':') {
            Some((patch, count)) => (number(patch)?, number(count)?),
            None => (number(item)?, left),
        };
        left = left
            .checked_sub(count)
            .ok_or_else(|| fault(&format!("more than the {steps} steps of the run")))?;
        sizes.push((patch, count));
    }
    match left {
        0 => Ok(sizes),
        _ => Err(fault(&format!("{left} of {steps} steps are left over"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use pyrograph_engine::nets::{Flexible, Sharing};

    fn xl() -> DitConfig {
        let sharing = Sharing::Kernels { underlying: 4 };
        let flexible = Some(Flexible { patches: vec![4], sharing, corners: false });
        let (hidden, depth, heads) = DitConfig::preset("XL").expect("a published size");
        DitConfig { flexible, ..DitConfig::dit(hidden, depth, heads) }
    }

    #[test]
    fn shares_of_compute_are_the_published_ones() {
        let published = [
            (250, 250, 100.0),
            (200, 200, 84.87),
            (150, 150, 69.73),
            (130, 130, 63.68),
            (100, 100, 54.60),
            (90, 50, 45.52),
            (70, 70, 45.52),
            (50, 50, 39.46),
            (30, 0, 28.87),
            (0, 0, 24.33),
        ];
        for (main, guide, expected) in published {
            let plan = PatchPlan::weak_first([2, 4], 250 - main, 250 - guide, 250);
            let found = 100.0 * plan.share(&xl(), [32, 32], 250);
            assert!((found - expected).abs() < 0.0051, "{main}/{guide}: {found}");
        }
    }

    #[test]
    fn thirty_powerful_steps_guided_by_weak_ones() {
        let plan = PatchPlan::weak_first([2, 4], 220, 250, 250);
        let phases = plan.phases(&xl(), [32, 32], 250).expect("a plan");
        let expected =
            [Phase { main: 4, guide: 4, end: 220 }, Phase { main: 2, guide: 4, end: 250 }];
        assert_eq!(phases, expected);
        assert_eq!((phases[0].scale(4.0), phases[1].scale(4.0)), (4.0, 2.2));
    }

    #[test]
    fn a_target_is_met_with_as_few_weak_steps_as_possible() {
        let plan = PatchPlan::for_compute(&xl(), [32, 32], 0.6, 20).expect("within reach");
        assert_eq!(plan.main, [(4, 11), (2, 9)]);
        assert!(plan.share(&xl(), [32, 32], 20) <= 0.6);
        let all = PatchPlan::for_compute(&xl(), [32, 32], 1.0, 20).expect("everything");
        assert_eq!(all, PatchPlan::constant(2, 20));
        // However many steps there are.
        let many = PatchPlan::for_compute(&xl(), [32, 32], 0.6, 2_000_000_000).expect("quick");
        assert_eq!(many.main.len(), 2);
        let error = PatchPlan::for_compute(&xl(), [32, 32], 0.2, 20).expect_err("too little");
        assert!(error.to_string().contains("24.3 to 100"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(PatchPlan::parse("4:12,2", 20).expect("a plan").main, [(4, 12), (2, 8)]);
        let guided = PatchPlan::parse("4:12,2/4", 20).expect("a plan");
        assert_eq!((guided.main, guided.guide), (vec![(4, 12), (2, 8)], vec![(4, 20)]));
        let mistakes = [
            ("4:12,2:9", "more than"),
            ("4:3", "left over"),
            ("4/4:3", "left over"),
            ("a", "expected"),
        ];
        for (text, part) in mistakes {
            let error = PatchPlan::parse(text, 20).expect_err(text);
            assert!(error.to_string().contains(part), "{error}");
        }
        let plan = PatchPlan::parse("8", 20).expect("a plan");
        assert!(plan.phases(&xl(), [32, 32], 20).is_err());
        let backwards = PatchPlan { main: vec![(4, 20)], guide: vec![(2, 20)] };
        assert!(backwards.phases(&xl(), [32, 32], 20).is_err());
    }
    /// Patch sizes step by step as runs.
    fn runs(sizes: &[usize]) -> Vec<(usize, usize)> {
        sizes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
    }

    /// Runs in the form that is read; the last number of steps can be left out.
    fn written(runs: &[(usize, usize)], short: bool) -> String {
        let items = runs.iter().map(|(patch, count)| format!("{patch}:{count}"));
        let text = items.collect::<Vec<_>>().join(",");
        match text.rsplit_once(':') {
            Some((start, _)) if short => start.to_owned(),
            _ => text,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_plan_is_read_back_and_has_every_step_once(
            sizes in prop::collection::vec(prop::sample::select(vec![(2, 2), (2, 4), (4, 4)]), 1..20),
            short in any::<[bool; 2]>(),
        ) {
            let steps = sizes.len();
            let (main, guide): (Vec<_>, Vec<_>) = sizes.iter().copied().unzip();
            let plan = PatchPlan { main: runs(&main), guide: runs(&guide) };
            let text = [written(&plan.main, short[0]), written(&plan.guide, short[1])].join("/");
            prop_assert_eq!(&PatchPlan::parse(&text, steps).expect("adds up"), &plan);
            let phases = plan.phases(&xl(), [32, 32], steps).expect("a plan");
            let mut start = 0;
            for phase in &phases {
                prop_assert!(phase.end > start);
                let same = |size: &(usize, usize)| *size == (phase.main, phase.guide);
                prop_assert!(sizes[start..phase.end].iter().all(same));
                start = phase.end;
            }
            prop_assert_eq!((start, phases.len()), (steps, sizes.chunk_by(|a, b| a == b).count()));
            let share = plan.share(&xl(), [32, 32], steps);
            prop_assert!(share > 0.0 && share <= 1.0, "{share}");
            let backwards = PatchPlan { main: plan.guide, guide: plan.main };
            let same = main == guide;
            prop_assert_eq!(backwards.phases(&xl(), [32, 32], steps).is_ok(), same);
        }

        #[test]
        fn a_target_needs_every_weak_step_of_its_plan(share in 0.01..1.2f64, steps in 1..60usize) {
            let cost = |weak: usize| {
                PatchPlan::weak_first([2, 4], weak, weak, steps).share(&xl(), [32, 32], steps)
            };
            let fewest = (0..=steps).find(|weak| cost(*weak) <= share);
            let Ok(plan) = PatchPlan::for_compute(&xl(), [32, 32], share, steps) else {
                prop_assert!(fewest.is_none() || share > 1.0);
                return Ok(());
            };
            let weak = plan.main.iter().filter(|(patch, _)| *patch == 4);
            let weak: usize = weak.map(|(_, n)| n).sum();
            prop_assert_eq!(Some(weak), fewest);
            prop_assert_eq!(&plan.main, &plan.guide);
            prop_assert_eq!(plan.main.iter().map(|(_, n)| n).sum::<usize>(), steps);
            prop_assert!(plan.main.windows(2).all(|pair| pair[0].0 > pair[1].0));
        }

        #[test]
        fn any_plan_is_read_or_refused(text in "[0-9:,/ a]{0,16}", steps in 0..100usize) {
            if let Ok(plan) = PatchPlan::parse(&text, steps) {
                prop_assert_eq!(plan.main.iter().map(|(_, n)| n).sum::<usize>(), steps);
                let _ = plan.phases(&xl(), [32, 32], steps);
            }
        }
    }
}
