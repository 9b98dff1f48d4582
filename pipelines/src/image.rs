//! Pictures: tensors to pixels, contact sheets, files.

mod sheet;

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::buffer::ConvertBuffer;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ImageEncoder, ImageFormat, RgbImage, Rgba, RgbaImage, imageops};
use pyrograph_engine::read;
use pyrograph_weights::{check_writable, folder_of, write_whole};

use crate::decode;
use crate::error::{Error, Result};
use crate::metadata::exif;

pub use sheet::{contact_sheet, sheet_size};

/// Most characters of what was asked for in the name of a file, which can be a long text.
const NAME_LENGTH: usize = 48;

/// Pictures of a tensor with pixels in [-1, 1]; values outside are clipped.
///
/// # Shapes
/// `[images, 1 | 3, height, width]`
///
/// # Errors
/// [`Error::Degenerate`] for values that are not finite, and a GPU that failed on the way to them.
///
/// # Panics
/// With another number of channels.
pub fn to_images(pixels: Tensor<4>) -> Result<Vec<RgbImage>> {
    let [count, channels, height, width] = pixels.dims();
    assert!(channels == 1 || channels == 3, "{channels} channels, expected 1 or 3");
    let values = read::numbers(pixels)?;
    let plane = height * width;
    (0..count)
        .map(|index| {
            let image = &values[index * channels * plane..(index + 1) * channels * plane];
            if !image.iter().all(|value| value.is_finite()) {
                return Err(Error::Degenerate { index, reason: "not finite" });
            }
            let level = |value: f32| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round() as u8;
            Ok(RgbImage::from_fn(width as u32, height as u32, |x, y| {
                let at = y as usize * width + x as usize;
                image::Rgb([0, 1, 2].map(|c| level(image[c.min(channels - 1) * plane + at])))
            }))
        })
        .collect()
}

/// A picture as a network sees it.
pub(crate) struct Drawn<'a> {
    /// Straight RGBA.
    pub(crate) rgba: &'a [u8],
    /// What transparent pixels are laid on.
    pub(crate) background: [u8; 3],
    /// Mirrored.
    pub(crate) flip: bool,
}

/// Pictures of one `size`, `[height, width]`, with pixels in [-1, 1], `[pictures, 3, height, width]`.
pub(crate) fn to_tensor<'a>(
    pictures: impl ExactSizeIterator<Item = Drawn<'a>>,
    [height, width]: [usize; 2],
    device: &Device,
) -> Tensor<4> {
    let (count, plane) = (pictures.len(), height * width);
    let mut values = vec![0f32; count * 3 * plane];
    for (Drawn { rgba, background, flip }, out) in pictures.zip(values.chunks_mut(3 * plane)) {
        for (at, pixel) in rgba.as_chunks::<4>().0.iter().enumerate() {
            let (y, x) = (at / width, at % width);
            let to = y * width + if flip { width - 1 - x } else { x };
            let alpha = f32::from(pixel[3]) / 255.0;
            for channel in 0..3 {
                let value = f32::from(pixel[channel]) * alpha
                    + f32::from(background[channel]) * (1.0 - alpha);
                out[channel * plane + to] = value / 127.5 - 1.0;
            }
        }
    }
    Tensor::from_data(TensorData::new(values, [count, 3, height, width]), device)
}

/// Pictures of one size, `[pictures, 3, height, width]` in [-1, 1].
pub(crate) fn rgb_tensor(pictures: &[RgbImage], device: &Device) -> Tensor<4> {
    let rgba: Vec<RgbaImage> = pictures.iter().map(RgbImage::convert).collect();
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let drawn = rgba.iter().map(|rgba| Drawn { rgba, background: [255; 3], flip: false });
    to_tensor(drawn, [height as usize, width as usize], device)
}

/// A picture resized with antialiasing, whatever its aspect.
pub(crate) fn stretched(picture: &RgbImage, width: u32, height: u32) -> RgbImage {
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let mut resized = RgbImage::new(width, height);
    Resizer::new().resize(picture, &mut resized, &options).expect("both are RGB");
    resized
}

