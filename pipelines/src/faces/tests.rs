use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use burn::tensor::{Tensor, TensorData};
use image::{Rgb, imageops};
use proptest::prelude::*;
use pyrograph_engine::random::Generator;
use pyrograph_weights::write_safetensors;

use super::*;
use crate::error::Error;

/// The shipped networks, opened once.
fn faces() -> &'static Faces {
    static FACES: OnceLock<Faces> = OnceLock::new();
    FACES.get_or_init(|| Faces::open(&Device::flex()).expect("the shipped networks"))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/faces")
}

/// A rendered head of 256 x 256 pixels: 0 and 1 show one person, 2 and 3 two others.
fn head(i: usize) -> RgbImage {
    image::open(folder().join(format!("head-{i}.png"))).expect("a fixture").to_rgb8()
}

fn numbers<const D: usize>(answers: Tensor<D>) -> Vec<f32> {
    read::numbers(answers).expect("answers")
}

fn face_of(photo: &RgbImage) -> Face {
    let found = faces().find(photo).expect("answers");
    faces().pick(photo, &found, None).expect("a face").clone()
}

fn expected() -> Checkpoint {
    Checkpoint::open(folder().join("expected.safetensors")).expect("the reference's answers")
}

/// Pseudo-random bits of a place.
fn hash(i: u32) -> u32 {
    let x = (i ^ (i >> 15)).wrapping_mul(2246822519);
    x ^ (x >> 13)
}

/// Noise, which the reference makes by the same formula.
fn noise(side: u32) -> RgbImage {
    let level = |i: u32| (hash(i.wrapping_mul(2654435761)) >> 24) as u8;
    RgbImage::from_fn(side, side, |x, y| Rgb([0, 1, 2].map(|c| level((c * side + y) * side + x))))
}

fn grey(side: u32) -> RgbImage {
    RgbImage::from_pixel(side, side, Rgb([127; 3]))
}

/// Without a face: a smooth picture.
fn waves(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let value = |c: f64| {
            let phase = 0.05 * (c + 1.0) * f64::from(y) + 0.07 * f64::from(x) + c;
            (127.5 + 120.0 * phase.sin()).round() as u8
        };
        Rgb([value(0.0), value(1.0), value(2.0)])
    })
}

/// Compares answers to what a network of this name is shown with those of the reference.
fn assert_answers(net: &str, part: [u32; 2], answer: impl Fn(&RgbImage) -> Vec<f32>) {
    let (expected, [start, side]) = (expected(), part);
    let mut inputs = vec![("noise".to_owned(), noise(side)), ("grey".to_owned(), grey(side))];
    inputs.extend((0..4).map(|i| {
        let part = imageops::crop_imm(&head(i), start, start, side, side).to_image();
        (format!("head-{i}"), part)
    }));
    for (name, picture) in inputs {
        let name = format!("{net}.{name}");
        let (values, _) = expected.read_f32(&name).expect("an answer");
        let found = answer(&picture);
        assert_eq!(found.len(), values.len(), "{name}");
        let most = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        let far = found.iter().zip(&values).map(|(a, b)| (a - b).abs() / most);
        let far = far.fold(0f32, |far, value| if value <= far { far } else { value });
        println!("{name}: {far:.1e} of the maximum");
        assert!(far < 1e-4, "{name}: {far:.1e}");
    }
}

fn seen(picture: &RgbImage) -> Tensor<4> {
    rgb_tensor(std::slice::from_ref(picture), &Device::flex())
}

#[test]
fn networks_answer_as_the_reference() {
    let faces = faces();
    assert_answers("detector", [0, 256], |x| numbers(faces.detector.forward(seen(x))));
    assert_answers("landmarks", [72, 112], |x| numbers(faces.reader.forward(seen(x))));
    assert_answers("recogniser", [53, 150], |x| numbers(faces.recogniser.forward(seen(x))));
}

