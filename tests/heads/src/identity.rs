//! A person: what is said of one, and what one is drawn from.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::head::hair::Style;
use crate::shape::{V3, extent, step};
use crate::{Head, Random};

/// These colours are linear.
const SKINS: [(&str, [f32; 3]); 3] =
    [("light", [0.90, 0.62, 0.48]), ("medium", [0.60, 0.37, 0.23]), ("dark", [0.20, 0.105, 0.065])];
const HAIRS: [(&str, [f32; 3]); 5] = [
    ("black", [0.022, 0.018, 0.016]),
    ("brown", [0.19, 0.085, 0.035]),
    ("blond", [0.80, 0.58, 0.24]),
    ("red", [0.50, 0.12, 0.025]),
    ("gray", [0.56, 0.56, 0.57]),
];
const IRISES: [[f32; 3]; 4] =
    [[0.16, 0.08, 0.03], [0.28, 0.17, 0.07], [0.22, 0.34, 0.17], [0.17, 0.36, 0.56]];
/// How often men and women have which hair.
const CUTS: [(&str, [f32; 2]); 4] = [
    ("bald", [0.25, 0.04]),
    ("short", [0.45, 0.24]),
    ("medium", [0.15, 0.36]),
    ("long", [0.15, 0.36]),
];
const BEARDS: [(&str, f32); 3] = [("none", 0.0), ("stubble", 0.5), ("beard", 0.95)];
/// Of each age: where it is between the model's young and old, how deep wrinkles are, how often hair is gray.
const AGES: [(&str, [f32; 3]); 3] =
    [("young", [0.05, 0.0, 0.0]), ("middle-aged", [0.6, 0.6, 0.15]), ("old", [0.97, 1.0, 0.7])];
const PEOPLES: [&str; 3] = ["african", "asian", "caucasian"];
/// For each skin, the parameters of the Dirichlet distribution of the model's peoples.
const ORIGINS: [(&str, [f32; 3]); 3] =
    [("light", [0.1, 0.6, 1.2]), ("medium", [0.5, 0.8, 0.6]), ("dark", [2.0, 0.2, 0.2])];
/// Families of targets that make up a face.
const FEATURES: [&str; 9] =
    ["head", "forehead", "eyebrows", "eyes", "nose", "mouth", "cheek", "chin", "ears"];

/// What is said of a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Traits {
    /// `man` or `woman`.
    pub gender: &'static str,
    /// `young`, `middle-aged` or `old`.
    pub age: &'static str,
    /// `light`, `medium` or `dark`.
    pub skin: &'static str,
    /// `bald`, `short`, `medium` or `long`.
    pub hair: &'static str,
    /// `none`, `stubble` or `beard`.
    pub beard: &'static str,
    /// `black`, `brown`, `blond`, `red` or `gray`; none of the bald.
    pub hair_color: Option<&'static str>,
    /// The same of a full beard.
    pub beard_color: Option<&'static str>,
}

/// Colours and what else is painted; each part is from 0 to 1.
#[derive(Debug, Clone)]
pub(crate) struct Paint {
    pub(crate) skin: V3,
    pub(crate) hair: V3,
    pub(crate) iris: V3,
    pub(crate) cloth: V3,
    pub(crate) lipstick: f32,
    /// How wide brows are.
    pub(crate) brow: f32,
    pub(crate) wrinkles: f32,
    pub(crate) beard: f32,
    /// Whether hair grows on the scalp.
    pub(crate) hairy: bool,
    /// How much higher than usual it begins.
    pub(crate) hairline: f32,
    pub(crate) wave: f32,
}

/// A person.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What is said of the person.
    pub traits: Traits,
    pub(crate) paint: Paint,
    /// Of each vertex of the head and of its net of hair, where it is without an expression.
    pub(crate) points: Vec<V3>,
    /// What is put in the middle of a picture.
    pub(crate) center: V3,
    /// From the chin to the crown.
    pub(crate) height: f32,
}

/// The row of a name that is in the table.
fn row<T: Copy>(table: &[(&str, T)], name: &str) -> T {
    let found = table.iter().find(|(own, _)| *own == name);
    found.map(|(_, value)| *value).expect("names are taken from the tables")
}

