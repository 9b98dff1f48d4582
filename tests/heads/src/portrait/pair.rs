//! Pairs of pictures of two people, of which a portrait is asked.

use serde::{Deserialize, Serialize};

use crate::shape::{V3, unit};
use crate::{Head, Identity, Light, Picture, Protocol, Random, View, render};

/// Most people in a folder of captions or views: their numbers are below this. The people of pairs are numbered from here, those from whom a
/// [`Judge`](crate::Judge) learns from twice this.
pub const MOST_PEOPLE: u64 = 1_000_000;
/// The folder of the photos of all people of pairs, in the folder of the pairs.
pub const PHOTOS: &str = "photos";
/// Largest yaw of a photo to both sides, in degrees, and of a reference where no other is asked.
pub const YAW: f32 = 35.0;
const NEAR_FRONTAL: f32 = 10.0;
/// How often a reference has strong light from one side.
const ONE_SIDED: f32 = 0.5;

/// Which pairs there are.
#[derive(Debug, Clone, Copy)]
pub struct Pairing {
    /// People of whom portraits are asked, from 2 to [`MOST_PEOPLE`].
    pub people: u64,
    /// References of each, which show others of these people.
    pub references: u64,
    /// Photos of each.
    pub photos: u64,
    /// Width and height of the pictures, from 1 to [`MOST_PIXELS`](crate::MOST_PIXELS).
    pub size: u32,
    /// Largest yaw of references to both sides, in degrees.
    pub yaw: f32,
    /// Whether heads in references are also tilted: pitch to 15 degrees, roll to 8.
    pub tilted: bool,
    /// Whether faces in references have expressions.
    pub expressions: bool,
    /// The same seed makes the same pairs.
    pub seed: u64,
}

impl Default for Pairing {
    fn default() -> Self {
        Self {
            people: 32,
            references: 4,
            photos: 0,
            size: 64,
            yaw: YAW,
            tilted: false,
            expressions: false,
            seed: 0,
        }
    }
}

/// A portrait that is asked: the person of the profile in the pose, light, expression and place of the reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The file that shows the person, near frontal and in even light. This and the other files are relative to the folder.
    pub profile: String,
    /// The file that shows the other person in the view that is asked.
    pub reference: String,
    /// The file that shows the person so.
    pub truth: String,
    /// The file of the mask of the reference's face ([`face_mask`](crate::face_mask)); empty in lists that were made without.
    #[serde(default)]
    pub face: String,
    /// Where the portrait belongs.
    pub output: String,
    /// The folder of photos of the person, `0.png` and so on, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub photos: Option<String>,
    /// Width and height of all of them.
    pub size: u32,
    /// The people are `Identity::numbered(head, seed, identity)`.
    pub seed: u64,
    /// Who is in the profile.
    pub identity: u64,
    /// Who is in the reference.
    pub reference_identity: u64,
    /// The view of the profile.
    pub profile_view: View,
    /// The view of the reference and of the truth.
    pub reference_view: View,
}

impl Pairing {
    /// The pairs, those of a person one after another and with the same profile.
    ///
    /// # Panics
    /// If there is one person only.
    pub fn pairs(&self) -> Vec<Pair> {
        (0..self.people * self.references).map(|number| self.pair(number)).collect()
    }

    fn pair(&self, number: u64) -> Pair {
        let (person, reference) = (number / self.references, number % self.references);
        let stream = |view: u64| Random::new(&[self.seed, MOST_PEOPLE + person, view]);
        let mut random = stream(reference + 1);
        let others: Vec<u64> = (0..self.people).filter(|other| *other != person).collect();
        let file = |name: &str| format!("{number:03}/{name}.png");
        Pair {
            profile: file("profile"),
            reference: file("reference"),
            truth: file("truth"),
            face: file("face"),
            output: file("portrait"),
            photos: (self.photos > 0).then(|| format!("{PHOTOS}/{person:03}")),
            size: self.size,
            seed: self.seed,
            identity: MOST_PEOPLE + person,
            reference_identity: MOST_PEOPLE + random.pick(&others),
            profile_view: profile(&mut stream(0)),
            reference_view: self.reference(&mut random),
        }
    }