/// The reader of expressions, which is not shipped, with weights of the reference's formula.
#[test]
fn expressions_as_the_reference() {
    let find = model::find(Path::new(READER)).expect("the shipped landmarks");
    let shapes = Checkpoint::open(find).expect("a checkpoint");
    let tensors: Vec<(String, TensorData)> = shapes
        .tensors()
        .iter()
        .zip(0u32..)
        .map(|((name, info), seed)| {
            let shape = match name.as_str() {
                "fc/weights" => vec![256, 7],
                "fc/bias" => vec![7],
                _ => info.shape.clone(),
            };
            let summed: usize = match name.ends_with("depthwise_filter") {
                true => shape[..2].iter().product(),
                false => shape[..shape.len() - 1].iter().product(),
            };
            let scale = if shape.len() == 1 { 0.5 } else { (24.0 / summed as f64).sqrt() };
            let count: usize = shape.iter().product();
            let value = |i: u32| {
                let place = i.wrapping_mul(2654435761).wrapping_add(seed.wrapping_mul(40503));
                ((f64::from(hash(place)) / 2f64.powi(32) - 0.5) * scale) as f32
            };
            let values: Vec<f32> = (0..count as u32).map(value).collect();
            (name.clone(), TensorData::new(values, shape))
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("expression.safetensors");
    write_safetensors(&path, &tensors, &Default::default()).expect("written");
    let expressions = Expressions::open(&path, &Device::flex()).expect("the formula's weights");
    assert_answers("expression", [72, 112], |x| numbers(expressions.reader.forward(seen(x))));
    let photo = head(0);
    let read = expressions.read(&photo, &face_of(&photo)).expect("an expression");
    assert!((read.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{read:?}");
}

/// Boxes and landmarks in whole pictures, which the reference resizes by another program: a box at the border between two
/// pixels may be cut at the other one, which moves landmarks by up to 2 of 256 pixels.
#[test]
fn faces_are_where_the_reference_finds_them() {
    for i in 0..4 {
        let (name, photo) = (format!("faces.head-{i}"), head(i));
        let (values, shape) = expected().read_f32(&name).expect("faces");
        let found = faces().find(&photo).expect("answers");
        assert_eq!(found.len(), shape[0], "{name}");
        for (face, values) in found.iter().zip(values.chunks(shape[1])) {
            let Bounds { left, top, width, height } = face.bounds;
            let points = face.landmarks.as_flattened();
            let ours = [left, top, width, height].into_iter().chain(points.iter().copied());
            let theirs = values[..4].iter().chain(&values[5..]);
            let far = ours.zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name}: {far} pixels, score {} and {}", face.score, values[4]);
            assert!(far < 3.0 && (face.score - values[4]).abs() < 0.02, "{name}: {far} pixels");
        }
        let [left, right, nose, ..] = found[0].five();
        assert!(left[0] < right[0] && nose[1] > left[1].max(right[1]));
    }
}

#[test]
fn descriptors_are_stable_and_tell_persons_apart() {
    let faces = faces();
    let of = |x: &RgbImage| -> [f32; DESCRIPTOR] {
        numbers(faces.recogniser.forward(seen(x))).try_into().expect("a descriptor")
    };
    let flat = of(&grey(150));
    assert!(flat.iter().all(|value| value.is_finite()) && flat == of(&grey(150)));
    // The same photograph, 2 pixels apart.
    let part = |x: u32| imageops::crop_imm(&head(0), x, 53, 150, 150).to_image();
    let shifted = distance(&of(&part(53)), &of(&part(55)));
    assert!(shifted > 0.0 && shifted < 0.3, "{shifted}");
    let persons = [0, 1, 2, 3].map(|i| {
        let photo = head(i);
        let found = faces.find(&photo).expect("answers");
        faces.descriptor(&photo, &found[0]).expect("a descriptor")
    });
    let same = distance(&persons[0], &persons[1]);
    let others = [(0, 2), (0, 3), (1, 2), (1, 3)].map(|(a, b)| distance(&persons[a], &persons[b]));
    println!("same person {same}, others {others:?}");
    assert!(same < SAME_PERSON && others.iter().all(|other| same + 0.05 < *other));
}

/// Two heads of different sizes.
/// Nothing is between a picture and itself; another head and another light are told apart, and a picture without a face says
/// so.
#[test]
fn portraits_are_compared_with_what_they_were_made_from() {
    let (own, other) = (head(0), head(2));
    let likeness = |person: Option<&RgbImage>, reference: &RgbImage, portrait: &RgbImage| {
        let compared = faces().compared(person, reference, portrait.dimensions());
        compared.and_then(|compared| compared.likeness(portrait))
    };
    let same = likeness(Some(&own), &own, &own).expect("faces");
    assert_eq!(same, Likeness { identity: Some(0.0), leakage: Some(0.0), light: Some(0.0) });
    let apart = likeness(Some(&own), &own, &other).expect("faces");
    assert!(apart.identity == apart.leakage && apart.identity > Some(0.1), "{apart:?}");
    let mut dark = own.clone();
    dark.iter_mut().for_each(|value| *value /= 2);
    let found = likeness(Some(&own), &own, &dark).expect("faces");
    assert!(found.light > Some(0.1), "{found:?}");
    let none = RgbImage::from_pixel(90, 90, image::Rgb([40; 3]));
    let found = likeness(None, &own, &none).expect("a reference");
    assert!(found.identity.is_none() && found.leakage.is_none() && found.light.is_some());
    let found = likeness(Some(&own), &none, &own).expect("a person");
    assert!(found.identity == Some(0.0) && found.leakage.is_none() && found.light.is_none());
}

#[test]
fn the_largest_face_is_picked_unless_another_is_asked_for() {
    let mut photo = RgbImage::from_pixel(600, 400, Rgb([90, 110, 130]));
    for (i, side, x) in [(1, 160, 40), (0, 180, 330)] {
        let small = imageops::resize(&head(i), side, side, imageops::FilterType::CatmullRom);
        imageops::replace(&mut photo, &small, x, 120);
    }
    let found = faces().find(&photo).expect("answers");
    assert_eq!(found.len(), 2);
    assert!(found[0].bounds.area() > found[1].bounds.area() && found[0].bounds.left > 300.0);
    let pick = |number| faces().pick(&photo, &found, number);
    assert_eq!(pick(None).expect("the largest"), &found[0]);
    assert_eq!(pick(Some(2)).expect("the other"), &found[1]);
    for number in [0, 3] {
        let refused = pick(Some(number)).expect_err("no such face");
        assert!(matches!(refused, FaceError::Number { found: 2, .. }), "{refused}");
        assert_eq!(refused.to_string(), format!("face {number} asked for, of 2"));
    }
}

#[test]
fn what_is_no_good_face_is_refused() {
    let [waves, empty] = [waves(300, 200), RgbImage::new(0, 0)];
    for (photo, text) in [(&waves, "300x200"), (&empty, "0x0")] {
        let found = faces().find(photo).expect("answers");
        let refused = faces().pick(photo, &found, None).expect_err("no face");
        assert_eq!(refused.to_string(), format!("no face found in {text} pixels"));
    }
    assert!(faces().find(&RgbImage::new(1, 4000)).expect("answers").is_empty());
    let photo = head(2);
    let (found, device) = (faces().find(&photo).expect("answers"), Device::flex());
    let limited = |change: &dyn Fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        let faces = Faces::open(&device).expect("networks").with_limits(limits);
        faces.pick(&photo, &found, None).expect_err("a limit")
    };
    let small = limited(&|limits| limits.width = 200.0);
    assert!(matches!(small, FaceError::Small { number: 1, least: 200.0, .. }), "{small}");
    let turned = limited(&|limits| limits.turn = 20.0);
    assert!(matches!(turned, FaceError::Turned { degrees: -60.0..-20.0, .. }), "{turned}");
    assert!(turned.to_string().ends_with("degrees, expected at most 20"), "{turned}");
}

/// A face from the front in a picture, its eyes 40 pixels apart, turned clockwise in the picture's plane.
fn drawn(turned: f64) -> Face {
    let (sin, cos) = turned.to_radians().sin_cos();
    let mut landmarks = [[0.0, 0.0]; LANDMARKS];
    let mut put = |i: usize, [x, y]: [f64; 2]| {
        let [x, y] = [40.0 * (x * cos - y * sin) + 100.0, 40.0 * (x * sin + y * cos) + 90.0];
        landmarks[i] = [x as f32, y as f32];
    };
    (0..17).for_each(|i| {
        let angle = std::f64::consts::PI * i as f64 / 16.0;
        put(i, [-1.2 * angle.cos(), 1.9 * angle.sin()]);
    });
    (17..27).for_each(|i| put(i, [(i as f64 - 21.5) * 0.2, -0.4]));
    (27..31).for_each(|i| put(i, [0.0, 0.19 * (i as f64 - 27.0)]));
    (31..36).for_each(|i| put(i, [(i as f64 - 33.0) * 0.1, 0.65]));
    (36..48).for_each(|i| put(i, [if i < 42 { -0.5 } else { 0.5 }, 0.0]));
    (48..68).for_each(|i| put(i, [(i as f64 - 51.0) * 0.138, 1.155]));
    let bounds = Bounds { left: 50.0, top: 50.0, width: 100.0, height: 110.0 };
    Face { bounds, score: 1.0, landmarks }
}

#[test]
fn crops_are_upright_and_framed() {
    for (turned, framing) in [(0.0, Framing::FACE), (25.0, Framing::PORTRAIT)] {
        let face = drawn(turned);
        assert!(face.turn().abs() < 1e-3, "{}", face.turn());
        let place = Alignment::new(&face, framing, 200).expect("a place");
        let [left, right, nose, ..] = face.five().map(|point| place.place(point));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 0.1, "{a} {b}");
        near(left[1], framing.line * 200.0);
        near(right[1], framing.line * 200.0);
        near(right[0] - left[0], framing.eyes * 200.0);
        near(nose[0], 100.0);
    }
    for side in [0, 4096] {
        let refused = Alignment::new(&drawn(0.0), Framing::FACE, side).expect_err("a side");
        assert!(matches!(refused, Error::Setting { .. }), "{refused}");
    }
    let flat = Face { landmarks: [[3.0, 4.0]; LANDMARKS], ..drawn(0.0) };
    let refused = Alignment::new(&flat, Framing::FACE, 64).expect_err("no face");
    assert!(matches!(refused, Error::Face(FaceError::Landmarks)), "{refused}");
    assert_eq!(flat.turn(), 90.0);
}

/// Each pixel of the photograph is the crop's where the mask is 1, and keeps its bits where it is 0.
#[test]
fn pasting_leaves_what_is_outside_the_mask() {
    let (photo, face) = (waves(220, 240), drawn(12.0));
    let place = Alignment::new(&face, Framing::PORTRAIT, 160).expect("a place");
    let other = RgbImage::from_fn(160, 160, |x, y| Rgb([x as u8, 255 - y as u8, 7]));
    let paste = |mask: &Mask| place.paste_back(&photo, &other, mask).expect("a picture");
    let mask = |value: f32| Mask::new(160, vec![value; 160 * 160]).expect("a mask");
    assert_eq!(paste(&mask(0.0)), photo);
    let (whole, feathered) = (paste(&mask(1.0)), Mask::of_face(&face, &place, Mask::FEATHER));
    let feathered = feathered.expect("a mask");
    let result = paste(&feathered);
    let sampler = sample::Sampler::new(&other, place.to_crop());
    let [mut kept, mut replaced] = [0, 0];
    for (x, y, pixel) in photo.enumerate_pixels() {
        let at = place.to_crop().apply([x, y].map(|at| f64::from(at) + 0.5));
        let inside = at.iter().all(|at| (0.0..=160.0).contains(at));
        let warped = Rgb(sampler.at(x, y).map(|level| level.round() as u8));
        assert_eq!(*whole.get_pixel(x, y), if inside { warped } else { *pixel });
        match feathered.at(at) {
            0.0 => {
                kept += 1;
                assert_eq!(result.get_pixel(x, y), pixel);
            }
            1.0 => {
                replaced += 1;
                assert_eq!(*result.get_pixel(x, y), warped);
            }
            share => assert!(share > 0.0 && share < 1.0),
        }
    }
    assert!(kept > 20_000 && replaced > 5_000, "{kept} kept, {replaced} replaced");
    let wrong = place.paste_back(&photo, &RgbImage::new(159, 160), &feathered);
    assert!(matches!(wrong, Err(Error::Setting { .. })), "{wrong:?}");
}

/// A crop that nobody changed, put back: what was there, but for two interpolations.
#[test]
fn what_is_cut_out_and_put_back_is_the_same() {
    let (photo, face) = (waves(220, 240), drawn(-20.0));
    for side in [100, 160, 400] {
        let place = Alignment::new(&face, Framing::PORTRAIT, side).expect("a place");
        let mask = Mask::new(side, vec![1.0; side * side]).expect("a mask");
        let crop = place.crop(&photo);
        let back = place.paste_back(&photo, &crop, &mask).expect("a picture");
        let apart = photo.iter().zip(back.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)));
        let mean = apart.sum::<f64>() / photo.len() as f64 / 255.0;
        println!("{side}: {mean}");
        assert!(mean < 0.02, "{side}: {mean}");
    }
}

