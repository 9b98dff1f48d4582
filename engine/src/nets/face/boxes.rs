//! From the answers of the detector to boxes.

use super::detector::ANSWERS;

/// Width and height of the boxes that each cell starts from, in cells.
pub(super) const ANCHORS: [[f32; 2]; 5] = [
    [1.603231, 2.094468],
    [6.041143, 7.080126],
    [2.882459, 3.518061],
    [4.266906, 5.178857],
    [9.041765, 10.66308],
];
/// Of two boxes that share more than this part of what they cover, the worse one goes.
const OVERLAP: f32 = 0.4;

/// A box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Smallest x.
    pub left: f32,
    /// Smallest y.
    pub top: f32,
    /// Along x.
    pub width: f32,
    /// Along y.
    pub height: f32,
}

/// A box with what may be a face.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// As shares of the sides of the square.
    pub bounds: Bounds,
    /// Probability that it is one.
    pub score: f32,
}

impl Bounds {
    /// What it covers.
    pub fn area(&self) -> f32 {
        self.width * self.height
    }

    /// What both cover, as a share of what either covers; 0 where neither covers anything.
    pub fn overlap(&self, other: &Bounds) -> f32 {
        let shared = |start: [f32; 2], length: [f32; 2]| {
            let end = (start[0] + length[0]).min(start[1] + length[1]);
            (end - start[0].max(start[1])).max(0.0)
        };
        let both = shared([self.left, other.left], [self.width, other.width])
            * shared([self.top, other.top], [self.height, other.height]);
        let either = self.area() + other.area() - both;
        if either > 0.0 { both / either } else { 0.0 }
    }
}

/// The boxes in the answers for one picture, `[cells, cells, 25]`, with at least this score, the best first; of boxes that
/// overlap only the best (non-maximum suppression). A box's centre lies in its cell, and its size is a multiple of its
/// anchor's (YOLOv2, section 2).
///
/// # Panics
/// For another number of answers.
pub fn found(answers: &[f32], cells: usize, least: f32) -> Vec<Found> {
    let each = ANCHORS.len() * ANSWERS;
    assert_eq!(answers.len(), cells * cells * each, "answers for {cells} x {cells} cells");
    let boxes = answers.chunks_exact(each).enumerate().flat_map(|(cell, answers)| {
        let (row, column) = (cell / cells, cell % cells);
        let anchors = answers.chunks_exact(ANSWERS).zip(ANCHORS);
        anchors.map(move |(answers, anchor)| {
            let place = |cell: usize, answer: f32| (cell as f32 + sigmoid(answer)) / cells as f32;
            let size = |anchor: f32, answer: f32| answer.exp() * anchor / cells as f32;
            let [width, height] = [0, 1].map(|i| size(anchor[i], answers[2 + i]));
            let left = place(column, answers[0]) - width / 2.0;
            let top = place(row, answers[1]) - height / 2.0;
            Found { bounds: Bounds { left, top, width, height }, score: sigmoid(answers[4]) }
        })
    });
    let mut boxes: Vec<Found> = boxes.filter(|found| found.score >= least).collect();
    boxes.retain(|found| found.bounds.area().is_finite() && found.bounds.area() > 0.0);
    boxes.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Found> = Vec::new();
    for found in boxes {
        if kept.iter().all(|better| better.bounds.overlap(&found.bounds) <= OVERLAP) {
            kept.push(found);
        }
    }
    kept
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
