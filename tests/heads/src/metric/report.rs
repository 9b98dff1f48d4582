//! How well people are told apart, and what the measure feels.

use std::fmt;
use std::ops::Range;

use image::imageops::{FilterType, blur, resize};
use image::{Rgb, RgbImage};
use nalgebra::DVector;
use rayon::prelude::*;

use super::{Recogniser, similarity};
use crate::{Head, Identity, Light, Picture, Random, View, angle, light_of, render};

/// Width and height of the pictures.
pub(crate) const SIDE: usize = 64;

/// Who is drawn, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// People to learn from.
    pub learned: usize,
    /// Other people, to try it on; at least 2.
    pub unseen: usize,
    /// Views of each; at least 2.
    pub views: usize,
    /// Number of the first person.
    pub first: u64,
    /// Largest yaw to both sides, in degrees.
    pub yaw: f32,
    /// Whether heads are also tilted: pitch to 15 degrees, roll to 8.
    pub tilted: bool,
    /// Whether faces have expressions.
    pub expressions: bool,
    /// Of people and views.
    pub seed: u64,
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            learned: 80,
            unseen: 30,
            views: 6,
            first: 0,
            yaw: 28.0,
            tilted: false,
            expressions: false,
            seed: 0,
        }
    }
}

/// What came of it; likeness is a cosine.
#[derive(Debug, Clone)]
pub struct Report {
    /// Mean likeness of pictures of the same person, and of different people.
    pub same: f64,
    /// The latter.
    pub different: f64,
    /// How often the likeness of the same person is above that of different people.
    pub auc: f64,
    /// How often the likest of pictures from the front, one of each person, is of the right one.
    pub rank_1: f64,
    /// What becomes of the likeness of a picture from the front to itself when something is done to it.
    pub changed: Vec<(&'static str, f64)>,
    /// The median angle between where light comes from and where it was found to, in degrees.
    pub light: f64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "same {:.3}, different {:.3}, AUC {:.3}, rank-1 {:.3}",
            self.same, self.different, self.auc, self.rank_1
        )?;
        for (what, likeness) in &self.changed {
            writeln!(f, "{what:>40} {likeness:6.3}")?;
        }
        writeln!(f, "light: median error {:.1} degrees", self.light)
    }
}

/// Learns to tell people apart, and tries it on others. None if the protocol has too few people.
pub fn evaluated(head: &Head, protocol: &Protocol) -> Option<Report> {
    let recogniser = protocol.recogniser(head)?;
    let unseen = protocol.drawn(head, protocol.learned..protocol.learned + protocol.unseen);
    let codes: Vec<Vec<DVector<f64>>> = unseen
        .par_iter()
        .map(|(_, views)| {
            views.iter().map(|(picture, view)| recogniser.read(&picture.rgb, view)).collect()
        })
        .collect();
    let front = View::default();
    let fronts: Vec<Picture> =
        unseen.par_iter().map(|(person, _)| render(head, person, &front, SIDE)).collect();
    let gallery: Vec<_> =
        fronts.iter().map(|picture| recogniser.read(&picture.rgb, &front)).collect();
    let (same, different) = pairs(&codes)?;
    let views = unseen.iter().flat_map(|(_, views)| views);
    let people: Vec<&Identity> = unseen.iter().map(|(person, _)| person).collect();
    Some(Report {
        same: mean(&same),
        different: mean(&different),
        auc: auc(&same, &different),
        rank_1: rank_1(&codes, &gallery),
        changed: changed(&recogniser, &fronts, &gallery, |at, light| {
            render(head, people[at], &View { light, ..front.clone() }, SIDE).rgb
        }),
        light: median(views.filter_map(|(picture, view)| {
            Some(f64::from(angle(light_of(&picture.rgb, picture)?, view.light.direction)))
        })),
    })
}

impl Protocol {
    /// Learns from pictures of the people to learn from. None if they are too few.
    pub fn recogniser(&self, head: &Head) -> Option<Recogniser> {
        let learned = self.drawn(head, 0..self.learned);
        let examples = learned.iter().enumerate().flat_map(|(person, (_, views))| {
            views.iter().map(move |(picture, view)| (person, &picture.rgb, view))
        });
        Recogniser::fit(head, &examples.collect::<Vec<_>>())
    }

    /// People, and their views.
    fn drawn(&self, head: &Head, people: Range<usize>) -> Vec<(Identity, Vec<(Picture, View)>)> {
        let draw = |person: usize| {
            let number = self.first + person as u64;
            let identity = Identity::numbered(head, self.seed, number);
            let seen = |view: usize| {
                let view = self.view(&mut Random::new(&[self.seed, number, view as u64]));
                (render(head, &identity, &view, SIDE), view)
            };
            let views = (0..self.views).map(seen).collect();
            (identity, views)
        };
        people.into_par_iter().map(draw).collect()
    }