    fn reference(&self, random: &mut Random) -> View {
        let &Self { yaw, tilted, expressions, .. } = self;
        let free = Protocol { yaw, tilted, expressions, ..Protocol::default() };
        let view = free.view(random);
        let light = if random.chance(ONE_SIDED) { one_sided(random) } else { view.light };
        View { light, ..view }
    }
}

fn profile(random: &mut Random) -> View {
    let upright = Protocol { yaw: NEAR_FRONTAL, ..Protocol::default() };
    View { light: even(random), ..upright.view(random) }
}

/// From near the camera, and much from all around.
fn even(random: &mut Random) -> Light {
    let power = random.uniform(0.9, 1.1);
    let direction = V3::new(random.uniform(-0.3, 0.3), random.uniform(-0.1, 0.3), 1.0);
    Light {
        direction: unit(direction).into(),
        strength: 0.55 * power,
        ambient: 0.48 * power,
        ..Light::random(random)
    }
}

/// Strong, from the left or the right.
fn one_sided(random: &mut Random) -> Light {
    let side = *random.pick(&[-1.0, 1.0]);
    let direction = V3::new(side, random.uniform(-0.2, 0.5), random.uniform(0.2, 0.6));
    Light {
        direction: unit(direction).into(),
        strength: random.uniform(0.9, 1.1),
        ambient: random.uniform(0.15, 0.25),
        ..Light::random(random)
    }
}

impl Pair {
    /// The person, and the other one.
    pub fn people(&self, head: &Head) -> [Identity; 2] {
        [self.identity, self.reference_identity]
            .map(|number| Identity::numbered(head, self.seed, number))
    }

    /// Draws profile, reference and truth.
    ///
    /// # Panics
    /// If the size is 0 or above [`MOST_PIXELS`](crate::MOST_PIXELS).
    pub fn pictures(&self, head: &Head) -> [Picture; 3] {
        let [person, other] = self.people(head);
        let Self { profile_view: front, reference_view: asked, .. } = self;
        [(&person, front), (&other, asked), (&person, asked)]
            .map(|(who, view)| render(head, who, view, self.size as usize))
    }

    /// The view of a photo of the person, given by its number: yaw to 35 degrees to both sides, and any light.
    pub fn photo_view(&self, number: u64) -> View {
        let upright = Protocol { yaw: YAW, ..Protocol::default() };
        // A stream of its own for each photo, whose key is longer than those of profiles and references.
        upright.view(&mut Random::new(&[self.seed, self.identity, 0, number]))
    }

