//! Laws of portraits, of what they are measured by, and of their rivals.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::sync::OnceLock;

use image::{GrayImage, RgbImage};
use pyrograph_heads::{
    HEAD, Head, Identity, Judge, MOST_PEOPLE, Measure, Pair, Pairing, Picture, Scores, View,
    face_mask, render,
};

/// Pairs, and who judges portraits of them.
struct Portraits {
    head: &'static Head,
    pairs: Vec<Pair>,
    judge: Judge<'static>,
}

impl Portraits {
    fn get() -> &'static Self {
        static PORTRAITS: OnceLock<Portraits> = OnceLock::new();
        PORTRAITS.get_or_init(|| {
            let head: &Head = Box::leak(Box::new(Head::open(HEAD).unwrap()));
            let asked = Pairing { people: 12, references: 2, seed: 3, ..Pairing::default() };
            let pairs = asked.pairs();
            let judge = Judge::new(head, &pairs).unwrap();
            Self { head, pairs, judge }
        })
    }

    /// The means of one picture of each pair.
    fn scored(&self, made: impl Fn(&Pair) -> RgbImage) -> impl Fn(Measure) -> f64 {
        let measured: Vec<_> =
            self.pairs.iter().map(|pair| Some(self.judge.measured(pair, &made(pair)))).collect();
        let means = Scores::new(&self.pairs, &measured, None, 10).all.means;
        move |measure| means[&measure].mean
    }

    fn drawn(&self, which: usize) -> impl Fn(Measure) -> f64 {
        self.scored(move |pair| pair.pictures(self.head)[which].rgb.clone())
    }
}

#[test]
fn the_truth_is_the_best_portrait() {
    let truth = Portraits::get().drawn(2);
    assert!(truth(Measure::SimA) > 0.75 && truth(Measure::Rank1) > 0.85);
    assert!(truth(Measure::SimB).abs() < 0.2 && truth(Measure::LitSide) == 1.0);
    for measure in [Measure::Luminance, Measure::LightDirection, Measure::Chroma] {
        assert_eq!(truth(measure), 0.0, "{measure}");
    }
}

#[test]
fn a_reference_is_another_person_in_the_right_light() {
    let reference = Portraits::get().drawn(1);
    assert!(reference(Measure::SimA) < 0.25 && reference(Measure::Rank1) == 0.0);
    assert_eq!(reference(Measure::Background), 0.0);
    assert!(reference(Measure::SimB) > 0.999 && reference(Measure::LitSide) > 0.9);
    assert!(reference(Measure::Luminance) > 0.03 && reference(Measure::Chroma) > 0.005);
}

#[test]
fn a_profile_is_in_the_wrong_light() {
    let profile = Portraits::get().drawn(0);
    assert!(profile(Measure::Luminance) > 0.05 && profile(Measure::LightDirection) > 30.0);
    assert!((0.2..0.8).contains(&profile(Measure::LitSide)));
}

#[test]
fn a_profile_is_liker_the_nearer_the_pose() {
    let portraits = Portraits::get();
    let turned = |by: f32| {
        let likeness = portraits.pairs.iter().step_by(2).map(|pair| {
            let mut asked = pair.clone();
            let front = &pair.profile_view;
            asked.reference_view = View { yaw: front.yaw + by, ..front.clone() };
            let [profile, ..] = asked.pictures(portraits.head);
            portraits.judge.measured(&asked, &profile.rgb)[&Measure::SimA]
        });
        likeness.sum::<f64>() / 12.0
    };
    let [same, near, far] = [0.0, 8.0, 30.0].map(turned);
    println!("{same} {near} {far}");
    assert!(same > 0.85 && same > near + 0.1 && near > far + 0.1);
}

#[test]
fn another_person_in_the_truth_is_less_alike() {
    let portraits = Portraits::get();
    let truth = portraits.drawn(2);
    let swapped = portraits.scored(|pair| {
        let other = MOST_PEOPLE + (pair.identity - MOST_PEOPLE + 1) % 12;
        let other = Identity::numbered(portraits.head, pair.seed, other);
        render(portraits.head, &other, &pair.reference_view, 64).rgb
    });
    assert!(swapped(Measure::SimA) < truth(Measure::SimA) - 0.5);
    // So is light, as skins differ, but not where it comes from.
    assert!(swapped(Measure::Luminance) > 0.03 && swapped(Measure::LitSide) > 0.9);
}

