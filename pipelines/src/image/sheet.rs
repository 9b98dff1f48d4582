//! Pictures side by side.

use image::{RgbImage, imageops};

/// Pictures side by side in rows of `columns`, with `gap` pixels of `background` around each.
///
/// # Panics
/// Without pictures.
pub fn contact_sheet(
    pictures: &[RgbImage],
    columns: usize,
    gap: u32,
    background: [u8; 3],
) -> RgbImage {
    let columns = columns.clamp(1, pictures.len());
    let width = pictures.iter().map(RgbImage::width).max().expect("at least one picture");
    let height = pictures.iter().map(RgbImage::height).max().expect("at least one picture");
    let size = sheet_size(pictures.len(), columns, [width, height].map(u64::from), gap);
    let [sheet_width, sheet_height] = size.map(|side| side as u32);
    let mut sheet = RgbImage::from_pixel(sheet_width, sheet_height, image::Rgb(background));
    for (i, picture) in pictures.iter().enumerate() {
        let (column, row) = ((i % columns) as u32, (i / columns) as u32);
        let (x, y) = (gap + column * (width + gap), gap + row * (height + gap));
        imageops::replace(&mut sheet, picture, i64::from(x), i64::from(y));
    }
    sheet
}

/// `[width, height]` in pixels of the [`contact_sheet`] of `count` pictures of this `[width, height]`; there must be one.
pub fn sheet_size(count: usize, columns: usize, picture: [u64; 2], gap: u32) -> [u64; 2] {
    let columns = columns.clamp(1, count);
    let (cells, gap) = ([columns, count.div_ceil(columns)], u64::from(gap));
    [0, 1].map(|axis| cells[axis] as u64 * (picture[axis] + gap) + gap)
}