/// One picture with pixels in [-1, 1] on white, cut and resized to `[height, width]`, `[1, 3, height, width]`.
pub(crate) fn picture_tensor(picture: &RgbaImage, size: [usize; 2], device: &Device) -> Tensor<4> {
    let rgba = fit(picture, size);
    let drawn = Drawn { rgba: &rgba, background: [255; 3], flip: false };
    to_tensor(std::iter::once(drawn), size, device)
}

/// The largest centred part with the aspect of `[height, width]`, resized to it with antialiasing: what a model of this size
/// sees of a picture.
pub fn fitted(picture: &RgbImage, [height, width]: [usize; 2]) -> RgbImage {
    let pixels = fit(&picture.convert(), [height, width]);
    let rgba = RgbaImage::from_raw(width as u32, height as u32, pixels);
    rgba.expect("as many bytes as pixels").convert()
}

/// Straight RGBA pixels of the largest centred part with the right aspect, resized with antialiasing.
pub(crate) fn fit(picture: &RgbaImage, [height, width]: [usize; 2]) -> Vec<u8> {
    if picture.dimensions() == (width as u32, height as u32) {
        return picture.as_raw().clone();
    }
    let source = [picture.height() as usize, picture.width() as usize];
    let options = ResizeOptions::new().fit_into_destination(Some((0.5, 0.5)));
    resample(picture.as_raw(), source, [height, width], options)
}

/// Straight RGBA pixels of one `[height, width]` in another, with antialiasing; `options` say which part of them.
///
/// # Panics
/// For another number of pixels, and a part beyond them.
pub(crate) fn resample(
    rgba: &[u8],
    from: [usize; 2],
    to: [usize; 2],
    options: ResizeOptions,
) -> Vec<u8> {
    let [[tall, wide], [height, width]] = [from, to].map(|size| size.map(|side| side as u32));
    let kind = PixelType::U8x4;
    let source = ImageRef::new(wide, tall, rgba, kind).expect("as many bytes as pixels");
    let mut target = Image::new(width, height, kind);
    let catmull_rom = ResizeAlg::Convolution(FilterType::CatmullRom);
    let options = options.resize_alg(catmull_rom).use_alpha(true);
    Resizer::new().resize(&source, &mut target, &options).expect("a part of the pixels");
    target.into_vec()
}

/// Pixels enlarged or reduced, with their aspect, until they cover `size`, `[height, width]`, and the centre of that: bilinear
/// and without antialiasing, as PixArt's pipelines end in diffusers.
///
/// # Shapes
/// `[images, channels, _, _]` to `[images, channels, height, width]`
pub(crate) fn cover(pixels: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, rows, columns] = pixels.dims();
    let ratio = (size[0] as f64 / rows as f64).max(size[1] as f64 / columns as f64);
    [(2, rows), (3, columns)].into_iter().fold(pixels, |pixels, (axis, from)| {
        let to = size[axis - 2];
        let all = ((from as f64 * ratio) as usize).max(to);
        let start = (all - to) / 2;
        match [all, to] == [from; 2] {
            true => pixels,
            false => resized(pixels, axis, all, start..start + to),
        }
    })
}

/// Of an axis resized to `all` pixels those of a range.
fn resized(pixels: Tensor<4>, axis: usize, all: usize, range: std::ops::Range<usize>) -> Tensor<4> {
    let (from, device) = (pixels.dims()[axis], pixels.device());
    let last = from - 1;
    let at = |i: usize| ((i as f64 + 0.5) * from as f64 / all as f64 - 0.5).clamp(0.0, last as f64);
    let places: Vec<f64> = range.map(at).collect();
    let side = |place: &dyn Fn(f64) -> f64| {
        let ids: Vec<i64> = places.iter().map(|at| (place(*at) as i64).min(last as i64)).collect();
        let count = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [count]), &device);
        pixels.clone().select(axis, ids)
    };
    let (low, high) = (side(&|at| at.floor()), side(&|at| at.floor() + 1.0));
    let shares: Vec<f32> = places.iter().map(|at| at.fract() as f32).collect();
    let mut shape = [1; 4];
    shape[axis] = shares.len();
    let share = Tensor::from_data(TensorData::new(shares, shape), &device);
    low.clone() + (high - low) * share
}