/// The reference, the mask of its face, and the rivals: naive, of its tone, in its light.
fn pasted(pair: &Pair) -> ([Picture; 3], GrayImage, [RgbImage; 3]) {
    let head = Portraits::get().head;
    let pictures = pair.pictures(head);
    let mask = face_mask(head, &pictures[1]);
    let rivals = pair.pasted(head, &pictures[1].rgb, &mask);
    (pictures, mask, rivals)
}

#[test]
fn outside_of_the_mask_rivals_are_the_reference() {
    for pair in Portraits::get().pairs.iter().step_by(3) {
        let ([_, reference, _], mask, rivals) = pasted(pair);
        for rival in &rivals {
            let pixels = rival.pixels().zip(reference.rgb.pixels()).zip(mask.iter());
            let (same, other): (Vec<_>, Vec<_>) = pixels.clone().partition(|(_, mask)| **mask == 0);
            assert!(same.len() > 2000 && same.iter().all(|((rival, own), _)| rival == own));
            assert!(other.iter().filter(|((rival, own), _)| rival != own).count() > 200);
        }
        assert!(rivals[0] != rivals[1] && rivals[1] != rivals[2] && rivals[2] != rivals[0]);
    }
}

#[test]
fn rivals_show_the_person_and_the_last_the_light() {
    let portraits = Portraits::get();
    let [naive, tone, light] =
        [0, 1, 2].map(|which| portraits.scored(move |pair| pasted(pair).2[which].clone()));
    let reference = portraits.drawn(1);
    for rival in [&naive, &tone, &light] {
        assert!(rival(Measure::SimA) > reference(Measure::SimA) + 0.4);
        assert!(rival(Measure::SimB) < 0.3);
        assert_eq!(rival(Measure::Background), 0.0);
        assert!(rival(Measure::Seam) > reference(Measure::Seam));
    }
    assert!(light(Measure::LitSide) > naive(Measure::LitSide) + 0.2);
    assert!(light(Measure::LightDirection) < naive(Measure::LightDirection) - 20.0);
    assert!(light(Measure::Seam) < naive(Measure::Seam));
    // The skin of the reference is brought with its light, so that the error is the reference's own.
    assert!((light(Measure::Luminance) - reference(Measure::Luminance)).abs() < 0.02);
}

/// Of the person's own skin, only light is brought.
#[test]
fn in_their_own_reference_people_get_the_right_light() {
    let portraits = Portraits::get();
    let [naive, tone, light] = [0, 1, 2].map(|which| {
        portraits.scored(move |pair| {
            let own = Pair { reference_identity: pair.identity, ..pair.clone() };
            pasted(&own).2[which].clone()
        })
    });
    let [naive, tone, light] = [naive, tone, light].map(|rival| rival(Measure::Luminance));
    println!("{naive} {tone} {light}");
    assert!(light < 0.3 * naive && light < 0.3 * tone);
}

/// One pixel in a corner is enough, and one in the face is none.
#[test]
fn the_background_is_what_the_mask_leaves() {
    let portraits = Portraits::get();
    let pair = &portraits.pairs[0];
    let changed = |x: u32, y: u32| {
        let ([_, mut reference, _], ..) = pasted(pair);
        let red = &mut reference.rgb.get_pixel_mut(x, y).0[0];
        *red = if *red < 128 { *red + 100 } else { *red - 100 };
        portraits.judge.measured(pair, &reference.rgb)[&Measure::Background]
    };
    assert_eq!([changed(0, 0), changed(63, 63), changed(32, 32)], [100.0, 100.0, 0.0]);
}

/// A hard border of the mask is seen, wherever else the picture is rough.
#[test]
fn a_seam_is_on_the_border_of_the_mask() {
    let portraits = Portraits::get();
    let hard = |visible: bool| {
        portraits.scored(move |pair| {
            let ([_, reference, truth], mask, _) = pasted(pair);
            let mut made = reference.rgb;
            let inside = made.pixels_mut().zip(truth.rgb.pixels()).zip(mask.iter());
            for ((pixel, other), _) in inside.filter(|(_, mask)| **mask > 127) {
                *pixel = if visible { image::Rgb([255; 3]) } else { *other };
            }
            made
        })
    };
    let (white, person, reference) = (hard(true), hard(false), portraits.drawn(1));
    assert!(white(Measure::Seam) > person(Measure::Seam) + 0.05);
    assert!(person(Measure::Seam) > reference(Measure::Seam));
}