    /// Between the yaws of profile and reference, in degrees.
    pub fn yaw_gap(&self) -> f32 {
        (self.profile_view.yaw - self.reference_view.yaw).abs()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SOME: Pairing = Pairing {
        people: 12,
        references: 4,
        photos: 0,
        size: 64,
        yaw: YAW,
        tilted: false,
        expressions: false,
        seed: 2,
    };

    #[test]
    fn references_show_others_and_profiles_are_even() {
        let pairs = SOME.pairs();
        let neutral = View::default().units;
        for pair in &pairs {
            let Pair { profile_view: front, reference_view: asked, .. } = pair;
            assert_ne!(pair.identity, pair.reference_identity);
            assert!(front.yaw.abs() <= NEAR_FRONTAL && asked.yaw.abs() <= YAW);
            assert!((front.pitch, front.roll, asked.pitch, asked.roll) == (0.0, 0.0, 0.0, 0.0));
            assert!(front.units == neutral && asked.units == neutral);
            assert!(front.light.direction[2] > 0.9 && front.light.ambient > 0.4);
            assert!(asked.light.direction[2] >= 0.0);
        }
        let aside = |pair: &&Pair| pair.reference_view.light.direction[0].abs() > 0.75;
        assert!((16..40).contains(&pairs.iter().filter(aside).count()));
        let people: BTreeSet<u64> = pairs.iter().map(|pair| pair.identity).collect();
        assert_eq!(people.len(), 12);
        let profiles = pairs
            .chunks(4)
            .map(|own| own.iter().all(|one| one.profile_view == own[0].profile_view));
        assert!(profiles.into_iter().all(|same| same));
    }

    /// All else stays as it is.
    #[test]
    fn references_turn_as_far_as_asked() {
        let (wide, none) =
            (Pairing { yaw: 60.0, ..SOME }.pairs(), Pairing { yaw: 0.0, ..SOME }.pairs());
        assert!(wide.iter().all(|pair| pair.reference_view.yaw.abs() <= 60.0));
        assert!(wide.iter().any(|pair| pair.reference_view.yaw > 45.0));
        assert!(wide.iter().any(|pair| pair.reference_view.yaw < -45.0));
        assert!(none.iter().all(|pair| pair.reference_view.yaw == 0.0));
        for (wide, usual) in wide.into_iter().zip(SOME.pairs()) {
            let yaw = usual.reference_view.yaw;
            let reference_view = View { yaw, ..wide.reference_view };
            assert_eq!(Pair { reference_view, ..wide }, usual);
        }
    }

    #[test]
    fn more_references_change_none() {
        let more = Pairing { references: 5, ..SOME }.pairs();
        for (at, pair) in SOME.pairs().iter().enumerate() {
            let same = &more[at / 4 * 5 + at % 4];
            assert_eq!(pair.reference_view, same.reference_view);
            assert_eq!(pair.reference_identity, same.reference_identity);
        }
    }

    #[test]
    fn photos_are_from_both_sides_and_in_any_light() {
        let more = Pairing { references: 1, photos: 3, tilted: true, ..SOME }.pairs();
        let views: Vec<View> =
            more.iter().flat_map(|pair| (0..3).map(|number| pair.photo_view(number))).collect();
        for view in &views {
            assert!(view.yaw.abs() <= YAW && (view.pitch, view.roll) == (0.0, 0.0));
            assert_eq!(view.units, View::default().units);
        }
        let often = |what: fn(&View) -> bool| views.iter().filter(|view| what(view)).count();
        assert!((9..28).contains(&often(|view| view.yaw > 0.0)));
        assert!((9..28).contains(&often(|view| view.light.direction[0] > 0.0)));
        let yaws: BTreeSet<u32> = views.iter().map(|view| view.yaw.to_bits()).collect();
        assert_eq!(yaws.len(), 36);
    }

    /// Nor where they are.
    #[test]
    fn photos_change_no_pair_and_references_no_photo() {
        let (with, without) = (Pairing { photos: 2, ..SOME }.pairs(), SOME.pairs());
        for (with, without) in with.iter().zip(&without) {
            assert_eq!(with.photos, Some(format!("photos/{:03}", with.identity - MOST_PEOPLE)));
            assert_eq!(&Pair { photos: None, ..with.clone() }, without);
            assert_eq!(with.photo_view(1), without.photo_view(1));
        }
        let more = Pairing { references: 5, ..SOME }.pairs();
        assert_eq!(more[5].photo_view(0), without[4].photo_view(0));
    }

    /// An older list names no mask; and no photos are no word about them.
    #[test]
    fn a_pair_survives_its_list() {
        let pair = Pairing { photos: 1, ..SOME }.pairs().remove(7);
        let mut line = serde_json::to_value(&pair).unwrap();
        assert_eq!(serde_json::from_value::<Pair>(line.clone()).unwrap(), pair);
        let line = line.as_object_mut().unwrap();
        for name in ["face", "photos"] {
            assert!(line.remove(name).unwrap().is_string());
        }
        let older = serde_json::from_value::<Pair>(line.clone().into()).unwrap();
        assert_eq!(older, Pair { face: String::new(), photos: None, ..pair });
        assert!(serde_json::to_value(&older).unwrap().get("photos").is_none());
    }

    #[test]
    fn heads_are_tilted_and_have_expressions_only_if_asked() {
        let free = Pairing { tilted: true, expressions: true, ..SOME }.pairs();
        assert!(free.iter().all(|pair| pair.reference_view.pitch != 0.0));
        let neutral = View::default().units;
        assert!(free.iter().any(|pair| pair.reference_view.units != neutral));
        assert!(free.iter().all(|pair| pair.profile_view.units == neutral));
    }
}
