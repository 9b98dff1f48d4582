//! What can be said of a picture.

use serde::Serialize;

use crate::shape::{V3, unit};
use crate::view::EXPRESSIONS;
use crate::{Light, Random, Traits, View};

const BACKGROUNDS: [(&str, [u8; 3]); 10] = [
    ("white", [255, 255, 255]),
    ("black", [16, 16, 18]),
    ("gray", [150, 150, 152]),
    ("red", [214, 60, 56]),
    ("orange", [240, 150, 60]),
    ("yellow", [250, 220, 100]),
    ("green", [96, 176, 104]),
    ("blue", [84, 140, 220]),
    ("purple", [150, 104, 200]),
    ("pink", [246, 170, 196]),
];
/// How often the background is white beyond its turn.
const WHITE: f32 = 0.2;
/// Degrees to the picture's right, and down, with how often.
const POSES: [(&str, [f32; 2]); 3] =
    [("left", [-55.0, -22.0]), ("camera", [-12.0, 12.0]), ("right", [22.0, 55.0])];
const LOOKS: [(&str, [f32; 2], f32); 3] =
    [("ahead", [-6.0, 6.0], 0.7), ("up", [-26.0, -16.0], 0.15), ("down", [16.0, 26.0], 0.15)];
/// Where the light comes from, its strength, and that of light from all around.
const LIGHTS: [(&str, [f32; 3], f32, f32); 4] = [
    ("left", [-1.0, 0.35, 0.4], 1.05, 0.17),
    ("right", [1.0, 0.35, 0.4], 1.05, 0.17),
    ("even", [0.0, 0.5, 1.0], 0.55, 0.48),
    ("dim", [0.0, 0.7, 0.7], 0.30, 0.14),
];

/// Other ways to say what a column holds. The first one is that of prompts.
const WORDS: [(&str, &str, &[&str]); 27] = [
    ("skin", "light", &["light skin", "fair skin"]),
    ("skin", "medium", &["medium skin", "tan skin"]),
    ("skin", "dark", &["dark skin"]),
    ("age", "old", &["old", "old", "elderly"]),
    ("color", "blond", &["blond", "blond", "blonde"]),
    ("color", "red", &["red", "red", "ginger"]),
    ("color", "gray", &["gray", "gray", "grey"]),
    ("expression", "neutral", &["calm", "a neutral expression", "a neutral face"]),
    ("expression", "smiling", &["smiling", "smiling", "a smile"]),
    ("expression", "laughing", &["laughing", "laughing", "a laughing face"]),
    ("expression", "surprised", &["surprised", "surprised", "a surprised face"]),
    ("expression", "angry", &["angry", "angry", "an angry face"]),
    ("expression", "sad", &["sad", "sad", "a sad face"]),
    ("expression", "eyes closed", &["closed eyes"]),
    ("expression", "kissing", &["kissing", "puckered lips"]),
    ("pose", "left", &["facing left", "facing left", "turned to the left"]),
    ("pose", "right", &["facing right", "facing right", "turned to the right"]),
    ("pose", "camera", &["facing the camera", "facing the camera", "front view"]),
    ("look", "ahead", &[]),
    ("look", "up", &["looking up"]),
    ("look", "down", &["looking down"]),
    ("light", "left", &["lit from the left", "lit from the left", "light from the left"]),
    ("light", "right", &["lit from the right", "lit from the right", "light from the right"]),
    ("light", "even", &["even light", "even light", "lit from the front"]),
    ("light", "dim", &["dim light", "dim light", "in the dark"]),
    ("beard", "none", &[]),
    ("beard", "stubble", &["stubble"]),
];
/// Words that stand before the person.
const ADJECTIVES: [&str; 8] =
    ["calm", "smiling", "laughing", "surprised", "angry", "sad", "kissing", "bald"];
const STARTS: [&str; 5] = ["portrait of", "portrait of", "3d portrait of", "head of", "face of"];
/// How often a caption says what.
const SAID: [(&str, f32); 9] = [
    ("expression", 0.85),
    ("age", 0.75),
    ("skin", 0.45),
    ("hair", 0.75),
    ("beard", 0.75),
    ("pose", 0.6),
    ("look", 0.7),
    ("light", 0.55),
    ("background", 0.75),
];

