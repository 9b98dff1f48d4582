use burn::tensor::{Device, TensorData};
use pyrograph_engine::random::Generator;

use super::*;

fn reading() -> Reading {
    let values = Generator::new(3).normal(3 * 16 * 16);
    let device = &Device::flex();
    let picture = Tensor::<4>::from_data(TensorData::new(values, [1, 3, 16, 16]), device) * 0.4;
    // A square of six pixels.
    let face = (0..256).map(|i| {
        if (5..11).contains(&(i % 16)) && (5..11).contains(&(i / 16)) { 1.0 } else { 0.0 }
    });
    let face = TensorData::new(face.collect::<Vec<f32>>(), [1, 1, 16, 16]);
    Reading { picture, face: Tensor::from_data(face, device) }
}

fn is_face(x: u32, y: u32) -> bool {
    (5..11).contains(&x) && (5..11).contains(&y)
}

/// Of the outlines inside the face as many are left as are asked for; all others are the reference's.
#[test]
fn outlines_inside_the_face_are_left_out() {
    let reading = reading();
    let all = picture(ControlKind::Edges.of(reading.picture.clone())).expect("finite");
    let [none, half, whole] = [0.0, 0.5, 1.0].map(|inner| reading.outlines(inner).expect("finite"));
    assert_eq!(whole, all);
    for (x, y, pixel) in all.enumerate_pixels() {
        let (none, half) = (none.get_pixel(x, y), half.get_pixel(x, y));
        match is_face(x, y) {
            true => {
                assert_eq!(none.0, [0; 3]);
                assert!((f32::from(half[0]) - f32::from(pixel[0]) / 2.0).abs() <= 1.0);
            }
            false => assert_eq!((none, half), (pixel, pixel)),
        }
    }
}

/// The seam is a sixteenth of the side wide, and what is put in changes nothing outside the face.
#[test]
fn a_face_is_put_in_and_its_seam_is_around_it() {
    let reading = reading();
    let seam = picture(reading.seam()).expect("finite");
    for (x, y, pixel) in seam.enumerate_pixels() {
        let near = (4..12).contains(&x) && (4..12).contains(&y);
        assert_eq!(pixel.0, [if near { 255 } else { 0 }; 3], "{x}, {y}");
    }
    let before = picture(reading.picture.clone()).expect("finite");
    let other = reading.picture.clone() * -1.0;
    let inside = picture(other.clone()).expect("finite");
    for hard in [false, true] {
        let found = reading.pasted(other.clone(), hard).expect("finite");
        for (x, y, pixel) in found.enumerate_pixels() {
            let from = if is_face(x, y) { &inside } else { &before };
            assert_eq!(pixel, from.get_pixel(x, y));
        }
    }
}
