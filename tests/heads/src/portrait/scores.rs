//! Means over many portraits, and how sure they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::judge::{Measure, Measured};
use super::pair::Pair;
use crate::Random;

/// Gaps between the yaws of profile and reference, in degrees.
const GAPS: [[f32; 2]; 3] = [[0.0, 15.0], [15.0, 30.0], [30.0, 60.0]];
/// What is told of each gap.
const OF_A_GAP: [Measure; 2] = [Measure::SimA, Measure::Luminance];

/// A mean over pictures, with its 95 % bootstrap interval over people.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Over all pictures.
    pub mean: f64,
    /// Below this are 2.5 % of the means over people who are drawn again.
    pub low: f64,
    /// Above this are as many.
    pub high: f64,
}

/// Means over some pictures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group<M = Measure> {
    /// How many pictures they are.
    pub pictures: usize,
    /// Of what was measured in any of them.
    #[serde(flatten)]
    pub means: BTreeMap<M, Interval>,
}

/// Means over pictures with some gap between the yaws of profile and reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gap<G = Group> {
    /// From this, in degrees, to less than `to`.
    pub from: f32,
    /// In degrees.
    pub to: f32,
    /// Of these pictures; where they are portraits, [`Measure::SimA`] and [`Measure::Luminance`].
    #[serde(flatten)]
    pub group: G,
}

/// What came of portraits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// How many people they show.
    pub people: usize,
    /// All portraits.
    #[serde(flatten)]
    pub all: Group,
    /// By the gap between the yaws of profile and reference.
    pub by_yaw_gap: Vec<Gap>,
    /// How much more these portraits have than the others of the same pairs, where both are there.
    pub against: Option<Group>,
}

/// What is counted of a picture, and whose it is.
pub(super) type Counted<M = Measure> = ((u64, u64), BTreeMap<M, f64>);

impl Scores {
    /// Sums up what was measured for each pair, or none where there is no portrait; `against` is the same for other portraits. People are drawn
    /// again `resamples` times, at least once.
    ///
    /// # Panics
    /// If there are no resamples.
    pub fn new(
        pairs: &[Pair],
        measured: &[Option<Measured>],
        against: Option<&[Option<Measured>]>,
        resamples: usize,
    ) -> Self {
        let made: Vec<(&Pair, &Measured)> = pairs
            .iter()
            .zip(measured)
            .filter_map(|(pair, measured)| Some((pair, measured.as_ref()?)))
            .collect();
        let all: Vec<Counted> =
            made.iter().map(|(pair, measured)| (person(pair), (*measured).clone())).collect();
        let people: BTreeSet<_> = all.iter().map(|(person, _)| person).collect();
        let gap = |own: &[(&Pair, &Measured)]| {
            let told = |measured: &Measured| -> Measured {
                let told = measured.iter().filter(|(measure, _)| OF_A_GAP.contains(measure));
                told.map(|(measure, value)| (*measure, *value)).collect()
            };
            let own: Vec<Counted> =
                own.iter().map(|(pair, measured)| (person(pair), told(measured))).collect();
            Group::of(&own, resamples)
        };
        let against = against.map(|others| {
            let both = pairs.iter().zip(measured.iter().zip(others));
            let more = both.filter_map(|(pair, (made, other))| {
                Some((person(pair), difference(made.as_ref()?, other.as_ref()?)))
            });
            Group::of(&more.collect::<Vec<_>>(), resamples)
        });
        Self {
            people: people.len(),
            all: Group::of(&all, resamples),
            by_yaw_gap: by_yaw_gap(&made, gap),
            against,
        }
    }
}