/// What is said of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Scene {
    /// One of [`EXPRESSIONS`].
    pub expression: &'static str,
    /// `left`, `camera` or `right`: where the head faces.
    pub pose: &'static str,
    /// `ahead`, `up` or `down`.
    pub look: &'static str,
    /// `left`, `right`, `even` or `dim`.
    pub light: &'static str,
    /// The name of a colour.
    pub background: &'static str,
}

impl Scene {
    /// A scene, and a view of it.
    pub fn random(random: &mut Random) -> (Self, View) {
        let expression = random.pick(&EXPRESSIONS).0;
        let (pose, yaw) = *random.pick(&POSES);
        let (look, pitch, _) = *random.weighed(&LOOKS, |(_, _, often)| *often);
        let (light, direction, strength, ambient) = *random.pick(&LIGHTS);
        let (background, colour) =
            if random.chance(WHITE) { BACKGROUNDS[0] } else { *random.pick(&BACKGROUNDS) };
        let direction = V3::from(direction).map(|value| value + random.normal(0.0, 0.08));
        let (power, warmth) = (random.uniform(0.9, 1.1), random.uniform(-0.08, 0.08));
        let mut view = View {
            yaw: random.uniform(yaw[0], yaw[1]),
            pitch: random.uniform(pitch[0], pitch[1]),
            roll: random.normal(0.0, 3.0),
            gaze: [random.uniform(-0.2, 0.2), random.uniform(-0.1, 0.1)],
            light: Light {
                direction: unit(direction).into(),
                strength: strength * power,
                ambient: ambient * power,
                tint: [1.0 + warmth, 1.0, 1.0 - warmth],
            },
            scale: random.uniform(0.70, 0.80),
            shift: [random.uniform(-0.03, 0.03), random.uniform(-0.01, 0.05)],
            background: if background == "white" { colour } else { like(random, colour) },
            ..View::default()
        };
        view.express(expression, random.uniform(0.85, 1.1));
        (Self { expression, pose, look, light, background }, view)
    }
}

/// A colour like another.
fn like(random: &mut Random, colour: [u8; 3]) -> [u8; 3] {
    let colour = V3::from(colour.map(f32::from));
    let gray = V3::repeat((colour.max() + colour.min()) / 2.0);
    // Stronger or weaker, lighter or darker, and a little to another hue.
    let changed = gray + (colour - gray) * random.normal(1.0, 0.06).max(0.0);
    let lightness = random.normal(0.0, 8.0);
    changed.map(|value| (value + lightness + random.normal(0.0, 2.5)).round() as u8).into()
}