impl Identity {
    /// A person of a random kind.
    pub fn random(head: &Head, random: &mut Random) -> Self {
        let (traits, colour) = traits(random);
        let paint = paint(random, &traits, colour);
        let mut weights = kind(random, &traits);
        for (name, weight) in face(random, head, traits.gender == "man") {
            *weights.entry(name).or_default() += weight;
        }
        let mut person = Self::shaped(head, traits, paint, &weights);
        person.add_hair(head, random);
        person
    }

    /// The person `number` of a seed, always the same.
    pub fn numbered(head: &Head, seed: u64, number: u64) -> Self {
        Self::random(head, &mut Random::new(&[seed, number]))
    }

    /// A bald person between all kinds, who is the same on both sides.
    pub fn mean(head: &Head) -> Self {
        let mut weights = BTreeMap::new();
        add_kind(&mut weights, [0.5, 0.5], [1.0 / 3.0; 3]);
        let (skin, beard) = ("medium", "none");
        let traits = Traits {
            gender: "man",
            age: "middle-aged",
            skin,
            hair: "bald",
            beard,
            hair_color: None,
            beard_color: None,
        };
        let paint = Paint {
            skin: row(&SKINS, skin).into(),
            hair: row(&HAIRS, "brown").into(),
            iris: IRISES[0].into(),
            cloth: V3::repeat(0.3),
            lipstick: 0.0,
            brow: 0.045,
            wrinkles: 0.0,
            beard: 0.0,
            hairy: false,
            hairline: 0.0,
            wave: 0.0,
        };
        Self::shaped(head, traits, paint, &weights)
    }

    fn shaped(head: &Head, traits: Traits, paint: Paint, weights: &BTreeMap<String, f32>) -> Self {
        let mut points = head.rest.clone();
        weights.iter().for_each(|(name, weight)| head.moved(&mut points, name, *weight));
        let (low, high) = extent(head.skull.iter().map(|at| points[*at]));
        let center = (low + high) / 2.0 - V3::new(0.0, 0.05, 0.3);
        let height = (high.y - low.y).max(0.1);
        // Some targets leave the teeth where they are, before the lips.
        head.teeth.iter().for_each(|at| points[*at].z -= 0.12);
        // Without hair that hangs the net is a point.
        points.resize(head.marks.len(), V3::zeros());
        Self { traits, paint, points, center, height }
    }

    fn add_hair(&mut self, head: &Head, random: &mut Random) {
        let own = head.rest.len();
        let points = &mut self.points;
        if matches!(self.traits.hair, "medium" | "long") {
            // Ears lie close under hair.
            for (point, marks) in points.iter_mut().zip(&head.marks) {
                point.x *= 1.0 - 0.12 * marks.ears;
            }
            let style = Style::random(random, self.traits.hair == "long");
            let net = style.hanging(head, &points[..own]);
            points[own..].copy_from_slice(&net);
        }
        let volume = if self.traits.gender == "man" { (0.06, 0.15) } else { (0.14, 0.24) };
        let volume = random.uniform(volume.0, volume.1);
        let short = self.traits.hair == "short";
        let bearded = self.traits.beard == "beard";
        let normals = head.normals(points);
        for (at, point) in points[..own].iter_mut().enumerate() {
            let marks = &head.marks[at];
            let (above, covered) = marks.hair(self.paint.hairline);
            // It is shorter on the sides and the neck.
            let longer = 0.3 + 0.7 * step(marks.rest.y, 7.0, 8.3);
            let hair =
                volume * longer * covered * marks.skin * (0.35 + 0.9 * step(above, 0.0, 0.8));
            let beard = if bearded { 0.09 * marks.beard } else { 0.0 };
            *point += normals[at] * (if short { hair } else { 0.0 } + beard);
        }
    }
}

/// What is said of a person, and the colour of hair, brows and beard.
fn traits(random: &mut Random) -> (Traits, &'static str) {
    let gender = *random.pick(&["woman", "man"]);
    let age = random.pick(&AGES).0;
    let skin = random.pick(&SKINS).0;
    let hair = random.weighed(&CUTS, |(_, often)| often[usize::from(gender == "woman")]).0;
    let beard = if gender == "woman" { "none" } else { random.pick(&BEARDS).0 };
    let colour =
        if random.chance(row(&AGES, age)[2]) { "gray" } else { random.pick(&HAIRS[..4]).0 };
    let hair_color = (hair != "bald").then_some(colour);
    let beard_color = (beard == "beard").then_some(colour);
    (Traits { gender, age, skin, hair, beard, hair_color, beard_color }, colour)
}