#[test]
fn masks_cover_the_face_and_fade_before_the_edge() {
    let face = drawn(5.0);
    for framing in [Framing::FACE, Framing::PORTRAIT] {
        let place = Alignment::new(&face, framing, 128).expect("a place");
        let mask = Mask::of_face(&face, &place, Mask::FEATHER).expect("a mask");
        let of = |point: Point| mask.at(place.place(point));
        assert!(face.five().into_iter().all(|point| of(point) == 1.0));
        let value = |x: usize, y: usize| mask.values()[y * 128 + x];
        for i in 0..128 {
            let edges = [value(i, 0), value(i, 127), value(0, i), value(127, i)];
            assert_eq!(edges, [0.0; 4], "{i}");
        }
        assert!(mask.values().iter().all(|value| (0.0..=1.0).contains(value)));
        let hard = Mask::of_face(&face, &place, 0.0).expect("a mask");
        assert!(hard.values().iter().all(|value| [0.0, 1.0].contains(value)));
    }
    let place = Alignment::new(&face, Framing::FACE, 128).expect("a place");
    for feather in [-0.1, 0.3, f64::NAN] {
        assert!(Mask::of_face(&face, &place, feather).is_err(), "{feather}");
    }
    assert!(Mask::new(3, vec![0.5; 8]).is_err() && Mask::new(1, vec![f32::NAN]).is_err());
}

