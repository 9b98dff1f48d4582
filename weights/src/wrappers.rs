//! Names that trainers put around those of a network.

use std::collections::BTreeMap;

use crate::recognise::{SIGNATURES, kind};
use crate::tensor::TensorInfo;

/// What may stand before the names of a network, averaged weights before the others.
const PREFIXES: [&str; 13] = [
    "ema",
    "ema_model",
    "model_ema",
    "ema_state_dict",
    "module",
    "_orig_mod",
    "_forward_module",
    "model",
    "net",
    "state_dict",
    "model_state_dict",
    "diffusion_model",
    "transformer",
];
/// Parts that stand anywhere, around what is compiled, distributed or computed again.
const WITHIN: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Most prefixes of a name.
const DEPTH: usize = 8;

/// Tensors under the names that the network itself gives.
pub(crate) fn unwrap(tensors: BTreeMap<String, TensorInfo>) -> BTreeMap<String, TensorInfo> {
    // What stands beside a network is told by its prefix, as long as it has one.
    stripped(without_parts(stripped(tensors)))
}

/// The tensors under the prefix of the network, without it.
fn stripped(tensors: BTreeMap<String, TensorInfo>) -> BTreeMap<String, TensorInfo> {
    match known(&tensors).or_else(|| shared(&tensors)) {
        Some(prefix) if !prefix.is_empty() => tensors
            .into_iter()
            .filter_map(|(name, info)| Some((name.strip_prefix(&prefix)?.to_owned(), info)))
            .collect(),
        _ => tensors,
    }
}

/// The prefix, with its dots, under which a network of a known kind stands: beside it may be others, such as that of a
/// loss.
fn known(tensors: &BTreeMap<String, TensorInfo>) -> Option<String> {
    let rank = |prefix: &str| -> Option<Vec<usize>> {
        let parts = prefix.split_terminator('.');
        parts.map(|part| PREFIXES.iter().position(|known| *known == part)).collect()
    };
    let prefixes = tensors.keys().filter_map(|name| {
        let first = SIGNATURES.iter().find_map(|(_, [first, _])| name.strip_suffix(first))?;
        Some((rank(first)?, first)).filter(|(rank, _)| rank.len() <= DEPTH)
    });
    let of_known = |(_, prefix): &(Vec<usize>, &str)| {
        kind(|name| tensors.contains_key(&format!("{prefix}{name}"))).is_some()
    };
    prefixes.filter(of_known).min().map(|(_, prefix)| prefix.to_owned())
}

/// The prefixes, with their dots, that all names have.
fn shared(tensors: &BTreeMap<String, TensorInfo>) -> Option<String> {
    let mut prefix = String::new();
    for _ in 0..DEPTH {
        let first = tensors.keys().next()?.strip_prefix(&prefix)?.split('.').next()?;
        let longer = format!("{prefix}{first}.");
        let is_prefix = first != "transformer" && PREFIXES.contains(&first);
        if !is_prefix || !tensors.keys().all(|name| name.starts_with(&longer)) {
            break;
        }
        prefix = longer;
    }
    Some(prefix)
}

/// Without the parts that stand anywhere, unless two names would be one.
fn without_parts(tensors: BTreeMap<String, TensorInfo>) -> BTreeMap<String, TensorInfo> {
    let plain = |name: &str| {
        let parts = name.split('.').filter(|part| !WITHIN.contains(part));
        parts.collect::<Vec<_>>().join(".")
    };
    if !tensors.keys().any(|name| name.split('.').any(|part| WITHIN.contains(&part))) {
        return tensors;
    }
    let renamed: BTreeMap<_, _> =
        tensors.iter().map(|(name, info)| (plain(name), info.clone())).collect();
    match renamed.len() == tensors.len() {
        true => renamed,
        false => tensors,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dtype::Dtype;
    use crate::tensor::Values;

    fn tensors(names: &[String]) -> BTreeMap<String, TensorInfo> {
        let info = |shape: usize| TensorInfo::new(Dtype::F32, vec![shape], Values::none());
        names.iter().enumerate().map(|(i, name)| (name.clone(), info(i))).collect()
    }

    fn names(tensors: &BTreeMap<String, TensorInfo>) -> Vec<&str> {
        tensors.keys().map(String::as_str).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever stands before the names of a network, and whatever else is in the file.
        #[test]
        fn a_known_network_is_found_under_any_prefixes(
            prefixes in prop::collection::vec(prop::sample::select(PREFIXES.to_vec()), 0..5),
            which in 0..SIGNATURES.len(),
            beside in prop::collection::vec("(loss|teacher|decay)\\.[a-z]{1,5}", 0..3),
        ) {
            let prefix: String = prefixes.iter().map(|part| format!("{part}.")).collect();
            let (kind, signature) = SIGNATURES[which];
            let mut all: Vec<String> =
                signature.iter().map(|name| format!("{prefix}{name}")).collect();
            all.push(format!("{prefix}blocks.0._orig_mod.weight"));
            let beside = if prefix.is_empty() { Vec::new() } else { beside };
            all.extend(beside);
            let found = unwrap(tensors(&all));
            prop_assert_eq!(super::kind(|name| found.contains_key(name)), Some(kind));
            prop_assert!(found.contains_key("blocks.0.weight") && found.len() == 3);
        }

        #[test]
        fn a_network_of_no_known_kind_keeps_its_names_but_for_what_all_share(
            prefixes in prop::collection::vec("module|model|_orig_mod|net", 0..4),
        ) {
            let prefix: String = prefixes.iter().map(|part| format!("{part}.")).collect();
            let all = ["head.weight", "model.weight"].map(|name| format!("{prefix}{name}"));
            let found = unwrap(tensors(&all));
            prop_assert_eq!(names(&found), ["head.weight", "model.weight"]);
        }
    }

    #[test]
    fn averaged_weights_come_first() {
        let [first, second] = SIGNATURES[0].1;
        let all: Vec<String> = ["model.", "ema_model.", "net."]
            .iter()
            .flat_map(|prefix| [format!("{prefix}{first}"), format!("{prefix}{second}")])
            .collect();
        let found = unwrap(tensors(&all));
        assert_eq!((found.len(), found[first].shape[0]), (2, 2));
    }

    #[test]
    fn no_two_tensors_become_one() {
        let all = ["a._orig_mod.b", "a.b"].map(String::from);
        assert_eq!(names(&unwrap(tensors(&all))), ["a._orig_mod.b", "a.b"]);
    }
}