fn paint(random: &mut Random, traits: &Traits, colour: &str) -> Paint {
    let is_man = traits.gender == "man";
    let old = row(&AGES, traits.age)[1];
    let shade = random.normal(1.0, 0.07);
    let skin =
        V3::from(row(&SKINS, traits.skin)).map(|value| value * shade * random.normal(1.0, 0.02));
    let irises = if traits.skin == "light" { 4 } else { 2 };
    let cloth = random.uniform(0.05, 0.7);
    Paint {
        skin,
        hair: V3::from(row(&HAIRS, colour)) * random.normal(1.0, 0.1),
        iris: V3::from(*random.pick(&IRISES[..irises])),
        cloth: V3::repeat(cloth).map(|value| value * (0.3 + 0.7 * random.uniform(0.0, 1.0))),
        lipstick: if is_man { 0.0 } else { random.uniform(0.1, 0.6) },
        brow: if is_man { random.uniform(0.045, 0.06) } else { random.uniform(0.03, 0.042) },
        wrinkles: old,
        beard: row(&BEARDS, traits.beard),
        hairy: traits.hair != "bald",
        hairline: random.normal(0.0, 0.03) + if is_man { 0.12 * old } else { 0.0 },
        wave: *random.pick(&[0.2, 0.5, 1.0]),
    }
}

/// Weights of the targets for a gender, an age and a people.
fn kind(random: &mut Random, traits: &Traits) -> BTreeMap<String, f32> {
    let old = (row(&AGES, traits.age)[0] + random.uniform(-0.1, 0.1)).clamp(0.0, 1.0);
    let male = (f32::from(traits.gender == "man") + random.normal(0.0, 0.05)).clamp(0.0, 1.0);
    let shares = random.shares(row(&ORIGINS, traits.skin));
    let mut weights = BTreeMap::from([("head/head-age-incr".into(), (1.6 * old - 0.7).max(0.0))]);
    add_kind(&mut weights, [male, old], shares);
    weights
}

/// Adds the weights of a person who is `male` and `old`, each from 0 to 1, with shares of the peoples.
fn add_kind(weights: &mut BTreeMap<String, f32>, [male, old]: [f32; 2], shares: [f32; 3]) {
    for (gender, by_gender) in [("male", male), ("female", 1.0 - male)] {
        for (age, by_age) in [("old", old), ("young", 1.0 - old)] {
            for (people, share) in PEOPLES.iter().zip(shares) {
                let name = format!("macrodetails/{people}-{gender}-{age}");
                weights.insert(name, by_gender * by_age * share);
            }
            let name = format!("macrodetails/universal-{gender}-{age}-averagemuscle-averageweight");
            weights.insert(name, by_gender * by_age);
        }
    }
}

/// Weights of the targets for the features of a face: some measures, each of which has a target at both ends, and some of those
/// one for each side.
fn face(random: &mut Random, head: &Head, is_man: bool) -> Vec<(String, f32)> {
    let family = |name: &&str| FEATURES.contains(&name.split('/').next().unwrap_or_default());
    let names: Vec<&str> =
        head.targets().filter(family).filter(|name| !name.contains("head-age")).collect();
    let mean = |measure: &str| match measure {
        "chin/chin-width-incr" if is_man => 0.2,
        "chin/chin-width-incr" => -0.3,
        "eyes/eye-scale-incr" => 0.25,
        "mouth/mouth-scale-horiz-incr" => 0.15,
        _ => 0.0,
    };
    let mut drawn = BTreeMap::new();
    let both_ends = names.as_chunks::<2>().0.iter();
    let weighed = both_ends.map(|[low, high]| {
        let measure = high.replace("/l-", "/").replace("/r-", "/");
        let at = *drawn.entry(measure).or_insert_with_key(|measure| {
            let away = if random.chance(0.6) { random.normal(0.0, 0.27) } else { 0.0 };
            (mean(measure) + away).clamp(-1.0, 1.0)
        });
        (if at > 0.0 { *high } else { *low }.to_string(), at.abs())
    });
    weighed.collect()
}