/// Of what belongs to the pairs of each gap.
pub(super) fn by_yaw_gap<'p, T: Copy, G>(
    made: &[(&'p Pair, T)],
    group: impl Fn(&[(&'p Pair, T)]) -> G,
) -> Vec<Gap<G>> {
    let gap = |[from, to]: [f32; 2]| {
        let own = made.iter().filter(|(pair, _)| (from..to).contains(&pair.yaw_gap()));
        Gap { from, to, group: group(&own.copied().collect::<Vec<_>>()) }
    };
    GAPS.into_iter().map(gap).collect()
}

pub(super) fn person(pair: &Pair) -> (u64, u64) {
    (pair.seed, pair.identity)
}

/// Of what was measured of both.
fn difference(made: &Measured, other: &Measured) -> Measured {
    made.iter().filter_map(|(measure, own)| Some((*measure, own - other.get(measure)?))).collect()
}

impl<M: Ord + Copy> Group<M> {
    pub(super) fn of(counted: &[Counted<M>], resamples: usize) -> Self {
        let mut values = BTreeMap::<M, BTreeMap<(u64, u64), (f64, f64)>>::new();
        for (person, measured) in counted {
            for (measure, value) in measured {
                let (count, sum) = values.entry(*measure).or_default().entry(*person).or_default();
                *count += 1.0;
                *sum += value;
            }
        }
        let interval = |(measure, people): (M, BTreeMap<_, _>)| {
            (measure, interval(&people.into_values().collect::<Vec<_>>(), resamples))
        };
        Self { pictures: counted.len(), means: values.into_iter().map(interval).collect() }
    }
}

/// Of the pictures of at least one person, each given by how many pictures there are and the sum of their values.
fn interval(people: &[(f64, f64)], resamples: usize) -> Interval {
    let mean = |(count, sum): (f64, f64)| sum / count;
    let total = |chosen: &mut dyn Iterator<Item = &(f64, f64)>| {
        chosen.fold((0.0, 0.0), |(count, sum), own| (count + own.0, sum + own.1))
    };
    // The same people for all measures that all of them have.
    let mut random = Random::new(&[resamples as u64]);
    let mut again = || mean(total(&mut (0..people.len()).map(|_| random.pick(people))));
    let mut means: Vec<f64> = (0..resamples).map(|_| again()).collect();
    means.sort_by(f64::total_cmp);
    let at = |part: f64| means[((resamples - 1) as f64 * part).round() as usize];
    Interval { mean: mean(total(&mut people.iter())), low: at(0.025), high: at(0.975) }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SimA => "simA",
            Self::SimB => "simB",
            Self::Rank1 => "rank-1",
            Self::Luminance => "luminance error",
            Self::LitSide => "same side is lit",
            Self::LightDirection => "light direction error, degrees",
            Self::Chroma => "chroma error",
            Self::Seam => "seam",
            Self::Background => "background error, of 255",
        })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mean, low, high } = self;
        write!(f, "{mean:8.3}  {low:.3} to {high:.3}")
    }
}

impl<M: fmt::Display> fmt::Display for Group<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (measure, interval) in &self.means {
            writeln!(f, "{measure:>32} {interval}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { people, all, by_yaw_gap, against } = self;
        write!(f, "{} pictures of {people} people: mean, 95 % interval\n{all}", all.pictures)?;
        for Gap { from, to, group } in by_yaw_gap {
            write!(f, "yaw gap {from} to {to} degrees, {} pictures\n{group}", group.pictures)?;
        }
        against.as_ref().map_or(Ok(()), |group| {
            write!(f, "more than the others, {} pictures\n{group}", group.pictures)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_people_differ() {
        let alike = [(4.0, 2.0); 9];
        assert_eq!(interval(&alike, 200), Interval { mean: 0.5, low: 0.5, high: 0.5 });
        // Of a normal distribution, 95 % are within 1.96 deviations.
        let mut random = Random::new(&[3]);
        let people: Vec<_> = (0..100).map(|_| (1.0, f64::from(random.normal(5.0, 1.0)))).collect();
        let found = interval(&people, 2000);
        assert!(found.low < found.mean && found.mean < found.high);
        assert!((found.high - found.low - 2.0 * 0.196).abs() < 0.06, "{found:?}");
    }

    /// Many pictures of a person are one person.
    #[test]
    fn more_pictures_of_the_same_people_are_not_surer() {
        let of = |pictures: f64| {
            let people: Vec<_> =
                (0..20).map(|at| (pictures, pictures * f64::from(at % 2))).collect();
            interval(&people, 500)
        };
        assert_eq!(of(1.0), of(8.0));
    }
}
