//! Cells of two pictures of a person that show the same, and how often they are found.

use std::collections::BTreeMap;
use std::fmt;

use image::RgbImage;
use nalgebra::DMatrix;
use serde::{Serialize, Serializer};

use crate::{Head, Picture, flow};

/// Most cells of a grid.
pub const MOST_CELLS: usize = 4096;

/// What finds, for each cell of a target, the cell of a source that shows the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Matcher {
    /// What is judged, by its number.
    Level(usize),
    /// It is always the same cell.
    SamePlace,
    /// It is the one whose 3x3 cells have the colours that correlate most.
    Patches,
}

/// How well a matcher did in two pictures, over the cells that count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// The share of cells for which it was right.
    pub right: f64,
    /// The share of the largest group of cells for which it found the same one.
    pub largest: f64,
}

/// What came of each matcher in two pictures; nothing if no cell counts.
pub type Matched = BTreeMap<Matcher, Found>;

/// Whether a grid, given by its rows and columns, divides pictures of a size into cells of whole pixels.
pub fn divides(grid: [usize; 2], size: usize) -> bool {
    grid.iter().all(|parts| size.is_multiple_of(*parts))
}

/// Judges matches in a source and a target, and the matchers that need no network. A level holds for each cell of the target, row by row, the
/// number of a cell of the source.
///
/// A cell counts if what the target shows at its middle is seen in the source, too. It is right if the middle of the cell that was found is no
/// further from there than one cell.
///
/// # Panics
/// If the pictures are of different sizes, the grid does not divide them or has more than [`MOST_CELLS`], or a level is not of as many cells.
pub fn matched(
    head: &Head,
    [source, target]: [&Picture; 2],
    grid: [usize; 2],
    levels: &[Vec<usize>],
) -> Matched {
    assert_eq!(source.size(), target.size(), "pictures of one size");
    let cells = Cells::new(grid, source.size());
    let truth = cells.truth(head, source, target);
    let same: Vec<usize> = (0..cells.count()).collect();
    let patches = cells.patches(&source.rgb, &target.rgb);
    let levels = levels.iter().enumerate().map(|(number, own)| (Matcher::Level(number), own));
    let all = levels.chain([(Matcher::SamePlace, &same), (Matcher::Patches, &patches)]);
    all.filter_map(|(matcher, own)| Some((matcher, cells.found(&truth, own)?))).collect()
}

/// The cells of pictures.
struct Cells {
    /// Rows and columns.
    grid: [usize; 2],
    /// Height and width of a cell, in pixels.
    cell: [usize; 2],
}

impl Cells {
    fn new(grid: [usize; 2], size: usize) -> Self {
        assert!(divides(grid, size), "{grid:?} cells of {size}x{size} pixels");
        let cells = Self { grid, cell: grid.map(|parts| size / parts) };
        assert!(cells.count() <= MOST_CELLS, "{} cells", cells.count());
        cells
    }