    /// A view, as free as this allows.
    pub(crate) fn view(&self, random: &mut Random) -> View {
        let (mut view, _) = View::random(random);
        view.yaw = random.uniform(-self.yaw, self.yaw);
        if !self.tilted {
            (view.pitch, view.roll) = (0.0, 0.0);
        }
        if !self.expressions {
            view.express("neutral", 1.0);
        }
        view
    }
}

/// Likeness of all pairs of views: of the same person, and of different people.
fn pairs(codes: &[Vec<DVector<f64>>]) -> Option<(Vec<f64>, Vec<f64>)> {
    let all: Vec<_> = codes
        .iter()
        .enumerate()
        .flat_map(|(person, own)| own.iter().map(move |code| (person, code)))
        .collect();
    let (mut same, mut different) = (Vec::new(), Vec::new());
    for (at, (person, code)) in all.iter().enumerate() {
        for (other, other_code) in &all[at + 1..] {
            let list = if person == other { &mut same } else { &mut different };
            list.push(similarity(code, other_code));
        }
    }
    (!same.is_empty() && !different.is_empty()).then_some((same, different))
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn auc(same: &[f64], different: &[f64]) -> f64 {
    let mut sorted = different.to_vec();
    sorted.sort_by(f64::total_cmp);
    let below = same.iter().map(|value| sorted.partition_point(|other| other < value));
    below.sum::<usize>() as f64 / (same.len() * different.len()) as f64
}

fn rank_1(codes: &[Vec<DVector<f64>>], gallery: &[DVector<f64>]) -> f64 {
    let hit = |person: usize, code: &DVector<f64>| {
        let own = similarity(code, &gallery[person]);
        gallery.iter().filter(|other| similarity(code, other) > own).count() == 0
    };
    let hits = codes
        .iter()
        .enumerate()
        .flat_map(|(person, own)| own.iter().map(move |code| hit(person, code)));
    let hits: Vec<f64> = hits.map(|hit| f64::from(u8::from(hit))).collect();
    mean(&hits)
}

/// `lit` draws a person from the front in another light.
fn changed(
    recogniser: &Recogniser,
    fronts: &[Picture],
    gallery: &[DVector<f64>],
    lit: impl Fn(usize, Light) -> RgbImage,
) -> Vec<(&'static str, f64)> {
    let front = View::default();
    let of = |view: &View, change: &dyn Fn(usize) -> RgbImage| {
        let own = |at: usize| similarity(&gallery[at], &recogniser.read(&change(at), view));
        mean(&(0..fronts.len()).map(own).collect::<Vec<_>>())
    };
    let next = |at: usize| (at + 1) % fronts.len();
    let side = Light { direction: [0.9, 0.3, 0.3], strength: 1.05, ambient: 0.17, tint: [1.0; 3] };
    let smaller = |to: u32| {
        let shrunk = move |at: usize| resize(&fronts[at].rgb, to, to, FilterType::Triangle);
        of(&front, &|at| resize(&shrunk(at), SIDE as u32, SIDE as u32, FilterType::CatmullRom))
    };
    let turned = View { yaw: 5.0, ..View::default() };
    let blended = |at: usize| blend(&fronts[at].rgb, &fronts[next(at)].rgb);
    let with_next =
        |at: usize| similarity(&gallery[next(at)], &recogniser.read(&blended(at), &front));
    let with_next: Vec<f64> = (0..fronts.len()).map(with_next).collect();
    vec![
        ("hard light from the side", of(&front, &|at| lit(at, side))),
        ("to 32 pixels and back", smaller(32)),
        ("to 24 pixels and back", smaller(24)),
        ("to 16 pixels and back", smaller(16)),
        ("blurred by 1 pixel", of(&front, &|at| blur(&fronts[at].rgb, 1.0))),
        ("blurred by 2 pixels", of(&front, &|at| blur(&fronts[at].rgb, 2.0))),
        ("noise of 0.05", of(&front, &|at| noisy(&fronts[at].rgb, at as u64))),
        ("the pose 5 degrees off", of(&turned, &|at| fronts[at].rgb.clone())),
        ("half another person", of(&front, &blended)),
        ("half another person, to the other", mean(&with_next)),
        ("gray", of(&front, &|_| RgbImage::from_pixel(SIDE as u32, SIDE as u32, Rgb([128; 3])))),
        ("another person", of(&front, &|at| fronts[next(at)].rgb.clone())),
    ]
}

fn blend(a: &RgbImage, b: &RgbImage) -> RgbImage {
    let mean = |(a, b): (&u8, &u8)| u8::midpoint(*a, *b);
    let values = a.iter().zip(b.iter()).map(mean).collect();
    RgbImage::from_raw(a.width(), a.height(), values).expect("as many values")
}

fn noisy(picture: &RgbImage, seed: u64) -> RgbImage {
    let mut random = Random::new(&[seed]);
    let mut noisy = picture.clone();
    noisy.iter_mut().for_each(|value| {
        *value = (f32::from(*value) + random.normal(0.0, 0.05 * 255.0)).round() as u8
    });
    noisy
}
