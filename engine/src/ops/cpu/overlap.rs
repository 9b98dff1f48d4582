//! Overlap-add of squares, in one pass over them.

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::bridge::Kernel;
use super::buffers::{shape, tensor, values};

/// [`overlap_add`](crate::ops::overlap_add): the one input is the squares.
#[derive(Debug, Clone)]
pub(in crate::ops) struct OverlapAdd {
    pub(in crate::ops) patch: usize,
    /// What each line, and each column, of each square contributes.
    pub(in crate::ops) shares: [Vec<f32>; 2],
}

impl OverlapAdd {
    fn side(&self) -> usize {
        2 * self.patch
    }

    /// Squares above each other and beside each other.
    fn grid(&self) -> [usize; 2] {
        self.shares.each_ref().map(|shares| shares.len() / self.side())
    }

    /// Pixels above each other and beside each other.
    fn size(&self) -> [usize; 2] {
        self.grid().map(|count| count * self.patch)
    }

    /// Of the lines of a square along one axis, `(line, pixel, share)` of those within the image.
    fn lines(&self, axis: usize, square: usize) -> impl Iterator<Item = (usize, usize, f32)> {
        let (size, shares) = (self.size()[axis], &self.shares[axis][square * self.side()..]);
        let within = move |line: usize| {
            let pixel = (square * self.patch + line).checked_sub(self.patch / 2)?;
            (pixel < size).then(|| (line, pixel, shares[line]))
        };
        (0..self.side()).filter_map(within)
    }

    /// Calls `f` with the places of each value of an image's squares and of the pixel that it is a part of, and with
    /// its share. Both are of the first channel: the next ones follow each value, and lie a plane apart.
    #[inline(always)]
    fn each(&self, channels: usize, mut f: impl FnMut(usize, usize, f32)) {
        let ([rows, columns], side, width) = (self.grid(), self.side(), self.size()[1]);
        for square in 0..rows * columns {
            for (line, y, share) in self.lines(0, square / columns) {
                for (column, x, part) in self.lines(1, square % columns) {
                    let value = ((square * side + line) * side + column) * channels;
                    f(value, y * width + x, share * part);
                }
            }
        }
    }
}

impl Kernel for OverlapAdd {
    fn forward(&self, inputs: Vec<FlexTensor>) -> FlexTensor {
        let squares = inputs[0].to_contiguous();
        let [batch, tokens, width]: [usize; 3] =
            shape(&squares).try_into().expect("three dimensions");
        let ([height, columns], channels) = (self.size(), width / self.side().pow(2));
        let plane = height * columns;
        let mut out = vec![0.0; batch * channels * plane];
        let images = values(&squares).par_chunks_exact(tokens * width);
        out.par_chunks_exact_mut(channels * plane).zip(images).for_each(|(out, squares)| {
            self.each(channels, |value, pixel, share| {
                for (channel, value) in squares[value..][..channels].iter().enumerate() {
                    out[channel * plane + pixel] += share * value;
                }
            });
        });
        tensor(out, &[batch, channels, height, columns])
    }

    fn backward(
        &self,
        inputs: Vec<FlexTensor>,
        gradient: FlexTensor,
        _: &[bool],
    ) -> Vec<Option<FlexTensor>> {
        let [batch, tokens, width]: [usize; 3] =
            shape(&inputs[0]).try_into().expect("three dimensions");
        let gradient = gradient.to_contiguous();
        let (plane, channels) = (self.size().iter().product::<usize>(), width / self.side().pow(2));
        // Values beyond the image have no part in it.
        let mut out = vec![0.0; batch * tokens * width];
        let images = values(&gradient).par_chunks_exact(channels * plane);
        out.par_chunks_exact_mut(tokens * width).zip(images).for_each(|(out, gradient)| {
            self.each(channels, |value, pixel, share| {
                for (channel, value) in out[value..][..channels].iter_mut().enumerate() {
                    *value = share * gradient[channel * plane + pixel];
                }
            });
        });
        vec![Some(tensor(out, &[batch, tokens, width]))]
    }
}