    fn count(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// The row and the column of a cell.
    fn place(&self, cell: usize) -> [usize; 2] {
        [cell / self.grid[1], cell % self.grid[1]]
    }

    /// Of each cell of the target, where in the source that is which its middle shows, down and to the right in cells; none if it does not count.
    fn truth(&self, head: &Head, source: &Picture, target: &Picture) -> Vec<Option<[f32; 2]>> {
        let flow = flow(head, source, target);
        let [height, width] = self.cell;
        let one = |cell: usize| {
            let [row, column] = self.place(cell);
            let (y, x) = (row * height + height / 2, column * width + width / 2);
            let [x, y] = flow[y * target.size() + x].filter(|found| found.visible)?.place;
            Some([y / height as f32, x / width as f32])
        };
        (0..self.count()).map(one).collect()
    }

    /// None if no cell counts.
    fn found(&self, truth: &[Option<[f32; 2]>], own: &[usize]) -> Option<Found> {
        assert_eq!(own.len(), truth.len(), "a cell for each of the target");
        let (mut all, mut right, mut groups) = (0, 0, BTreeMap::<usize, usize>::new());
        for (truth, found) in truth.iter().zip(own) {
            let Some([down, across]) = truth else { continue };
            let [row, column] = self.place(*found).map(|at| at as f32 + 0.5);
            all += 1;
            right += usize::from((row - down).powi(2) + (column - across).powi(2) <= 1.0);
            *groups.entry(*found).or_default() += 1;
        }
        let largest = groups.into_values().max()?;
        let share = |count: usize| count as f64 / f64::from(all);
        Some(Found { right: share(right), largest: share(largest) })
    }

    /// Of each cell of the target, the one of the source that is most like it, the first of equals.
    fn patches(&self, source: &RgbImage, target: &RgbImage) -> Vec<usize> {
        let [source, target] = [source, target].map(|picture| self.windows(picture));
        let likeness = source.transpose() * target; // [cells of the source, of the target]
        likeness.column_iter().map(|column| column.argmax().0).collect()
    }

    /// `[values, cells]`, the colours of 3x3 cells around each.
    fn windows(&self, picture: &RgbImage) -> DMatrix<f32> {
        let windows: Vec<f32> =
            (0..self.count()).flat_map(|cell| self.window(picture, cell)).collect();
        DMatrix::from_vec(windows.len() / self.count(), self.count(), windows)
    }

    /// Colours around a cell, of mean 0 in each channel, and of length 1 unless there is but one colour. Beyond its border, the picture goes on
    /// as it ends there.
    fn window(&self, picture: &RgbImage, cell: usize) -> Vec<f32> {
        let [row, column] = self.place(cell);
        let [height, width] = self.cell;
        // In pixels, from one cell before to one after.
        let range = |at: usize, long: usize, last: u32| {
            let from = at * long;
            (from..from + 3 * long).map(move |place| place.saturating_sub(long).min(last as usize))
        };
        let places = range(row, height, picture.height() - 1).flat_map(|y| {
            range(column, width, picture.width() - 1).map(move |x| (x as u32, y as u32))
        });
        let pixels: Vec<[u8; 3]> = places.map(|(x, y)| picture.get_pixel(x, y).0).collect();
        let mut values = Vec::with_capacity(3 * pixels.len());
        for channel in 0..3 {
            let own = pixels.iter().map(|pixel| f64::from(pixel[channel]));
            let mean = own.clone().sum::<f64>() / pixels.len() as f64;
            values.extend(own.map(|value| value - mean));
        }
        let norm = values.iter().map(|value| value * value).sum::<f64>().sqrt();
        let scale = if norm > 1e-6 { 1.0 / norm } else { 0.0 };
        values.into_iter().map(|value| (value * scale) as f32).collect()
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(number) => f.pad(&format!("level {number}")),
            Self::SamePlace => f.pad("same place"),
            Self::Patches => f.pad("patches"),
        }
    }
}

