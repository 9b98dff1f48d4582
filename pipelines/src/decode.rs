//! Pictures from files: upright, and within a limit of memory.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use image::error::{DecodingError, ImageFormatHint};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbaImage};

use pyrograph_weights::{check_pointer, open_file, read_start};

use crate::error::{Error, Result};
use crate::metadata;

/// Most bytes of a file, and of the pixels that it becomes: 2^27 pixels of 8 bits. Decoding takes less than twice as
/// much.
const LIMIT: u64 = 512 << 20;
/// Bytes that tell what a file is.
const START: u64 = 64;
/// Most bytes of what a PNG holds beside its pixels.
const BESIDE: u64 = 16 << 20;
/// Pictures of more bytes are decoded one at a time, however many threads there are.
const LARGE: u64 = 64 << 20;
/// Most chunks of a PNG that are searched for an orientation after the pixels.
const CHUNKS: usize = 1 << 16;
/// Most bytes of such an orientation, and of the data around it.
const EXIF_LIMIT: u32 = 1 << 20;

/// The pixels of a file, turned as its orientation says (EXIF tag 274, or that of XMP).
///
/// # Errors
/// [`Error::TooLarge`] before memory is taken; a file that is no picture, or a damaged one.
pub(crate) fn decode(path: &Path) -> Result<RgbaImage> {
    static ONE_LARGE: Mutex<()> = Mutex::new(());
    let Opened { decoder, orientation, need, format } = open(path)?;
    if format == Some(ImageFormat::Jpeg) && !is_whole(&read(path)?) {
        let hint = ImageFormatHint::Exact(ImageFormat::Jpeg);
        let missing = DecodingError::new(hint, "the data end before the picture");
        return Err(fault(path, ImageError::Decoding(missing)));
    }
    // The lock guards no data.
    let _one = (need > LARGE).then(|| ONE_LARGE.lock().unwrap_or_else(PoisonError::into_inner));
    let mut picture = DynamicImage::from_decoder(decoder).map_err(|source| fault(path, source))?;
    picture.apply_orientation(orientation);
    Ok(picture.into_rgba8())
}

/// `[height, width]` of the picture in a file, turned as [`decode`] turns it.
///
/// # Errors
/// Those of [`decode`], but for damaged pixels.
pub(crate) fn size(path: &Path) -> Result<[usize; 2]> {
    let Opened { decoder, orientation, .. } = open(path)?;
    let (width, height) = decoder.dimensions();
    let [height, width] = [height, width].map(|side| side as usize);
    let turned = [
        Orientation::Rotate90,
        Orientation::Rotate270,
        Orientation::Rotate90FlipH,
        Orientation::Rotate270FlipH,
    ];
    Ok(if turned.contains(&orientation) { [width, height] } else { [height, width] })
}

/// A picture whose header was read and found possible.
struct Opened<D> {
    decoder: D,
    orientation: Orientation,
    /// Bytes of its pixels.
    need: u64,
    format: Option<ImageFormat>,
}

fn open(path: &Path) -> Result<Opened<impl ImageDecoder>> {
    let file = |source| Error::File { path: path.to_owned(), source };
    let (opened, length) = open_file(path)?;
    let too_large = |what: String, need| match need > LIMIT {
        true => Err(Error::TooLarge { path: path.to_owned(), what, need, limit: LIMIT }),
        false => Ok(need),
    };
    too_large("the file".into(), length)?;
    let pixels = |[width, height]: [u32; 2], bytes: u64| {
        let rgba = 4u64.saturating_mul(u64::from(width)).saturating_mul(u64::from(height));
        too_large(format!("{width}x{height} pixels"), rgba.max(bytes))
    };
    let start = read_start(path, START)?;
    if let Some(sides) = sides(&start) {
        // Before the decoder, which says less.
        pixels(sides, 0)?;
    }
    let mut reader =
        ImageReader::new(BufReader::new(opened)).with_guessed_format().map_err(file)?;
    let format = reader.format();
    if format.is_none() {
        check_pointer(path, &start)?;
    }
    if format == Some(ImageFormat::Png) {
        // Of what stands beside the pixels, such as a profile of colours, which can hold a thousand times its size.
        let mut limits = Limits::default();
        limits.max_alloc = Some(BESIDE);
        reader.limits(limits);
    }
    let mut decoder = reader.into_decoder().map_err(|source| fault(path, source))?;
    let need = pixels(decoder.dimensions().into(), decoder.total_bytes())?;
    let elsewhere = || match format {
        Some(ImageFormat::Png) => late_exif(path).or_else(|| exif_in_text(path)),
        _ => None,
    };
    let orientation = orientation(&mut decoder)
        .or_else(|| of_exif(&elsewhere()?))
        .unwrap_or(Orientation::NoTransforms);
    Ok(Opened { decoder, orientation, need, format })
}

