//! How often cells are found, over many pairs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::cells::{Found, Matched, Matcher};
use super::pair::Pair;
use super::scores::{Counted, Gap, Group, Interval, by_yaw_gap, person};

/// How much more often the best level is right than a matcher that needs no network, in the same pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lead {
    /// The level that is right most often over all pairs.
    pub level: Matcher,
    /// The better one of [`Matcher::SamePlace`] and [`Matcher::Patches`] in these pairs.
    pub over: Matcher,
    /// The difference.
    #[serde(flatten)]
    pub more: Interval,
}

/// What came of some pairs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The share of cells for which each matcher is right.
    #[serde(flatten)]
    pub right: Group<Matcher>,
    /// None without levels.
    pub lead: Option<Lead>,
}

/// What came of matches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Matching {
    /// How many people they show.
    pub people: usize,
    /// All pairs.
    #[serde(flatten)]
    pub all: Compared,
    /// By the gap between the yaws of the pictures.
    pub by_yaw_gap: Vec<Gap<Compared>>,
    /// The share of the largest group of cells for which a matcher found the same one, over all pairs.
    pub collapse: Group<Matcher>,
}

/// Some pairs, and what came of each.
type Own<'a> = [(&'a Pair, &'a Matched)];

impl Matching {
    /// Sums up what was found in each pair, or none where there are no matches; pairs of which no cell counts are not in it, either. People are
    /// drawn again `resamples` times, at least once.
    ///
    /// # Panics
    /// If there are no resamples.
    pub fn new(pairs: &[Pair], found: &[Option<Matched>], resamples: usize) -> Self {
        let own: Vec<(&Pair, &Matched)> = pairs
            .iter()
            .zip(found)
            .filter_map(|(pair, found)| Some((pair, found.as_ref()?)))
            .filter(|(_, found)| !found.is_empty())
            .collect();
        let people: BTreeSet<_> = own.iter().map(|(pair, _)| person(pair)).collect();
        let right = means(&own, |found| found.right, resamples);
        let levels = right.means.iter().filter(|(own, _)| matches!(own, Matcher::Level(_)));
        // The first of equals.
        let best = levels.min_by(|a, b| b.1.mean.total_cmp(&a.1.mean)).map(|(level, _)| *level);
        let compared = |own: &Own<'_>| Compared::new(own, best, resamples);
        Self {
            people: people.len(),
            all: compared(&own),
            by_yaw_gap: by_yaw_gap(&own, compared),
            collapse: means(&own, |found| found.largest, resamples),
        }
    }
}

impl Compared {
    fn new(own: &Own<'_>, best: Option<Matcher>, resamples: usize) -> Self {
        let right = means(own, |found| found.right, resamples);
        let lead = best.and_then(|level| Lead::new(own, level, &right, resamples));
        Self { right, lead }
    }
}

impl Lead {
    /// None of no pairs.
    fn new(
        own: &Own<'_>,
        level: Matcher,
        right: &Group<Matcher>,
        resamples: usize,
    ) -> Option<Self> {
        let [same, patches] = [Matcher::SamePlace, Matcher::Patches]
            .map(|rival| right.means.get(&rival).map(|interval| interval.mean));
        let over = if same? >= patches? { Matcher::SamePlace } else { Matcher::Patches };
        let more = |(pair, found): &(&Pair, &Matched)| {
            let more = found.get(&level)?.right - found.get(&over)?.right;
            Some((person(pair), BTreeMap::from([(level, more)])))
        };
        let more: Vec<Counted<Matcher>> = own.iter().filter_map(more).collect();
        let more = Group::of(&more, resamples).means.remove(&level)?;
        Some(Self { level, over, more })
    }
}

fn means(own: &Own<'_>, value: impl Fn(&Found) -> f64, resamples: usize) -> Group<Matcher> {
    let one = |(pair, found): &(&Pair, &Matched)| {
        (person(pair), found.iter().map(|(matcher, found)| (*matcher, value(found))).collect())
    };
    let counted: Vec<Counted<Matcher>> = own.iter().map(one).collect();
    Group::of(&counted, resamples)
}

impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.right)?;
        let Some(Lead { level, over, more }) = &self.lead else { return Ok(()) };
        writeln!(f, "{:>32} {more}", format!("{level} minus {over}"))
    }
}

impl fmt::Display for Matching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { people, all, by_yaw_gap, collapse } = self;
        let pairs = all.right.pictures;
        writeln!(f, "{pairs} pairs of {people} people: cells found within one, 95 % interval")?;
        write!(f, "{all}")?;
        for Gap { from, to, group } in by_yaw_gap {
            let pairs = group.right.pictures;
            write!(f, "yaw gap {from} to {to} degrees, {pairs} pairs\n{group}")?;
        }
        write!(f, "largest group of cells for which the same one was found\n{collapse}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Pairing;

    fn pairs() -> Vec<Pair> {
        let asked = Pairing { people: 12, seed: 2, ..Pairing::default() };
        asked.pairs()
    }

    /// The second level is better by 0.1 than the same place at small gaps, and by 0.4 than patches at others.
    fn found(pair: &Pair) -> Matched {
        let easy = (pair.identity % 5) as f64 / 50.0;
        let same = if pair.yaw_gap() < 15.0 { 0.6 } else { 0.1 };
        let rights = [
            (Matcher::Level(0), 0.5),
            (Matcher::Level(1), 0.7),
            (Matcher::SamePlace, same),
            (Matcher::Patches, 0.3),
        ];
        let own = |right: f64| Found { right: right + easy, largest: 0.25 };
        rights.into_iter().map(|(matcher, right)| (matcher, own(right))).collect()
    }

    #[test]
    fn the_best_level_is_compared_with_the_better_rival_pair_by_pair() {
        let pairs = pairs();
        let found: Vec<_> = pairs.iter().map(|pair| Some(found(pair))).collect();
        let matching = Matching::new(&pairs, &found, 200);
        assert!(matching.people == 12 && matching.all.right.pictures == 48);
        let leads = matching.by_yaw_gap.iter().map(|gap| gap.group.lead.as_ref().unwrap());
        let rivals = [(Matcher::SamePlace, 0.1), (Matcher::Patches, 0.4), (Matcher::Patches, 0.4)];
        for (lead, (over, more)) in leads.zip(rivals) {
            assert!(lead.level == Matcher::Level(1) && lead.over == over, "{lead:?}");
            assert!((lead.more.mean - more).abs() < 1e-9);
            // Some people are easier than others, but for all matchers.
            assert!(lead.more.high - lead.more.low < 1e-9, "{lead:?}");
        }
        let level = matching.all.right.means[&Matcher::Level(1)];
        assert!(level.high - level.low > 0.01, "{level:?}");
        assert_eq!(matching.collapse.means[&Matcher::Level(0)].mean, 0.25);
    }

    #[test]
    fn pairs_without_matches_or_cells_that_count_are_not_in_it() {
        let pairs = pairs();
        let mut own: Vec<_> = pairs.iter().map(|pair| Some(found(pair))).collect();
        own[0] = None;
        own[7] = Some(Matched::new());
        assert_eq!(Matching::new(&pairs, &own, 10).all.right.pictures, 46);
        let none = Matching::new(&pairs, &vec![None; 48], 10);
        assert!(none.people == 0 && none.all.lead.is_none() && none.all.right.means.is_empty());
    }
}
