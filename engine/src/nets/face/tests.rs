use burn::module::Module;
use burn::tensor::{Device, Tensor};

use super::boxes::{ANCHORS, Bounds, found};
use super::*;
use crate::testing::{Draws, random};

/// Answers without a face, of a grid of so many cells.
fn nothing(cells: usize) -> Vec<f32> {
    [0.0, 0.0, 0.0, 0.0, -20.0].repeat(cells * cells * ANCHORS.len())
}

/// The answers of an anchor in a cell.
fn put(answers: &mut [f32], cells: usize, [row, column, anchor]: [usize; 3], values: [f32; 5]) {
    let at = ((row * cells + column) * ANCHORS.len() + anchor) * 5;
    answers[at..at + 5].copy_from_slice(&values);
}

#[test]
fn boxes_by_hand() {
    let mut answers = nothing(4);
    put(&mut answers, 4, [1, 2, 0], [0.0, 0.0, 0.0, f32::ln(2.0), 0.0]);
    let boxes = found(&answers, 4, 0.3);
    let [width, height] = [1.603231 / 4.0, 2.0 * 2.094468 / 4.0];
    let bounds = Bounds { left: 0.625 - width / 2.0, top: 0.375 - height / 2.0, width, height };
    assert_eq!(boxes.len(), 1);
    let [found, expected] =
        [boxes[0].bounds, bounds].map(|b| [b.left, b.top, b.width, b.height, b.left + b.width]);
    found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{found:?}"));
    assert_eq!(boxes[0].score, 0.5);
    assert!(super::found(&answers, 4, 0.6).is_empty() && super::found(&[], 0, 0.1).is_empty());
}

#[test]
fn of_boxes_that_overlap_the_best_is_kept() {
    let mut answers = nothing(8);
    // The same face seen from two cells, and another far away.
    put(&mut answers, 8, [2, 2, 0], [4.0, 0.0, 0.0, 0.0, 1.0]);
    put(&mut answers, 8, [2, 3, 0], [-4.0, 0.0, 0.0, 0.0, 2.0]);
    put(&mut answers, 8, [6, 6, 0], [0.0, 0.0, 0.0, 0.0, 0.5]);
    // Sizes beyond numbers are no boxes.
    put(&mut answers, 8, [0, 0, 0], [0.0, 0.0, 100.0, 100.0, 9.0]);
    put(&mut answers, 8, [0, 1, 0], [0.0, 0.0, f32::NAN, 0.0, 9.0]);
    let boxes = found(&answers, 8, 0.1);
    let scores: Vec<f32> = boxes.iter().map(|found| found.score).collect();
    let expected = [2.0f32, 0.5].map(|x| 1.0 / (1.0 + (-x).exp()));
    assert_eq!(scores, expected);
}

#[test]
fn overlap_is_shared_over_covered() {
    let bounds = |left, width| Bounds { left, top: 0.0, width, height: 2.0 };
    assert_eq!(bounds(0.0, 2.0).overlap(&bounds(0.0, 2.0)), 1.0);
    assert_eq!(bounds(0.0, 2.0).overlap(&bounds(1.0, 2.0)), 1.0 / 3.0);
    assert_eq!(bounds(0.0, 1.0).overlap(&bounds(1.0, 1.0)), 0.0);
    assert_eq!(bounds(0.0, 0.0).overlap(&bounds(0.0, 0.0)), 0.0);
}

/// A picture's answer does not depend on those beside it; the names and sizes of the published files.
#[test]
fn pictures_of_a_batch_do_not_see_each_other() {
    let device = Device::flex();
    let close = |all: Tensor<2>, first: Tensor<2>, what: &str| {
        let worst = (all.narrow(0, 0, 1) - first).abs().max().into_scalar::<f32>();
        assert!(worst < 1e-5, "{what}: {worst}");
    };
    let draws = &mut Draws::new(1, 0.05);
    let detector = FaceDetector::new(&device);
    assert_eq!(detector.num_params(), 193_321);
    let detector = detector.map(draws).folded();
    let x = random([2, 3, 96, 96]).clamp(-1.0, 1.0);
    let flat = |y: Tensor<4>| y.clone().reshape([y.dims()[0] as i32, -1]);
    let (all, first) = (detector.forward(x.clone()), detector.forward(x.narrow(0, 0, 1)));
    assert_eq!(all.dims(), [2, 3, 3, 25]);
    close(flat(all), flat(first), "detector");

    let x = random([2, 3, READER_SIDE, READER_SIDE]).clamp(-1.0, 1.0);
    let readers = [
        (FaceReader::landmarks(&device), 2 * LANDMARKS, 356_840),
        (FaceReader::expressions(&device), EXPRESSIONS.len(), 323_687),
    ];
    for (reader, answers, parameters) in readers {
        assert_eq!(reader.num_params(), parameters);
        let reader = reader.map(draws).folded();
        let all = reader.forward(x.clone());
        assert_eq!(all.dims(), [2, answers]);
        close(all, reader.forward(x.clone().narrow(0, 0, 1)), "reader");
    }

    let recogniser = FaceRecogniser::new(&device);
    assert_eq!(recogniser.num_params(), 5_614_592);
    let recogniser = recogniser.map(&mut Draws::new(2, 0.02)).folded();
    let x = random([2, 3, RECOGNISER_SIDE, RECOGNISER_SIDE]).clamp(-1.0, 1.0);
    let all = recogniser.forward(x.clone());
    assert_eq!(all.dims(), [2, DESCRIPTOR]);
    close(all, recogniser.forward(x.narrow(0, 0, 1)), "recogniser");
}