/// `[height, width]` of the picture in a file, upright.
///
/// # Errors
/// A file that cannot be read, that is no PNG, JPEG or WebP, or too large; damaged pixels are found later.
pub fn picture_size(path: &Path) -> Result<[usize; 2]> {
    decode::size(path)
}

/// The picture in a file, upright, on white where it is transparent.
///
/// # Errors
/// As [`picture_size`], and damaged pixels.
pub fn read_picture(path: &Path) -> Result<RgbImage> {
    let rgba = decode::decode(path)?;
    let mut white = RgbaImage::from_pixel(rgba.width(), rgba.height(), Rgba([255; 4]));
    imageops::overlay(&mut white, &rgba, 0, 0);
    Ok(white.convert())
}

/// Refuses a picture of a single colour, which is how broken models and drivers show.
pub fn check_picture(index: usize, picture: &RgbImage) -> Result<()> {
    let mut pixels = picture.pixels();
    let first = pixels.next();
    match first.is_some() && pixels.all(|pixel| Some(pixel) == first) && picture.len() > 3 {
        true => Err(Error::Degenerate { index, reason: "a single colour" }),
        false => Ok(()),
    }
}

/// Format of an output, by its extension.
fn format(path: &Path) -> Result<ImageFormat> {
    let unknown = || Error::OutputKind { path: path.to_owned() };
    let format = ImageFormat::from_path(path).map_err(|_| unknown())?;
    match format {
        ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP => Ok(format),
        _ => Err(unknown()),
    }
}

/// Checks, before any work, that a picture can be written to this path.
///
/// # Errors
/// An unknown extension, and those of [`check_folder_of`].
pub fn check_output_path(path: &Path) -> Result<()> {
    format(path)?;
    check_folder_of(path)
}

/// The part of [`check_output_path`] that holds for a file of any kind.
///
/// # Errors
/// A folder that is not there or cannot be written, and a folder in place of the file.
pub fn check_folder_of(path: &Path) -> Result<()> {
    let fault = |path: &Path, source| Err(Error::File { path: path.to_owned(), source });
    let folder = folder_of(path);
    if !folder.is_dir() {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, "no such folder");
        return fault(folder, source);
    }
    if path.is_dir() {
        return fault(path, std::io::ErrorKind::IsADirectory.into());
    }
    Ok(check_writable(folder)?)
}

/// Longest name of a file, in bytes, on all systems.
const NAME_LIMIT: usize = 255;
/// Most bytes of Exif in a JPEG, beside its own marks.
const JPEG_EXIF_LIMIT: usize = 65_000;

/// Checks, before any work, that a file of this format can hold a picture of this `[width, height]` with these texts.
///
/// # Errors
/// An unknown extension, a name that is too long, sides or texts beyond what the format has.
pub fn check_format(path: &Path, size: [u64; 2], texts: &[(String, String)]) -> Result<()> {
    let fault = |reason: String| Err(Error::Output { path: path.to_owned(), reason });
    let format = format(path)?;
    let name = path.file_name().map_or(0, |name| name.len());
    if name > NAME_LIMIT {
        return fault(format!("a name of {name} bytes, expected up to {NAME_LIMIT}"));
    }
    let side = match format {
        ImageFormat::WebP => 16_383,
        ImageFormat::Jpeg => 65_535,
        _ => i32::MAX as u64,
    };
    let [width, height] = size;
    if width.max(height) > side {
        return fault(format!("{width}x{height} pixels, expected sides of up to {side}"));
    }
    if format == ImageFormat::Jpeg {
        let length = exif(texts).map_or(0, |exif| exif.len());
        if length > JPEG_EXIF_LIMIT {
            return fault(format!(
                "settings of {length} bytes, expected up to {JPEG_EXIF_LIMIT} in a JPEG"
            ));
        }
    }
    Ok(())
}