fn article(word: &str) -> String {
    format!("{} {word}", if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
}

fn ways(column: &str, value: &'static str) -> Vec<&'static str> {
    let found = WORDS.iter().find(|(own, name, _)| (*own, *name) == (column, value));
    found.map_or(vec![value], |(_, _, ways)| ways.to_vec())
}

/// What a column holds, in words that `way` picks from several, if there is anything to say.
fn said(
    traits: &Traits,
    scene: &Scene,
    column: &str,
    way: &mut dyn FnMut(&[&'static str]) -> &'static str,
) -> Option<String> {
    let mut pick = |column: &str, value| {
        let ways = ways(column, value);
        (!ways.is_empty()).then(|| way(&ways).to_string())
    };
    match column {
        "hair" => match traits.hair_color {
            None => Some(traits.hair.into()),
            Some(colour) => {
                let cut = if traits.hair == "medium" { "medium-length" } else { traits.hair };
                Some(format!("{cut} {} hair", pick("color", colour)?))
            }
        },
        "beard" => match traits.beard_color {
            None => pick("beard", traits.beard),
            Some(colour) => Some(format!("{} beard", article(&pick("color", colour)?))),
        },
        "background" => Some(format!("on {} background", article(scene.background))),
        "skin" => pick(column, traits.skin),
        "age" => pick(column, traits.age),
        "expression" => pick(column, scene.expression),
        "pose" => pick(column, scene.pose),
        "look" => pick(column, scene.look),
        _ => pick(column, scene.light),
    }
}

/// Words by where they stand in a sentence: before the person, after `with`, and behind.
#[derive(Default)]
struct Parts {
    adjectives: Vec<String>,
    features: Vec<String>,
    rest: Vec<String>,
}

impl Parts {
    fn of(words: impl Iterator<Item = (&'static str, String)>) -> Self {
        let mut parts = Self::default();
        for (column, word) in words {
            let place = match column {
                "age" => &mut parts.adjectives,
                "pose" | "look" | "light" | "background" => &mut parts.rest,
                _ if ADJECTIVES.contains(&word.as_str()) => &mut parts.adjectives,
                _ => &mut parts.features,
            };
            place.push(word);
        }
        parts
    }

    fn sentence(self, start: Option<&str>, noun: &str) -> String {
        let mut who = self.adjectives;
        who.push(noun.into());
        let mut who = who.join(" ");
        if let Some(start) = start {
            who = format!("{start} {}", article(&who));
        }
        if let Some((last, others)) = self.features.split_last() {
            let and = if others.is_empty() { "" } else { " and " };
            who = format!("{who} with {}{and}{last}", others.join(", "));
        }
        [vec![who], self.rest].concat().join(", ")
    }
}

/// A caption that says all.
pub fn prompt(traits: &Traits, scene: &Scene) -> String {
    let words = SAID.iter().filter_map(|(column, _)| {
        Some((*column, said(traits, scene, column, &mut |ways| ways[0])?))
    });
    Parts::of(words).sentence(Some("portrait of"), traits.gender)
}

/// A caption that says something, in one of several forms.
pub fn caption(random: &mut Random, traits: &Traits, scene: &Scene) -> String {
    let words = SAID.iter().filter_map(|(column, often)| {
        let word = random
            .chance(*often)
            .then(|| said(traits, scene, column, &mut |ways| *random.pick(ways)))?;
        Some((*column, word?))
    });
    let parts = Parts::of(words);
    let adjectives = random.shuffled(parts.adjectives);
    let features = random.shuffled(parts.features);
    let rest = random.shuffled(parts.rest);
    let order = random.uniform(0.0, 1.0);
    if order < 0.75 {
        let start = (order < 0.5).then(|| *random.pick(&STARTS));
        return Parts { adjectives, features, rest }.sentence(start, traits.gender);
    }
    // A list of words; some stay before the person.
    let (mut near, far): (Vec<_>, Vec<_>) =
        adjectives.into_iter().partition(|_| random.chance(0.5));
    near.push(traits.gender.into());
    let others = random.shuffled([far, features, rest].concat());
    let bare = others.into_iter().map(|word| without(&word).to_string());
    let start = random.pick(&[None, Some("portrait"), Some("3d portrait")]).map(String::from);
    start.into_iter().chain([near.join(" ")]).chain(bare).collect::<Vec<_>>().join(", ")
}

/// A part of a sentence as a word of a list.
fn without(word: &str) -> &str {
    ["on ", "a ", "an "].iter().fold(word, |word, start| word.strip_prefix(start).unwrap_or(word))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn man() -> (Traits, Scene) {
        let traits = Traits {
            gender: "man",
            age: "old",
            skin: "dark",
            hair: "medium",
            beard: "beard",
            hair_color: Some("gray"),
            beard_color: Some("gray"),
        };
        let scene = Scene {
            expression: "angry",
            pose: "left",
            look: "up",
            light: "dim",
            background: "orange",
        };
        (traits, scene)
    }

    #[test]
    fn a_prompt_says_all_and_no_more() {
        let (traits, scene) = man();
        assert_eq!(
            prompt(&traits, &scene),
            "portrait of an angry old man with dark skin, medium-length gray hair and a gray beard, facing left, looking up, \
             dim light, on an orange background"
        );
        let traits =
            Traits { hair: "bald", beard: "none", hair_color: None, beard_color: None, ..traits };
        let scene = Scene { look: "ahead", expression: "eyes closed", ..scene };
        assert_eq!(
            prompt(&traits, &scene),
            "portrait of an old bald man with closed eyes and dark skin, facing left, dim light, on an orange background"
        );
    }

    #[test]
    fn captions_differ_and_say_nothing_that_is_not_so() {
        let (traits, scene) = man();
        let mut random = Random::new(&[1]);
        let made: BTreeSet<_> = (0..200).map(|_| caption(&mut random, &traits, &scene)).collect();
        assert!(made.len() > 150);
        for text in &made {
            assert!(
                text.contains("man") && !text.contains("woman") && !text.contains("  "),
                "{text}"
            );
            assert!(
                !text.contains("right") && !text.contains("smil") && !text.contains("bald"),
                "{text}"
            );
        }
    }
}