/// A similarity as a function.
fn similarity(scale: f64, degrees: f64, shift: [f64; 2]) -> impl Fn([f64; 2]) -> [f64; 2] {
    let (sin, cos) = degrees.to_radians().sin_cos();
    move |[x, y]| [scale * (x * cos - y * sin) + shift[0], scale * (x * sin + y * cos) + shift[1]]
}

/// Five points of a face.
fn five() -> [[f64; 2]; 5] {
    drawn(0.0).five().map(|point| point.map(f64::from))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn similarities_are_recovered(
        scale in 0.5..2.0f64,
        degrees in -40.0..40.0f64,
        x in -300.0..300.0f64,
        y in -300.0..300.0f64,
    ) {
        let map = similarity(scale, degrees, [x, y]);
        let found = Similarity::fit(&five(), &five().map(&map)).expect("a map");
        prop_assert!((found.scale() - scale).abs() < 1e-4);
        for point in [[0.0, 0.0], [500.0, -20.0]] {
            let (found, back, there) = (found.apply(point), found.inverse(), map(point));
            for (a, b) in found.into_iter().zip(there).chain(back.apply(there).into_iter().zip(point)) {
                prop_assert!((a - b).abs() < 1e-4, "{} {}", a, b);
            }
        }
    }
}

/// With an error of one pixel in each coordinate, half of the maps are not farther off than that.
#[test]
fn similarities_of_inexact_points() {
    let mut generator = Generator::new(5);
    let mut off: Vec<f64> = (0..100)
        .map(|i| {
            let part = f64::from(i) / 100.0;
            let map = similarity(0.5 + 1.5 * part, 80.0 * part - 40.0, [30.0 * part, -12.0]);
            let exact = five().map(map);
            let noise = generator.normal(10);
            let seen = std::array::from_fn::<[f64; 2], 5, _>(|i| {
                [0, 1].map(|axis| exact[i][axis] + f64::from(noise[2 * i + axis]))
            });
            let found = Similarity::fit(&five(), &seen).expect("a map");
            let far = five().into_iter().zip(exact).map(|(point, [x, y])| {
                let [u, v] = found.apply(point);
                (u - x).hypot(v - y)
            });
            far.sum::<f64>() / 5.0
        })
        .collect();
    off.sort_by(f64::total_cmp);
    println!("median {}", off[50]);
    assert!(off[50] <= 1.0, "{}", off[50]);
}