/// Writes a picture whole or not at all, with texts, keyword first: PNG has them as texts, JPEG and WebP in Exif.
///
/// # Errors
/// An unknown extension, texts beyond what a JPEG has, or a disk that refuses.
pub fn write_image(path: &Path, picture: &RgbImage, texts: &[(String, String)]) -> Result<()> {
    let mut bytes = Vec::new();
    let encoded = match format(path)? {
        ImageFormat::Png => {
            bytes = encode_png(picture, texts)
                .map_err(|error| Error::Png { path: path.to_owned(), reason: error.to_string() })?;
            Ok(())
        }
        ImageFormat::Jpeg => encode(picture, JpegEncoder::new(&mut bytes), texts),
        _ => encode(picture, WebPEncoder::new_lossless(&mut bytes), texts),
    };
    encoded.map_err(|source| Error::Image { path: path.to_owned(), source })?;
    Ok(write_whole(path, &bytes)?)
}

fn encode(
    picture: &RgbImage,
    mut encoder: impl ImageEncoder,
    texts: &[(String, String)],
) -> image::ImageResult<()> {
    if !texts.is_empty()
        && let Some(exif) = exif(texts)
    {
        encoder.set_exif_metadata(exif).map_err(image::ImageError::Unsupported)?;
    }
    picture.write_with_encoder(encoder)
}