/// `[width, height]` in the header of a PNG or of an extended WebP.
fn sides(start: &[u8]) -> Option<[u32; 2]> {
    let kind = start.get(12..16)?;
    let of_three = |at: usize| Some(&start.get(at..at + 3)?).map(|b| [b[0], b[1], b[2], 0]);
    match kind {
        b"IHDR" if start.starts_with(b"\x89PNG") => {
            let side =
                |at: usize| Some(u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?));
            Some([side(16)?, side(20)?])
        }
        b"VP8X" if start.starts_with(b"RIFF") => {
            let side = |at: usize| Some(u32::from_le_bytes(of_three(at)?) + 1);
            Some([side(24)?, side(27)?])
        }
        _ => None,
    }
}

/// What a decoder says, for people: the chunks of a PNG by their names.
fn fault(path: &Path, source: ImageError) -> Error {
    const CHUNK: &str = "ChunkType { type: ";
    let said = source.to_string();
    let parts = said.split_once(CHUNK).and_then(|(before, rest)| {
        let (chunk, after) = rest.split_once(" }")?;
        Some((before, chunk.split_once(',').map_or(chunk, |(name, _)| name), after))
    });
    match parts {
        Some((before, name, after)) => {
            Error::Png { path: path.to_owned(), reason: format!("{before}{name}{after}") }
        }
        None => Error::Image { path: path.to_owned(), source },
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Whether a JPEG has its end marker; where data are missing, the decoder would show grey.
fn is_whole(jpeg: &[u8]) -> bool {
    let mut at = 2;
    while let Some(bytes) = jpeg.get(at..at + 2) {
        at += match bytes {
            [0xFF, 0xD9] => return true,
            // Within pixels: a byte of 0xFF, and marks to start again from.
            [0xFF, 0x00 | 0x01 | 0xD0..=0xD7] => 2,
            [0xFF, 0xFF] => 1,
            // A segment of known length, which may hold a preview with an end of its own.
            [0xFF, _] => match jpeg.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            _ => 1,
        };
    }
    false
}

/// What stands before the pixels.
fn orientation(decoder: &mut impl ImageDecoder) -> Option<Orientation> {
    let exif = decoder.exif_metadata().ok().flatten();
    exif.and_then(|exif| of_exif(&exif)).or_else(|| of_xmp(&decoder.xmp_metadata().ok()??))
}

/// Some programs keep the marker of JPEG in front of the data in other files, too.
fn of_exif(exif: &[u8]) -> Option<Orientation> {
    Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
}

/// As an attribute, `tiff:Orientation="6"`, or an element, `<tiff:Orientation>6<`.
fn of_xmp(xmp: &[u8]) -> Option<Orientation> {
    let text = String::from_utf8_lossy(xmp);
    let (_, after) = text.split_once("tiff:Orientation")?;
    let digit = after.trim_start_matches(['=', '"', '\'', '>', ' ']).chars().next()?;
    Orientation::from_exif(digit.to_digit(10)? as u8)
}

/// The `eXIf` chunk of a PNG, which may come after the pixels.
fn late_exif(path: &Path) -> Option<Vec<u8>> {
    let mut file = BufReader::new(File::open(path).ok()?);
    file.seek(SeekFrom::Start(8)).ok()?;
    for _ in 0..CHUNKS {
        let (mut length, mut kind) = ([0; 4], [0; 4]);
        file.read_exact(&mut length).ok()?;
        file.read_exact(&mut kind).ok()?;
        let length = u32::from_be_bytes(length);
        if kind == *b"eXIf" && length <= EXIF_LIMIT {
            let mut data = vec![0; length as usize];
            file.read_exact(&mut data).ok()?;
            return Some(data);
        }
        // Behind the data is a checksum.
        file.seek_relative(i64::from(length) + 4).ok()?;
    }
    None
}

/// The EXIF block that ImageMagick and ExifTool keep in a text of a PNG: a name, a length, hexadecimal digits.
fn exif_in_text(path: &Path) -> Option<Vec<u8>> {
    let texts = metadata::read(path).ok()?;
    let text =
        ["exif", "APP1"].iter().find_map(|kind| texts.get(&format!("Raw profile type {kind}")))?;
    let mut words = text.split_ascii_whitespace().skip(1);
    let length: usize = words.next()?.parse().ok()?;
    let digits: Vec<u32> =
        words.flat_map(str::chars).map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    (bytes.len() == length).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
    use image::{ExtendedColorType, ImageEncoder, RgbImage};

    /// Left half red, right half blue, with a green corner above on the left.
    fn stored() -> RgbImage {
        RgbImage::from_fn(24, 16, |x, y| match (x, y) {
            (0..8, 0..8) => image::Rgb([0, 255, 0]),
            (0..12, _) => image::Rgb([255, 0, 0]),
            _ => image::Rgb([0, 0, 255]),
        })
    }

    /// An EXIF block that holds an orientation alone.
    fn exif(orientation: u8) -> Vec<u8> {
        let header = [b'M', b'M', 0, 42, 0, 0, 0, 8, 0, 1];
        let entry = [0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0];
        [header.as_slice(), &entry].concat()
    }

    /// As the definition of the tag says where rows and columns of the upright picture begin.
    fn upright(orientation: u8) -> RgbImage {
        use image::imageops::{flip_horizontal, flip_vertical, rotate90, rotate180, rotate270};
        let stored = stored();
        match orientation {
            2 => flip_horizontal(&stored),
            3 => rotate180(&stored),
            4 => flip_vertical(&stored),
            5 => flip_horizontal(&rotate90(&stored)),
            6 => rotate90(&stored),
            7 => flip_horizontal(&rotate270(&stored)),
            8 => rotate270(&stored),
            _ => stored,
        }
    }

    fn encoded(mut encoder: impl ImageEncoder, exif: Vec<u8>) {
        let picture = stored();
        encoder.set_exif_metadata(exif).expect("a format with EXIF");
        let (width, height) = picture.dimensions();
        let raw = picture.as_raw();
        encoder.write_image(raw, width, height, ExtendedColorType::Rgb8).expect("encoded");
    }

    fn assert_upright(bytes: &[u8], orientation: u8) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("picture.jpg");
        std::fs::write(&path, bytes).expect("written");
        let (found, expected) = (decode(&path).expect("a picture"), upright(orientation));
        assert_eq!(found.dimensions(), expected.dimensions(), "{orientation}");
        let sides = [expected.height(), expected.width()].map(|side| side as usize);
        assert_eq!(size(&path).expect("a picture"), sides, "{orientation}");
        // JPEG rounds.
        let apart = found.pixels().zip(expected.pixels()).filter(|(found, expected)| {
            (0..3).any(|channel| found.0[channel].abs_diff(expected.0[channel]) > 100)
        });
        assert!(apart.count() < 40, "{orientation}");
    }

    #[test]
    fn every_orientation_is_turned_upright_in_every_format() {
        for orientation in 0..=9 {
            let expected = if orientation == 9 { 1 } else { orientation };
            for marker in [b"".as_slice(), b"Exif\0\0"] {
                let exif = [marker, &exif(orientation)].concat();
                let [mut jpeg, mut png, mut webp] = [const { Vec::new() }; 3];
                encoded(PngEncoder::new(&mut png), exif.clone());
                encoded(WebPEncoder::new_lossless(&mut webp), exif.clone());
                assert_upright(&png, expected);
                assert_upright(&webp, expected);
                if marker.is_empty() {
                    encoded(JpegEncoder::new_with_quality(&mut jpeg, 100), exif);
                    assert_upright(&jpeg, expected);
                }
            }
        }
    }

    #[test]
    fn orientations_after_the_pixels_and_in_xmp_count_too() {
        let mut png = Vec::new();
        encoded(PngEncoder::new(&mut png), exif(6));
        let at = png.windows(4).position(|kind| kind == b"eXIf").expect("a chunk") - 4;
        let length = 12 + exif(6).len();
        let chunk: Vec<u8> = png.drain(at..at + length).collect();
        assert_upright(&png, 1);
        png.splice(png.len() - 12..png.len() - 12, chunk);
        assert_upright(&png, 6);
        for (xmp, orientation) in [
            (r#"<rdf:Description tiff:Orientation="8" />"#, 8),
            ("<tiff:Orientation>3</tiff:Orientation>", 3),
            ("tiff:Orientation", 1),
        ] {
            let found = of_xmp(xmp.as_bytes()).unwrap_or(Orientation::NoTransforms);
            assert_eq!(found.to_exif(), orientation, "{xmp}");
        }
    }

    #[test]
    fn orientations_in_a_text_of_a_png_count_too() {
        let block = [b"Exif\0\0".as_slice(), &exif(6)].concat();
        let digits: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        let profile = format!("\nexif\n{:>8}\n{}\n{}\n", block.len(), &digits[..40], &digits[40..]);
        let shortened = profile.replace(&digits[40..], &digits[42..]);
        for (kind, profile, orientation) in [
            ("exif", &profile, 6),
            ("APP1", &profile, 6),
            ("iptc", &profile, 1),
            ("exif", &shortened, 1),
        ] {
            let mut bytes = Vec::new();
            let picture = stored();
            let mut encoder = png::Encoder::new(&mut bytes, picture.width(), picture.height());
            encoder.set_color(png::ColorType::Rgb);
            encoder
                .add_ztxt_chunk(format!("Raw profile type {kind}"), profile.clone())
                .expect("a text");
            let mut writer = encoder.write_header().expect("a header");
            writer.write_image_data(picture.as_raw()).expect("pixels");
            writer.finish().expect("an end");
            assert_upright(&bytes, orientation);
        }
    }

    #[test]
    fn a_part_of_a_picture_is_no_picture() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("picture");
        let [mut jpeg, mut png, mut webp] = [const { Vec::new() }; 3];
        encoded(JpegEncoder::new_with_quality(&mut jpeg, 100), exif(1));
        encoded(PngEncoder::new(&mut png), exif(1));
        encoded(WebPEncoder::new_lossless(&mut webp), exif(1));
        for whole in [jpeg, png, webp] {
            for length in [0, 1, 20, whole.len() / 4, whole.len() / 2] {
                std::fs::write(&path, &whole[..length]).expect("written");
                assert!(decode(&path).is_err(), "{length} of {}", whole.len());
            }
            // What follows a picture does not matter.
            std::fs::write(&path, [whole.as_slice(), b"more"].concat()).expect("written");
            assert!(decode(&path).is_ok());
        }
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_header() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bomb.png");
        let mut png = Vec::new();
        encoded(PngEncoder::new(&mut png), exif(1));
        // Width and height stand in the first chunk, whose checksum the reader compares.
        let header = |side: u32| {
            let mut data = b"IHDR".to_vec();
            data.extend([side.to_be_bytes(), side.to_be_bytes()].concat());
            data.extend([8, 2, 0, 0, 0]);
            let crc = data.iter().fold(u32::MAX, |crc, byte| {
                (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                    (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
                })
            });
            [data, (!crc).to_be_bytes().to_vec()].concat()
        };
        png.splice(12..33, header(12_900));
        std::fs::write(&path, &png).expect("written");
        for error in [decode(&path).map(drop), size(&path).map(drop)] {
            let error = error.expect_err("too large");
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains("12900x12900 pixels take 635 MiB, allowed 512"), "{text}");
        }
        png.splice(12..33, header(u32::MAX));
        std::fs::write(&path, &png).expect("written");
        let text = decode(&path).expect_err("too large").to_string();
        assert!(text.contains("4294967295x4294967295 pixels"), "{text}");
        let canvas = [&b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"[..], &[0xFF; 6], &[0; 8]];
        std::fs::write(&path, canvas.concat()).expect("written");
        let text = decode(&path).expect_err("too large").to_string();
        assert!(text.contains("16777216x16777216 pixels"), "{text}");
        // A second header, with its checksum.
        png.splice(12..33, header(8));
        let again = png[8..33].to_vec();
        png.splice(33..33, again);
        std::fs::write(&path, &png).expect("written");
        let text = decode(&path).expect_err("two headers").to_string();
        assert!(text.contains("IHDR must appear") && !text.contains('{'), "{text}");
        std::fs::write(&path, &png[..20]).expect("written");
        assert!(decode(&path).is_err());
        assert!(decode(folder.path()).is_err());
    }
}