/// `level_0`, `same_place`, `patches`.
impl Serialize for Matcher {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_string().replace(' ', "_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HEAD, Identity, Random, View, render};

    const GRID: [usize; 2] = [16, 16];

    /// A person, in some views.
    fn drawn<const N: usize>(views: [View; N]) -> (Head, [Picture; N]) {
        let head = Head::open(HEAD).unwrap();
        let person = Identity::numbered(&head, 4, 0);
        let pictures = views.map(|view| render(&head, &person, &view, 64));
        (head, pictures)
    }

    fn turned() -> [View; 2] {
        [-5.0, 25.0].map(|yaw| View { yaw, ..View::default() })
    }

    /// All cells moved to the right.
    fn moved(by: isize) -> Vec<usize> {
        let one = |cell: usize| {
            let column = (cell % 16).checked_add_signed(by).map_or(0, |column| column.min(15));
            cell / 16 * 16 + column
        };
        (0..256).map(one).collect()
    }

    #[test]
    fn the_truth_is_right_and_chance_is_not() {
        let (head, [source, target]) = drawn(turned());
        let truth = Cells::new(GRID, 64).truth(&head, &source, &target);
        assert!(truth.iter().flatten().count() > 50);
        let cell = |[down, across]: [f32; 2]| down as usize * 16 + across as usize;
        let exact: Vec<usize> = truth.into_iter().map(|place| place.map_or(0, cell)).collect();
        let mut random = Random::new(&[1]);
        let shuffled = random.shuffled((0..256).collect());
        let found = matched(&head, [&source, &target], GRID, &[exact, shuffled, vec![0; 256]]);
        let right = |matcher: Matcher| found[&matcher].right;
        assert_eq!(right(Matcher::Level(0)), 1.0);
        assert!(right(Matcher::Level(1)) < 0.06, "{found:?}");
        assert!((0.1..0.95).contains(&right(Matcher::SamePlace)), "{found:?}");
        assert_eq!(found[&Matcher::Level(2)].largest, 1.0);
        assert!(found[&Matcher::Level(0)].largest < 0.1 && found[&Matcher::Level(1)].largest < 0.1);
    }

    /// One cell further is near enough on the side where the middle pixel is, two are not.
    #[test]
    fn the_same_picture_shows_the_same_in_the_same_place() {
        let (head, [picture]) = drawn([View::default()]);
        let levels = [moved(1), moved(2)];
        let found = matched(&head, [&picture, &picture], GRID, &levels);
        for matcher in [Matcher::SamePlace, Matcher::Patches, Matcher::Level(0)] {
            assert_eq!(found[&matcher].right, 1.0, "{matcher}");
        }
        // But for cells at the border of the picture, which can move by one only.
        assert!(found[&Matcher::Level(1)].right < 0.05, "{found:?}");
        // The last pixel of the picture is in the last cell of grids that are not square, too.
        let found = matched(&head, [&picture, &picture], [4, 32], &[]);
        assert!(found.values().all(|found| found.right == 1.0));
    }

    /// By two cells to the right, so that what a cell shows was two cells to its left.
    #[test]
    fn what_has_moved_is_found_where_it_was() {
        let shifted = [0.0, 0.125].map(|right| View { shift: [right, 0.0], ..View::default() });
        let (head, [source, target]) = drawn(shifted);
        let found = matched(&head, [&source, &target], GRID, &[moved(-2), moved(2)]);
        let right = [Matcher::Level(0), Matcher::Level(1), Matcher::SamePlace, Matcher::Patches]
            .map(|matcher| found[&matcher].right);
        assert!(right[..3] == [1.0, 0.0, 0.0] && right[3] > 0.9, "{right:?}");
    }

    /// Nor how bright a picture is.
    #[test]
    fn windows_have_no_mean_and_length_1() {
        let (_, [picture]) = drawn([View::default()]);
        let cells = Cells::new(GRID, 64);
        let mut darker = picture.rgb.clone();
        darker.iter_mut().for_each(|value| *value /= 2);
        let [window, dark] = [&picture.rgb, &darker].map(|of| cells.window(of, 8 * 16 + 7));
        assert_eq!(window.len(), 3 * 12 * 12);
        let product = |other: &[f32]| window.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
        assert!((product(&window) - 1.0).abs() < 1e-5 && product(&dark) > 0.999);
        assert!(window.chunks(144).all(|channel| channel.iter().sum::<f32>().abs() < 1e-4));
        let gray = RgbImage::from_pixel(64, 64, image::Rgb([7; 3]));
        assert!(cells.window(&gray, 0).iter().all(|value| *value == 0.0));
        // In the corner, four times the four cells that there are, or parts of them.
        assert_eq!(cells.window(&picture.rgb, 255).len(), 432);
    }

    #[test]
    fn a_grid_divides_a_picture_into_whole_pixels() {
        assert!(divides([16, 8], 64) && divides([64, 1], 64));
        assert!([[0, 8], [8, 0], [24, 8], [8, 128]].iter().all(|grid| !divides(*grid, 64)));
    }
}