fn encode_png(
    picture: &RgbImage,
    texts: &[(String, String)],
) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (key, text) in texts {
        // tEXt is Latin-1; readers of A1111 metadata expect it where it suffices.
        match text.chars().all(|c| (c as u32) < 256) {
            true => encoder.add_text_chunk(key.clone(), text.clone())?,
            false => encoder.add_itxt_chunk(key.clone(), text.clone())?,
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(picture.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Path of image `index` of `count`: in the name of the file, but not in its folder, `%d`, `%03d`, `{seed}`, and `{class}` or `{prompt}`
/// are filled in; several images of a pattern without a number or seed get `-000`, `-001` and so on before the
/// extension. A name that is no Unicode holds no pattern.
pub fn output_path(pattern: &Path, index: usize, count: usize, seed: u64, name: &str) -> PathBuf {
    let text = pattern.file_name().and_then(|name| name.to_str());
    let filled = text.map(|text| {
        let (text, numbered) = fill_number(text, index);
        let distinct = numbered || text.contains("{seed}");
        let safe = |c: char| if c.is_alphanumeric() { c } else { '-' };
        let safe: String = name.chars().take(NAME_LENGTH).map(safe).collect();
        let text = text.replace("{seed}", &seed.to_string());
        (text.replace("{class}", &safe).replace("{prompt}", &safe), distinct)
    });
    let (path, distinct) = match filled {
        Some((name, distinct)) => (pattern.with_file_name(name), distinct),
        None => (pattern.to_owned(), false),
    };
    if distinct || count == 1 {
        return path;
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{index:03}."));
    name.push(path.extension().unwrap_or_default());
    path.with_file_name(name)
}

/// Whether [`output_path`] gives each image a name of its own by `%d`, `{seed}`, `{class}` or `{prompt}` in `pattern`.
pub fn is_output_pattern(pattern: &Path) -> bool {
    output_path(pattern, 0, 1, 0, "a") != output_path(pattern, 1, 1, 1, "b")
}

/// Replaces the first `%d` or `%0Nd` by a number.
fn fill_number(text: &str, number: usize) -> (String, bool) {
    for (at, _) in text.match_indices('%') {
        let rest = &text[at + 1..];
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if rest[digits..].starts_with('d') && digits <= 2 {
            let width = rest[..digits].parse::<usize>().unwrap_or(0);
            let filled = format!("{}{number:0width$}{}", &text[..at], &rest[digits + 1..]);
            return (filled, true);
        }
    }
    (text.to_owned(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_rounded_and_clipped() {
        let device = Device::flex();
        let values = Tensor::<1>::from_floats([-1.5, -1.0, 0.0, 1.0], &device);
        let image = to_images(values.reshape([1, 1, 2, 2])).expect("finite").remove(0);
        let levels: Vec<u8> = image.pixels().map(|pixel| pixel.0[2]).collect();
        assert_eq!(levels, [0, 0, 128, 255]);
        let broken = Tensor::<1>::from_floats([f32::NAN; 4], &device).reshape([1, 1, 2, 2]);
        assert!(matches!(to_images(broken), Err(Error::Degenerate { index: 0, .. })));
    }

    #[test]
    fn a_single_colour_is_refused() {
        let mut picture = RgbImage::from_pixel(4, 4, image::Rgb([7, 7, 7]));
        assert!(check_picture(3, &picture).is_err());
        picture.put_pixel(3, 3, image::Rgb([8, 7, 7]));
        assert!(check_picture(3, &picture).is_ok());
    }

    #[test]
    fn output_names() {
        let name = |pattern: &str, count| {
            let path = output_path(Path::new(pattern), 7, count, 42, "a/b c");
            path.to_string_lossy().into_owned()
        };
        assert_eq!(name("out.png", 1), "out.png");
        assert_eq!(name("out.png", 9), "out-007.png");
        assert_eq!(name("o/%03d-{seed}.png", 9), "o/007-42.png");
        assert_eq!(name("%d.png", 9), "7.png");
        assert_eq!(name("{class}.png", 2), "a-b-c-007.png");
        assert_eq!(name("100%.png", 1), "100%.png");
        // Folders are what they are.
        assert_eq!(name("100%done/{class}/%d.png", 2), "100%done/{class}/7.png");
        for (pattern, expected) in [("{seed}.png", true), ("100%.png", false)] {
            assert_eq!(is_output_pattern(Path::new(pattern)), expected, "{pattern}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_no_unicode_stay_what_they_are() {
        use std::os::unix::ffi::OsStrExt;
        let path = |name: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(name));
        let named = |count| output_path(&path(b"a\xff/%d\xff.png"), 7, count, 42, "a");
        assert_eq!(named(1), path(b"a\xff/%d\xff.png"));
        assert_eq!(named(9), path(b"a\xff/%d\xff-007.png"));
        assert_eq!(output_path(&path(b"a\xff/%d.png"), 7, 9, 42, "a"), path(b"a\xff/7.png"));
    }

    #[test]
    fn formats_that_cannot_hold_a_picture_are_refused_first() {
        let refused = |name: &str, size: [u64; 2], text: &str, part: &str| {
            let texts = [("pyrograph".to_owned(), text.to_owned())];
            let error = check_format(Path::new(name), size, &texts).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        refused("a.webp", [16_384, 8], "", "up to 16383");
        refused("a.jpg", [8, 65_536], "", "up to 65535");
        refused("a.jpg", [8, 8], &"a".repeat(65_536), "settings of");
        refused(&format!("{}.png", "a".repeat(252)), [8, 8], "", "256 bytes");
        assert!(check_format(Path::new("a.png"), [70_000, 8], &[]).is_ok());
    }

    #[test]
    fn sheets_hold_every_picture_once() {
        let pictures: Vec<RgbImage> =
            (0..5).map(|i| RgbImage::from_pixel(3, 2, image::Rgb([i + 1, 0, 0]))).collect();
        let sheet = contact_sheet(&pictures, 2, 1, [0; 3]);
        assert_eq!(sheet.dimensions(), (2 * 4 + 1, 3 * 3 + 1));
        for i in 1..=5 {
            assert_eq!(sheet.pixels().filter(|pixel| pixel.0[0] == i).count(), 6);
        }
    }

    #[test]
    fn unknown_kinds_and_missing_folders_fail_first() {
        assert!(matches!(check_output_path(Path::new("a.gif")), Err(Error::OutputKind { .. })));
        assert!(matches!(check_output_path(Path::new("no/such/a.png")), Err(Error::File { .. })));
        let folder = tempfile::tempdir().expect("a folder");
        let taken = folder.path().join("a.png");
        std::fs::create_dir(&taken).expect("made");
        assert!(matches!(check_output_path(&taken), Err(Error::File { .. })));
        check_output_path(&folder.path().join("b.png")).expect("a folder that can be written");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1);
    }
}
